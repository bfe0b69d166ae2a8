"""Members of packs as bytes: who reads one after the other gets neighbours by one request."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import trio

from s3mount.errors import ChecksumError
from s3mount.pack.union import Member
from s3mount.refs import ByteRange, ContentRef
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Readable

WINDOW_BYTES = INLINE_BODY_BYTES_MAX
WINDOWS_MAX = 32
"""So many pieces of packs are kept in memory, of WINDOW_BYTES each."""
PACKS_MAX = 1000


class _Window:
    """A piece of a pack that is there or on its way."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.data: bytes | None = None


class MemberReader:
    """Reads members of packs of ``store``."""

    def __init__(self, store: Readable) -> None:
        self._store = store
        self._windows: OrderedDict[tuple[ContentRef, int], _Window] = OrderedDict()
        self._read_at: OrderedDict[ContentRef, int] = OrderedDict()

    async def read(self, member: Member, start: int, length: int) -> bytes:
        """Bytes of a member, at most INLINE_BODY_BYTES_MAX. Raises StoreError, ChecksumError.

        The first read of a large pack asks for no more than it needs; a second one nearby for what is around.
        """
        entry = member.entry
        if entry is None or not length:
            return b""
        pack = member.loaded.ref
        begin = entry.body + start
        is_near = self._is_near(pack, begin)
        data = await (self._from_windows if is_near else self._alone)(pack, begin, length)
        if self._is_right(member, start, data):
            return data
        # What came wrong is not kept, and asked for once more.
        self._forget(pack, begin, length)
        data = await self._alone(pack, begin, length)
        if not self._is_right(member, start, data):
            raise ChecksumError("a member of a pack is not what the index tells of", key=member.key)
        return data

    def _is_near(self, pack: ContentRef, begin: int) -> bool:
        before = self._read_at.pop(pack, None)
        self._read_at[pack] = begin
        if len(self._read_at) > PACKS_MAX:
            self._read_at.popitem(last=False)
        is_small = pack.size <= WINDOW_BYTES
        return is_small or (before is not None and abs(begin - before) <= WINDOW_BYTES)

    @staticmethod
    def _is_right(member: Member, start: int, data: bytes) -> bool:
        entry = member.entry
        is_whole = entry is not None and not start and len(data) == entry.size
        if entry is None or not is_whole or not entry.sha256:
            return True
        return hashlib.sha256(data).hexdigest() == entry.sha256

    async def _alone(self, pack: ContentRef, start: int, length: int) -> bytes:
        _, data = await self._store.get(
            pack.key, byte_range=ByteRange(start, length), if_match=pack.etag or None
        )
        return data

    async def _from_windows(self, pack: ContentRef, start: int, length: int) -> bytes:
        first, last = start // WINDOW_BYTES, (start + length - 1) // WINDOW_BYTES
        data = b"".join([await self._window(pack, number) for number in range(first, last + 1)])
        skipped = start - first * WINDOW_BYTES
        return data[skipped : skipped + length]

    async def _window(self, pack: ContentRef, number: int) -> bytes:
        """One piece; who comes while it is on its way waits for the same request."""
        window = self._windows.get((pack, number))
        if window is not None:
            self._windows.move_to_end((pack, number))
            await window.arrived.wait()
            if window.data is not None:
                return window.data
        window = self._windows[pack, number] = _Window()
        while len(self._windows) > WINDOWS_MAX:
            self._windows.popitem(last=False)
        start = number * WINDOW_BYTES
        try:
            length = min(WINDOW_BYTES, pack.size - start)
            window.data = await self._alone(pack, start, length)
            return window.data
        finally:
            window.arrived.set()
            if window.data is None and self._windows.get((pack, number)) is window:
                del self._windows[pack, number]

    def _forget(self, pack: ContentRef, start: int, length: int) -> None:
        for number in range(start // WINDOW_BYTES, (start + length - 1) // WINDOW_BYTES + 1):
            self._windows.pop((pack, number), None)

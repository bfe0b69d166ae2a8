"""One object as a file to read: of one version, at any place, ahead of who reads on."""

from __future__ import annotations

import io

import trio

from s3mount.bulk.reading import Piece, pieces_between, read_in_order
from s3mount.bulk.running import OneByOne
from s3mount.refs import ByteRange, ContentRef, ObjectInfo
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store

AHEAD_BYTES = INLINE_BODY_BYTES_MAX
"""Bytes that a read() brings at least, when it goes on where the last one ended."""


class ObjectFile:
    """An object that is read. Its position is the object's own; not for several tasks at once, but for ``read_at``.

    Every read is of the version that was opened: PreconditionFailedError when that is overwritten and gone.
    """

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store = store
        self.info = info
        self.size = info.size
        self._position = 0
        self._ahead = b""
        self._ahead_from = 0
        self._next = 0

    @property
    def _ref(self) -> ContentRef:
        return self.info.ref

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as ``io.IOBase.seek`` does; the new position. Raises ValueError for one before the start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"there is nothing before the start: {base + offset}")
        self._position = base + offset
        return self._position

    async def read(self, length: int = -1) -> bytes:
        """``length`` bytes from the position on, fewer at the end; all of the rest without. Raises StoreError."""
        left = max(0, self.size - self._position)
        wanted = left if length < 0 else min(length, left)
        data = await self._read(wanted)
        self._position += len(data)
        self._next = self._position
        return data

    async def _read(self, wanted: int) -> bytes:
        start = self._position - self._ahead_from
        if start >= 0 and start + wanted <= len(self._ahead):
            await trio.lowlevel.checkpoint()
            return self._ahead[start : start + wanted]
        if wanted >= AHEAD_BYTES or self._position != self._next:
            return await self.read_at(self._position, wanted)
        self._ahead_from = self._position
        self._ahead = await self.read_at(self._position, AHEAD_BYTES)
        return self._ahead[:wanted]

    async def read_at(self, start: int, length: int | None = None) -> bytes:
        """``length`` bytes from ``start`` on, or all from there; the position stays. For any number of tasks.

        Ranges of 8 MiB are fetched in parallel. Raises StoreError.
        """
        left = max(0, self.size - start)
        wanted = left if length is None else min(length, left)
        if not wanted:
            await trio.lowlevel.checkpoint()
            return b""
        ref = self._ref
        if wanted <= INLINE_BODY_BYTES_MAX:
            part = None if wanted == self.size else ByteRange(start, wanted)
            _, data = await self._store.get(
                ref.key, byte_range=part, version_id=ref.version_id, if_match=ref.etag or None
            )
            return data
        found = bytearray()

        async def keep(piece: Piece, view: memoryview) -> None:
            await trio.lowlevel.checkpoint()
            found.extend(view)

        await read_in_order(OneByOne(pieces_between(self._store, ref, start, start + wanted)), keep)
        return bytes(found)

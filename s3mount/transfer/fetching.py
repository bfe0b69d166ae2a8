"""The bytes of one object version, checked: in memory while it is small, else in ranges into an open file.

What the mount reads comes by other ways; these are those of checkouts, manifests and the transfer commands.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import trio
import xxhash

from s3mount.errors import (
    ChecksumError,
    DiskFullError,
    LocalDiskError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
    StoreError,
)
from s3mount.refs import ByteRange, ETag, FileSlice, Key, ObjectDigests, ObjectInfo, VersionId
from s3mount.s3.headers import is_md5_etag
from s3mount.s3.store import Store
from s3mount.tasks import in_parallel
from s3mount.transfer import proving

SMALL_BYTES = 256 * 1024
"""Up to this an object comes into memory in one request: 128 at once have room in 32 MiB."""
RANGE_BYTES = 8 << 20
"""Bytes of one request: large enough that its round trip does not count, small enough to be sent again."""
RANGES_AT_ONCE = 64
HASHING_THREADS = 2
TRIES = 2
"""What arrives with another digest than the store keeps is fetched once more."""


class Wanted(NamedTuple):
    """The version to fetch, as far as it is known: ``etag`` may be empty, ``size`` and ``version_id`` ``None``."""

    key: Key
    etag: ETag = ""
    size: int | None = None
    version_id: VersionId | None = None

    @property
    def pin(self) -> ETag | None:
        """The ETag to insist on: a key without a version, or whose version is ``null``, can be overwritten."""
        return self.etag or None if self.version_id in (None, "null") else None

    def completed(self, info: ObjectInfo) -> Wanted:
        """With what the store told. Raises PreconditionFailedError where the two do not agree."""
        if self.size not in (None, info.size):
            what = (
                f"the store has {info.size} bytes of this version, where {self.size} are expected"
            )
            raise PreconditionFailedError(what, key=self.key)
        if self.etag and info.etag and self.etag != info.etag:
            what = f"the store gives the ETag {info.etag}, where {self.etag} is expected"
            raise PreconditionFailedError(what, key=self.key)
        if self.version_id not in (None, "null", info.version_id) and info.version_id is not None:
            raise PreconditionFailedError("the store sent another version", key=self.key)
        return self._replace(size=info.size, etag=self.etag or info.etag)


class OpenFile(NamedTuple):
    """A local file to fill. ``path`` reaches it from another process, ``descriptor`` from this one.

    ``sums_offset`` and ``sums_shift``: see ``FileSlice``.
    """

    path: str
    descriptor: int
    sums_offset: int = 0
    sums_shift: int = 0

    def place(self, span: ByteRange) -> FileSlice:
        """Where the bytes of ``span`` go."""
        return FileSlice(
            self.path, span.start, span.length, None, self.sums_offset, self.sums_shift
        )


class Arrived(NamedTuple):
    """A version that came whole. ``digest`` is the XXH3-128 of its bytes; ``is_proven``: by a digest of the store's.

    ``data`` are the bytes where they came into memory.
    """

    info: ObjectInfo
    digest: bytes
    is_proven: bool
    data: bytes = b""


class _Try(NamedTuple):
    """One arrival of all bytes, and how to hold them against what the store told."""

    info: ObjectInfo
    hold: Callable[[ObjectDigests | None], Awaitable[proving.FileHashes]]
    data: bytes = b""


class Fetching:
    """Fetches versions. ``on_bytes(n)`` hears of what arrives; negative where a try was in vain.

    ``accept_unproven``: bytes that come alike twice and do not fit an ETag that may be no MD5 are taken. ``slots``
    bounds the ranges under way, over all who share it.
    """

    def __init__(
        self,
        on_bytes: Callable[[int], None],
        *,
        accept_unproven: bool = False,
        slots: trio.CapacityLimiter | None = None,
    ) -> None:
        self._on_bytes = on_bytes
        self._accept_unproven = accept_unproven
        self._etags_are_md5s = False
        self._slots = slots or trio.CapacityLimiter(RANGES_AT_ONCE)
        self._hashing = trio.CapacityLimiter(HASHING_THREADS)

    async def small(self, store: Store, wanted: Wanted) -> Arrived | ObjectInfo:
        """The version in memory; of one that turns out to be larger than SMALL_BYTES what it is.

        Raises the store's errors: NoSuchKeyError, PreconditionFailedError where it is another one than expected,
        ChecksumError where bytes changed on the way, twice.
        """

        async def attempt() -> _Try:
            info, data = await _get_small(store, wanted)
            wanted.completed(info)
            if info.size == len(data):
                self._on_bytes(len(data))

            async def hold(digests: ObjectDigests | None) -> proving.FileHashes:
                await trio.lowlevel.checkpoint()
                is_right = info.is_proven or proving.proven(
                    data, info.etag, _etag_is_digest(info), digests
                )
                return proving.FileHashes(xxhash.xxh3_128_digest(data), is_right)

            return _Try(info, hold, data)

        first = await attempt()
        if first.info.size != len(first.data):
            return first.info
        return await self._proven(store, wanted.completed(first.info), attempt, first)

    async def large(
        self,
        store: Store,
        wanted: Wanted,
        file: OpenFile,
        *,
        missing: Sequence[ByteRange] | None = None,
        range_bytes: int = RANGE_BYTES,
    ) -> Arrived:
        """The version in ``file``, which has its size already; ``wanted`` must tell the size.

        Only the ranges ``missing`` are fetched, where the file has the others from an earlier run; all, where what
        it has then is not the version. ``on_range`` is awaited with each range that lies in the file. Raises as
        ``small``, and LocalDiskError.
        """
        size = wanted.size
        assert size is not None
        everything = [
            ByteRange(start, min(range_bytes, size - start))
            for start in range(0, size, range_bytes)
        ]
        left = everything if missing is None else missing

        async def attempt() -> _Try:
            nonlocal left
            info = await self._ranges(store, wanted, file, left)
            left = everything

            async def hold(digests: ObjectDigests | None) -> proving.FileHashes:
                return await trio.to_thread.run_sync(
                    _hash, file, info, digests, limiter=self._hashing
                )

            return _Try(info, hold)

        return await self._proven(store, wanted, attempt, await attempt())

    async def _proven(
        self, store: Store, wanted: Wanted, attempt: Callable[[], Awaitable[_Try]], one: _Try
    ) -> Arrived:
        """``one``, or another attempt, of which the store's digests do not say that its bytes are wrong."""
        seen: set[bytes] = set()
        for left in reversed(range(TRIES)):
            hashes, by_checksum = await self._held_against(store, wanted, one)
            seen.add(hashes.digest)
            if hashes.is_right is not False:
                break
            self._on_bytes(-one.info.size)
            if left:
                one = await attempt()
            else:
                self._insist(wanted, seen, by_checksum)
                self._on_bytes(one.info.size)
        return Arrived(one.info, hashes.digest, bool(hashes.is_right), one.data)

    async def _held_against(
        self, store: Store, wanted: Wanted, one: _Try
    ) -> tuple[proving.FileHashes, bool]:
        """Are these the bytes, and does a checksum tell it?

        By the ETag, and where that does not prove them, by what the store keeps beside it.
        """
        info = one.info
        hashes = await one.hold(None)
        if hashes.is_right:
            self._etags_are_md5s |= is_md5_etag(info.etag) and not info.is_proven and info.size > 0
            return hashes, False
        digests = await digests_of(store, wanted.key, wanted.version_id)
        if digests is None or digests.etag != info.etag:
            return hashes, False
        return await one.hold(digests), bool(digests.checksums)

    def _insist(self, wanted: Wanted, seen: set[bytes], by_checksum: bool) -> None:
        """Digests that never fitted: raises ChecksumError, unless it may be that the ETag is none, and is accepted.

        That may be where the same bytes came each time, no checksum says that they are wrong, and no other ETag
        of this store was seen to be an MD5.
        """
        is_doubtful = len(seen) == 1 and not by_checksum and not self._etags_are_md5s
        if is_doubtful and self._accept_unproven:
            return
        why = "what arrived is not what its ETag or checksum says"
        if is_doubtful:
            why += ": damaged, or this store's ETags are no MD5s (then --accept-unproven)"
        raise ChecksumError(why, key=wanted.key)

    async def _ranges(
        self,
        store: Store,
        wanted: Wanted,
        file: OpenFile,
        ranges: Sequence[ByteRange],
    ) -> ObjectInfo:
        """Those ranges of the version into the file, all of one version."""
        found: list[ObjectInfo] = []

        async def fetch_range(span: ByteRange) -> None:
            done = 0

            def count(n: int) -> None:
                nonlocal done
                self._on_bytes(n - done)
                done = n

            try:
                info = await store.fetch(
                    wanted.key,
                    span,
                    file.place(span),
                    version_id=wanted.version_id,
                    if_match=wanted.pin,
                    on_progress=count,
                )
                wanted.completed(info)
            except BaseException:
                count(0)
                raise
            count(span.length)
            found.append(info)

        if not ranges:
            # An empty object, or a file that an earlier run filled: what is there is asked for all the same.
            info = await store.head(wanted.key, version_id=wanted.version_id)
            wanted.completed(info)
            return info
        try:
            await in_parallel(self._slots, ranges, fetch_range)
        except RejectedError as error:
            raise _local(error) from error
        except RangeError:
            raise PreconditionFailedError(
                f"the store has less than the {wanted.size} bytes that are expected", key=wanted.key
            ) from None
        if any(info.etag != found[0].etag for info in found):
            raise PreconditionFailedError("it was replaced while it was read", key=wanted.key)
        return found[0]


async def _get_small(store: Store, wanted: Wanted) -> tuple[ObjectInfo, bytes]:
    """The object, or where its size is not known its beginning."""
    unknown = wanted.size is None
    try:
        return await store.get(
            wanted.key,
            byte_range=ByteRange(0, SMALL_BYTES) if unknown else None,
            version_id=wanted.version_id,
            if_match=wanted.pin,
        )
    except RangeError:
        # An empty object has no first byte to ask for.
        return await store.get(wanted.key, version_id=wanted.version_id, if_match=wanted.pin)


def _etag_is_digest(info: ObjectInfo) -> bool | None:
    """Is the ETag the MD5 that its form promises? Of one of parts an answer to GET does not tell."""
    return info.etag_is_md5 if is_md5_etag(info.etag) else None


async def digests_of(store: Store, key: Key, version_id: VersionId | None) -> ObjectDigests | None:
    """What the store keeps beside the ETag; ``None`` where it refuses to tell. Raises retryable StoreErrors."""
    try:
        return await store.digests(key, version_id=version_id)
    except StoreError as error:
        if error.retryable:
            raise
        return None


def _hash(file: OpenFile, info: ObjectInfo, digests: ObjectDigests | None) -> proving.FileHashes:
    try:
        found = proving.hash_file(
            file.descriptor, info.size, info.etag, _etag_is_digest(info), digests
        )
    except OSError as error:
        raise LocalDiskError(f"what was written cannot be read: {error.strerror}") from error
    return found._replace(is_right=True) if info.is_proven else found


def _local(error: RejectedError) -> Exception:
    """What the store could not write to the disk, as what it is."""
    if error.status or not hasattr(errno, error.code):
        return error
    kind = DiskFullError if error.code in ("ENOSPC", "EDQUOT") else LocalDiskError
    return kind(str(error))

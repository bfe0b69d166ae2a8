"""One version of one object, brought into the folder: in one request while it is small, else in ranges."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias

import msgspec
import trio
import xxhash

from s3mount.checkout import comparing
from s3mount.checkout.atomic_write import AtomicWriter, Guard, Landing
from s3mount.checkout.paths import permissions
from s3mount.errors import (
    ChecksumError,
    DiskFullError,
    LocalDiskError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
    StoreError,
)
from s3mount.manifest.model import Entry
from s3mount.refs import ByteRange, FileSlice, ObjectDigests, ObjectHeaders, ObjectInfo
from s3mount.s3.headers import is_md5_etag
from s3mount.s3.store import Store
from s3mount.tasks import in_parallel
from s3mount.transfer import proving

SMALL_BYTES = 256 * 1024
"""Up to this an object comes into memory in one request: 128 at once have room in 32 MiB."""
RANGE_BYTES = 8 << 20
RANGES_AT_ONCE = 64
HASHING_THREADS = 2
TRIES = 2
"""What arrives with another digest than the store keeps is fetched once more."""


class Stored(NamedTuple):
    """What an object's metadata tells of the file it was; ``None`` where nothing."""

    mode: int | None
    mtime_ns: int | None


StoredIn: TypeAlias = Callable[[ObjectHeaders], Stored]


class Fetched(NamedTuple):
    """A file that is in its place. ``entry`` is completed by what the store told; ``is_proven``: by a digest of it."""

    entry: Entry
    found: os.stat_result
    digest: bytes
    is_proven: bool


class Fetcher:
    """Downloads into a target. ``on_bytes(n)`` hears of what arrives; negative where a try was in vain."""

    def __init__(
        self,
        placer: AtomicWriter,
        stored_in: StoredIn,
        on_bytes: Callable[[int], None],
        *,
        accept_unproven: bool,
    ) -> None:
        self._accept_unproven = accept_unproven
        self._etags_are_md5s = False
        self._placer = placer
        self._stored_in = stored_in
        self._on_bytes = on_bytes
        self._slots = trio.CapacityLimiter(RANGES_AT_ONCE)
        self._hashing = trio.CapacityLimiter(HASHING_THREADS)

    async def fetch(self, store: Store, entry: Entry, path: str, guard: Guard | None) -> Fetched:
        """Download ``entry`` to ``path``, checked, in place of what is there, unless ``guard`` spares that.

        What has another digest than the store keeps is fetched once more. After an error, and after cancellation,
        the old file is still there and nothing else. Raises the store's errors: NoSuchKeyError where the
        version is missing, PreconditionFailedError where the store has something else than the manifest says,
        ChecksumError where bytes changed on the way; and LocalDiskError.
        """
        try:
            if entry.size is None or entry.size <= SMALL_BYTES:
                entry, fetched = await self._fetch_small(store, entry, path, guard)
                if fetched is not None:
                    return fetched
            return await self._fetch_large(store, entry, path, guard)
        except PreconditionFailedError as error:
            if error.status != 412:
                raise
            what = f"the key holds something else now: its ETag is no longer {entry.etag}"
            raise PreconditionFailedError(
                what, key=entry.key, status=412, request_id=error.request_id
            ) from error

    async def _fetch_small(
        self, store: Store, entry: Entry, path: str, guard: Guard | None
    ) -> tuple[Entry, Fetched | None]:
        """The entry as the store completes it, and the file unless it turns out to be large."""
        seen: set[bytes] = set()
        for left in reversed(range(TRIES)):
            info, data = await _get_small(store, entry)
            entry = _completed(entry, info)
            if info.size != len(data):
                return entry, None
            self._on_bytes(len(data))

            async def hold(
                digests: ObjectDigests | None, info: ObjectInfo = info, data: bytes = data
            ) -> bool | None:
                if info.is_proven:
                    return True
                return proving.proven(data, info.etag, _etag_is_digest(info), digests)

            verdict, by_checksum = await self._held_against(store, entry, info, hold)
            digest = xxhash.xxh3_128_digest(data)
            seen.add(digest)
            if verdict is not False:
                break
            self._on_bytes(-len(data))
            if not left:
                self._insist(entry, seen, by_checksum)
                self._on_bytes(len(data))
                verdict = None
        mode, mtime_ns = self._attributes(entry, info)
        found = self._placer.put(path, data, mode, mtime_ns, guard)
        return entry, Fetched(entry, found, digest, bool(verdict))

    async def _fetch_large(
        self, store: Store, entry: Entry, path: str, guard: Guard | None
    ) -> Fetched:
        size = entry.size or 0
        landing = self._placer.begin(size)
        seen: set[bytes] = set()
        digest = b""
        try:
            for left in reversed(range(TRIES)):
                info = await self._fetch_ranges(store, entry, landing)
                entry = _completed(entry, info)

                async def hold(
                    digests: ObjectDigests | None, info: ObjectInfo = info
                ) -> bool | None:
                    nonlocal digest
                    digest, is_right = await trio.to_thread.run_sync(
                        _hash, landing, size, info, digests, limiter=self._hashing
                    )
                    return is_right

                verdict, by_checksum = await self._held_against(store, entry, info, hold)
                seen.add(digest)
                if verdict is not False:
                    break
                self._on_bytes(-info.size)
                if not left:
                    self._insist(entry, seen, by_checksum)
                    self._on_bytes(info.size)
                    verdict = None
            mode, mtime_ns = self._attributes(entry, info)
            found = self._placer.place(landing, path, mode, mtime_ns, guard)
        finally:
            self._placer.give_up(landing)
        return Fetched(entry, found, digest, bool(verdict))

    async def _held_against(
        self,
        store: Store,
        entry: Entry,
        info: ObjectInfo,
        hold: Callable[[ObjectDigests | None], Awaitable[bool | None]],
    ) -> tuple[bool | None, bool]:
        """Are these the bytes, and does a checksum tell it?

        By the ETag, and where that does not prove them, by what the store keeps beside it.
        """
        verdict = await hold(None)
        if verdict:
            self._etags_are_md5s |= is_md5_etag(info.etag) and not info.is_proven and info.size > 0
            return True, False
        digests = await digests_of(store, entry)
        if digests is None or digests.etag != info.etag:
            return verdict, False
        return await hold(digests), bool(digests.checksums)

    def _insist(self, entry: Entry, seen: set[bytes], by_checksum: bool) -> None:
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
        raise ChecksumError(why, key=entry.key)

    async def _fetch_ranges(self, store: Store, entry: Entry, landing: Landing) -> ObjectInfo:
        """All bytes of ``entry`` into the temporary file."""
        size = entry.size or 0
        found: list[ObjectInfo] = []

        async def fetch_range(start: int) -> None:
            length = min(RANGE_BYTES, size - start)
            done = 0

            def count(n: int) -> None:
                nonlocal done
                self._on_bytes(n - done)
                done = n

            try:
                info = await store.fetch(
                    entry.key,
                    ByteRange(start, length),
                    FileSlice(landing.path, start, length),
                    version_id=entry.version_id,
                    if_match=_pin(entry),
                    on_progress=count,
                )
                _completed(entry, info)
            except BaseException:
                count(0)
                raise
            count(length)
            found.append(info)

        try:
            await in_parallel(self._slots, range(0, size, RANGE_BYTES), fetch_range)
        except RejectedError as error:
            raise _local(error) from error
        except RangeError:
            raise PreconditionFailedError(
                f"the store has less than the {size} bytes that the manifest says", key=entry.key
            ) from None
        if any(info.etag != found[0].etag for info in found):
            raise PreconditionFailedError("it was replaced while it was read", key=entry.key)
        return found[0]

    def _attributes(self, entry: Entry, info: ObjectInfo) -> tuple[int | None, int | None]:
        """Mode and time: the manifest's, else those stored with the object, else its LastModified."""
        mode, mtime_ns = entry.mode, entry.mtime_ns
        if (mode is None or mtime_ns is None) and info.headers and info.headers.metadata:
            stored = self._stored_in(info.headers)
            mode = stored.mode if mode is None else mode
            mtime_ns = stored.mtime_ns if mtime_ns is None else mtime_ns
        if mtime_ns is None:
            mtime_ns = entry.last_modified_ns or info.last_modified_ns or None
        return permissions(mode), mtime_ns


def _pin(entry: Entry) -> str | None:
    """The ETag to insist on: a key without a version, or whose version is ``null``, can be overwritten."""
    return entry.etag or None if entry.version_id in (None, "null") else None


async def _get_small(store: Store, entry: Entry) -> tuple[ObjectInfo, bytes]:
    """The object, or where its size is not known its beginning."""
    unknown = entry.size is None
    try:
        return await store.get(
            entry.key,
            byte_range=ByteRange(0, SMALL_BYTES) if unknown else None,
            version_id=entry.version_id,
            if_match=_pin(entry),
        )
    except RangeError:
        # An empty object has no first byte to ask for.
        return await store.get(entry.key, version_id=entry.version_id, if_match=_pin(entry))


def _completed(entry: Entry, info: ObjectInfo) -> Entry:
    """``entry`` with what the store told. Raises PreconditionFailedError where they do not agree."""
    if entry.size not in (None, info.size):
        what = f"the store has {info.size} bytes of this version, the manifest says {entry.size}"
        raise PreconditionFailedError(what, key=entry.key)
    if entry.etag and info.etag and entry.etag != info.etag:
        what = f"the store gives the ETag {info.etag}, the manifest says {entry.etag}"
        raise PreconditionFailedError(what, key=entry.key)
    if entry.version_id not in (None, "null", info.version_id) and info.version_id is not None:
        raise PreconditionFailedError("the store sent another version", key=entry.key)
    if entry.size is None or not entry.etag:
        return msgspec.structs.replace(entry, size=info.size, etag=info.etag)
    return entry


def _etag_is_digest(info: ObjectInfo) -> bool | None:
    """Is the ETag the MD5 that its form promises? Of one of parts an answer to GET does not tell."""
    return info.etag_is_md5 if is_md5_etag(info.etag) else None


async def digests_of(store: Store, entry: Entry) -> ObjectDigests | None:
    """What the store keeps beside the ETag; ``None`` where it refuses to tell. Raises retryable StoreErrors."""
    try:
        return await store.digests(entry.key, version_id=entry.version_id)
    except StoreError as error:
        if error.retryable:
            raise
        return None


def _hash(
    landing: Landing, size_bytes: int, info: ObjectInfo, digests: ObjectDigests | None
) -> comparing.FileHashes:
    try:
        found = comparing.hash_file(
            landing.descriptor, size_bytes, info.etag, _etag_is_digest(info), digests
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

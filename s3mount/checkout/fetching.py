"""One version of one object, brought into the folder: in one request while it is small, else in ranges."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import msgspec
import trio
import xxhash

from s3mount.checkout import comparing
from s3mount.checkout.paths import permissions
from s3mount.checkout.placing import Landing, Placer
from s3mount.errors import (
    ChecksumError,
    DiskFullError,
    LocalDiskError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
)
from s3mount.manifest.model import Entry
from s3mount.refs import ByteRange, FileSlice, ObjectHeaders, ObjectInfo
from s3mount.s3.store import Store
from s3mount.transfer.parallel import in_parallel

SMALL_BYTES = 256 * 1024
"""Up to this an object comes into memory in one request: 128 at once have room in 32 MiB."""
RANGE_BYTES = 8 << 20
RANGES_AT_ONCE = 64
HASHING_THREADS = 2
TRIES = 2
"""What arrives with another MD5 than its ETag says is fetched once more."""


class Stored(NamedTuple):
    """What an object's metadata tells of the file it was; ``None`` where nothing."""

    mode: int | None
    mtime_ns: int | None


StoredIn: TypeAlias = Callable[[ObjectHeaders], Stored]


class Fetched(NamedTuple):
    """A file that is in its place. ``entry`` is completed by what the store told."""

    entry: Entry
    found: os.stat_result
    digest: bytes
    is_verified: bool


class Fetcher:
    """Downloads into a target. ``on_bytes(n)`` hears of what arrives; negative where a try was in vain."""

    def __init__(
        self, placer: Placer, stored_in: StoredIn, on_bytes: Callable[[int], None]
    ) -> None:
        self._placer = placer
        self._stored_in = stored_in
        self._on_bytes = on_bytes
        self._slots = trio.CapacityLimiter(RANGES_AT_ONCE)
        self._hashing = trio.CapacityLimiter(HASHING_THREADS)

    async def fetch(self, store: Store, entry: Entry, path: str) -> Fetched:
        """Download ``entry`` to ``path``, checked, in place of what is there.

        After an error, and after cancellation, the old file is still there and nothing else. Raises the
        store's errors: NoSuchKeyError where the version is missing, PreconditionFailedError where the store
        has something else than the manifest says, ChecksumError where bytes changed on the way; and
        LocalDiskError.
        """
        if entry.size is None or entry.size <= SMALL_BYTES:
            info, data = await _get_small(store, entry)
            entry = _completed(entry, info)
            if info.size == len(data):
                self._on_bytes(len(data))
                mode, mtime_ns = self._attributes(entry, info)
                return Fetched(
                    entry,
                    self._placer.put(path, data, mode, mtime_ns),
                    xxhash.xxh3_128_digest(data),
                    _is_checked(info, data),
                )
        return await self._fetch_large(store, entry, path)

    async def _fetch_large(self, store: Store, entry: Entry, path: str) -> Fetched:
        size = entry.size or 0
        landing = self._placer.begin(size)
        try:
            for left in reversed(range(TRIES)):
                info = await self._fetch_ranges(store, entry, landing)
                entry = _completed(entry, info)
                # An ETag of an MD5's form that is none (SSE-KMS, SSE-C) tells nothing of the bytes.
                etag = (
                    "" if info.etag_is_md5 is False and comparing.is_md5(info.etag) else info.etag
                )
                hashes = await trio.to_thread.run_sync(
                    _hash, landing, size, etag, limiter=self._hashing
                )
                if not comparing.is_md5(etag) or hashes.etag == etag:
                    break
                self._on_bytes(-info.size)
                if not left:
                    raise ChecksumError(
                        f"what arrived is not what its ETag says (MD5 {hashes.etag})", key=entry.key
                    )
            mode, mtime_ns = self._attributes(entry, info)
            found = self._placer.place(landing, path, mode, mtime_ns)
        finally:
            self._placer.give_up(landing)
        return Fetched(entry, found, hashes.digest, bool(etag) and hashes.etag == etag)

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


def _is_checked(info: ObjectInfo, data: bytes) -> bool:
    """Were the bytes held against the ETag? ``Store.get`` does so with plain MD5s."""
    if comparing.is_md5(info.etag):
        return info.etag_is_md5 is not False
    if comparing.part_count(info.etag) == 1:
        part = hashlib.md5(data, usedforsecurity=False).digest()
        whole = hashlib.md5(part, usedforsecurity=False).hexdigest()
        return f"{whole}-1" == info.etag
    return False


def _hash(landing: Landing, size_bytes: int, etag: str) -> comparing.FileHashes:
    try:
        return comparing.hash_file(landing.descriptor, size_bytes, etag)
    except OSError as error:
        raise LocalDiskError(f"what was written cannot be read: {error.strerror}") from error


def _local(error: RejectedError) -> Exception:
    """What the store could not write to the disk, as what it is."""
    if error.status or not hasattr(errno, error.code):
        return error
    kind = DiskFullError if error.code in ("ENOSPC", "EDQUOT") else LocalDiskError
    return kind(str(error))

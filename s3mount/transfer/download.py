"""From the bucket into a local file: ranges in parallel, checked, and under its name only when whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator

import trio

from s3mount.errors import ChecksumError, LocalDiskError, PreconditionFailedError
from s3mount.refs import ByteRange, ContentRef, FileSlice, ObjectInfo
from s3mount.s3.headers import is_md5_etag
from s3mount.s3.store import Store
from s3mount.tasks import in_parallel
from s3mount.transfer.digest import md5_of

RANGE_BYTES = 8 << 20
"""Bytes of one request: large enough that its round trip does not count, small enough to retry."""


async def download_file(
    store: Store,
    source: ContentRef,
    path: str,
    *,
    slots: trio.CapacityLimiter,
    range_bytes: int = RANGE_BYTES,
    verify: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Download exactly ``source`` to ``path``, replacing what is there by an atomic rename.

    Bytes land in a hidden file beside it, which is removed on any error and on cancellation; it is
    not synced to the disk. ``slots`` bounds the requests, over all downloads that share it.
    ``on_progress(n)`` is called with the growing number of bytes that have arrived.

    With ``verify`` the bytes are held against the ETag where the store says, or its form and
    nothing else, that it is their MD5. Raises ChecksumError when they differ,
    PreconditionFailedError when the object is another one by now, NoSuchKeyError when it is gone,
    LocalDiskError when the file cannot be written, and the store's other errors.
    """
    with _landing(path, source.size) as landing:
        info = await _fetch_all(store, source, landing, slots, range_bytes, on_progress)
        if verify and is_md5_etag(source.etag) and info.etag_is_md5 is not False:
            found = await md5_of(FileSlice(landing, 0, source.size))
            if found.hex() != source.etag:
                raise ChecksumError(
                    f"what arrived is not what its ETag says (MD5 {found.hex()})", key=source.key
                )
        try:
            os.replace(landing, path)
        except OSError as error:
            raise _disk(path, error) from error


async def _fetch_all(
    store: Store,
    source: ContentRef,
    landing: str,
    slots: trio.CapacityLimiter,
    range_bytes: int,
    on_progress: Callable[[int], None] | None,
) -> ObjectInfo:
    """All ranges of ``source`` into ``landing``, each pinned to this very version."""
    if not source.size:
        return await _look_at_empty(store, source)
    arrived: dict[int, int] = {}
    total = 0
    info = ObjectInfo(source.key, source.size, source.etag, 0)

    def count(start: int, done: int) -> None:
        nonlocal total
        total += done - arrived.get(start, 0)
        arrived[start] = done
        if on_progress is not None:
            on_progress(total)

    async def fetch(start: int) -> None:
        nonlocal info
        length = min(range_bytes, source.size - start)
        info = await store.fetch(
            source.key,
            ByteRange(start, length),
            FileSlice(landing, start, length),
            version_id=source.version_id,
            if_match=source.etag or None,
            on_progress=lambda done: count(start, done),
        )
        if info.size != source.size:
            raise PreconditionFailedError(
                f"the object has {info.size} bytes now, not {source.size}", key=source.key
            )
        if arrived.get(start, 0) < length:
            count(start, length)

    await in_parallel(slots, range(0, source.size, range_bytes), fetch)
    return info


async def _look_at_empty(store: Store, source: ContentRef) -> ObjectInfo:
    """An empty object has no range to ask for; that it is there, and empty, is checked all the same."""
    info = await store.head(source.key, version_id=source.version_id)
    if info.size or (source.etag and info.etag != source.etag):
        raise PreconditionFailedError("the object is another one by now", key=source.key)
    return info


@contextlib.contextmanager
def _landing(path: str, size: int) -> Iterator[str]:
    """A hidden file of ``size`` bytes beside ``path``, gone afterwards unless it was renamed."""
    landing = os.path.join(os.path.dirname(path), f".s3mount-{secrets.token_hex(8)}.part")
    try:
        fd = os.open(landing, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _disk(path, error) from error
    try:
        try:
            _make_room(fd, size)
        except OSError as error:
            raise _disk(path, error) from error
        finally:
            os.close(fd)
        yield landing
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(landing)


def _make_room(fd: int, size: int) -> None:
    """Give the file its length, and fail before the transfer where the disk is too full for it.

    ``posix_fallocate`` would reserve the space, but writes it all where the file system has no such call.
    """
    disk = os.fstatvfs(fd)
    if disk.f_bavail * disk.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(fd, size)


def _disk(path: str, error: OSError) -> LocalDiskError:
    return LocalDiskError(f"{path}: {error.strerror}")

"""From the bucket into a local file, which has its name only when it is whole, and is gone on with after a kill."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from typing import BinaryIO

from s3mount.errors import ChecksumError, LocalDiskError, PreconditionFailedError
from s3mount.refs import ObjectInfo
from s3mount.s3.store import Store
from s3mount.transfer.fetching import RANGE_BYTES, SMALL_BYTES, Arrived, Fetching, Wanted
from s3mount.transfer.partial import Partial, disk_error, rename, set_attributes

AttributesIn = Callable[[ObjectInfo], tuple[int | None, int | None]]
"""Gives the permissions and the time (ns) that a file gets, ``None`` for those of any new file."""


def no_attributes(info: ObjectInfo) -> tuple[int | None, int | None]:
    """A file as any new one."""
    return None, None


async def download_file(
    fetching: Fetching,
    store: Store,
    wanted: Wanted,
    path: str,
    *,
    attributes: AttributesIn = no_attributes,
    replace: bool = True,
    resume: bool = True,
    range_bytes: int = RANGE_BYTES,
    on_resumed: Callable[[int], None] = lambda n: None,
) -> Arrived:
    """Download ``wanted`` to ``path``, checked, by an atomic rename; without ``replace`` only where nothing is.

    Of one that is larger than SMALL_BYTES the bytes are kept in a hidden file beside it when this is cut off, and
    the next call fetches the rest, if it is for the same version; ``on_resumed(n)`` hears how many were there.
    Without ``resume`` they are thrown away first. The file is not synced to the disk.

    Raises what ``Fetching`` raises; FileExistsError where there is something and ``replace`` is not set;
    LocalDiskError where the file cannot be written.
    """
    if os.path.isdir(path):
        raise LocalDiskError(f"{path}: Is a directory")
    if wanted.size is None or wanted.size <= SMALL_BYTES:
        there = await fetching.small(store, wanted)
        if isinstance(there, Arrived):
            _write_whole(path, there.data, *attributes(there.info), replace=replace)
            return there
        wanted = wanted.completed(there)
    elif not wanted.etag:
        wanted = wanted.completed(await store.head(wanted.key, version_id=wanted.version_id))
    partial = Partial(path, wanted, range_bytes, resume=resume)
    try:
        on_resumed(await partial.look())
        arrived = await fetching.large(
            store, wanted, partial.file, missing=partial.missing, range_bytes=range_bytes
        )
        partial.place(*attributes(arrived.info), replace=replace)
        return arrived
    except (ChecksumError, PreconditionFailedError):
        partial.discard()
        raise
    finally:
        partial.close()


def _write_whole(
    path: str, data: bytes, mode: int | None, mtime_ns: int | None, *, replace: bool
) -> None:
    with new_file(path, replace=replace) as file:
        file.write(data)
        file.flush()
        set_attributes(file.fileno(), mode, mtime_ns)


@contextlib.contextmanager
def new_file(path: str, *, replace: bool) -> Iterator[BinaryIO]:
    """A file to write that gets its name when the block ends well, and else is gone. Raises as ``download_file``."""
    name = os.path.join(os.path.dirname(path), f".s3mount-{secrets.token_hex(8)}.part")
    try:
        file = open(name, "xb")  # noqa: SIM115 - below
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        with file:
            yield file
        rename(name, path, replace=replace)
    except FileExistsError:
        raise
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)

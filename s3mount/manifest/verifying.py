"""Whether every version of a manifest is still there, and still is what the manifest says."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec
import trio

from s3mount.config import MIB
from s3mount.errors import (
    AccessDeniedError,
    ArchivedError,
    LocalDiskError,
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
    StoreError,
)
from s3mount.manifest.buckets import Buckets
from s3mount.manifest.model import Entry
from s3mount.manifest.proving import EtagTrial
from s3mount.refs import ByteRange, FileSlice, ObjectInfo
from s3mount.s3.store import Store
from s3mount.transfer.parallel import in_parallel

HEADS_AT_ONCE = 64
OBJECTS_AT_ONCE = 8
"""Contents that are read at the same time, each a piece at a time."""
PIECE_BYTES = 16 * MIB


class Problem(NamedTuple):
    """One entry that is not as it should be, and why, for a person."""

    entry: Entry
    why: str


class Verification(msgspec.Struct):
    """How far it is, and what it found. ``unproven``: read whole, but the ETag is no digest to compare with."""

    checked: int = 0
    bytes_read: int = 0
    problems: int = 0
    unproven: int = 0


async def verify(
    entries: Iterable[Entry],
    buckets: Buckets,
    report: Callable[[Problem], None],
    verification: Verification,
    *,
    content: bool = False,
) -> None:
    """Ask for each version of ``entries``; with ``content`` read it and compare it with its ETag.

    ``report`` gets what is wrong as it is found, in no order; ``verification`` is kept up to date. What
    concerns a single version is a problem; raises the store's other errors (retryable ones were tried
    again before), and what reading ``entries`` raises.
    """
    slots = trio.CapacityLimiter(OBJECTS_AT_ONCE if content else HEADS_AT_ONCE)

    async def check(entry: Entry) -> None:
        store = await buckets.store(entry.bucket)
        why = await _head(store, entry, verification, content=content)
        if why:
            verification.problems += 1
            report(Problem(entry, why))
        verification.checked += 1

    await in_parallel(slots, entries, check)


async def _head(store: Store, entry: Entry, verification: Verification, *, content: bool) -> str:
    """Why the version is not as it should be; empty when it is."""
    try:
        info = await store.head(entry.key, version_id=entry.version_id)
        why = _difference(entry, info)
        if why or not content:
            return why
        return await _read(store, entry, info, verification)
    except NoSuchKeyError:
        return "is not there any more"
    except (AccessDeniedError, ArchivedError, RejectedError, PreconditionFailedError) as error:
        return f"cannot be read: {error}"
    except StoreError as error:
        if error.retryable:
            raise
        return f"cannot be read: {error}"


def _difference(entry: Entry, info: ObjectInfo) -> str:
    if entry.size is not None and entry.size != info.size:
        return f"has {info.size} bytes, the manifest says {entry.size}"
    if entry.etag and entry.etag != info.etag:
        return f"has the ETag {info.etag}, the manifest says {entry.etag}"
    return ""


async def _read(store: Store, entry: Entry, info: ObjectInfo, verification: Verification) -> str:
    """Read all bytes, a piece at a time, and hold them against the ETag."""
    trial = EtagTrial(info.etag if info.etag_is_md5 is not False else "", info.size)
    with _piece_file() as path:
        for start in range(0, info.size, PIECE_BYTES):
            length = min(PIECE_BYTES, info.size - start)
            await store.fetch(
                entry.key,
                ByteRange(start, length),
                FileSlice(path, 0, length),
                version_id=entry.version_id,
                if_match=info.etag or None,
            )
            await trio.to_thread.run_sync(_feed, path, length, trial)
            verification.bytes_read += length
    holds = trial.holds() if trial.proves else None
    if holds is None:
        verification.unproven += 1
    return "has other bytes than its ETag says" if holds is False else ""


def _feed(path: str, length: int, trial: EtagTrial) -> None:
    with open(path, "rb") as file:
        trial.update(memoryview(file.read(length)))


@contextlib.contextmanager
def _piece_file() -> Iterator[str]:
    """A temporary file for a piece; its path."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="s3mount-")
        os.close(descriptor)
    except OSError as error:
        raise LocalDiskError(f"no temporary file can be made: {error.strerror}") from error
    try:
        yield path
    finally:
        os.unlink(path)

"""Whether every version of a manifest is still there, and still is what the manifest says."""

from __future__ import annotations

import contextlib
import heapq
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec
import trio

from s3mount.config import MIB
from s3mount.errors import (
    ChecksumError,
    EngineError,
    ExpiredCredentialsError,
    LocalDiskError,
    NoCredentialsError,
    NoSuchBucketError,
    NoSuchKeyError,
    StoreError,
    UsageError,
    WrongRegionError,
)
from s3mount.manifest.buckets import Buckets
from s3mount.manifest.model import Entry, is_same_etag
from s3mount.refs import ByteRange, FileSlice, ObjectDigests, ObjectInfo
from s3mount.s3.headers import is_md5_etag
from s3mount.s3.store import Store
from s3mount.tasks import in_parallel
from s3mount.transfer.patience import Patience
from s3mount.transfer.proving import Trial, agreed, trials

HEADS_AT_ONCE = 64
OBJECTS_AT_ONCE = 8
"""Contents that are read at the same time, each a piece at a time."""
PIECE_BYTES = 16 * MIB


class Problem(NamedTuple):
    """One entry that is not as it should be, and why, for a person.

    ``is_unproven``: it may be right, nothing tells. ``is_unread``: it could not be looked at.
    """

    entry: Entry
    why: str
    is_unproven: bool = False
    is_unread: bool = False


class _InOrder:
    """Gives ``report`` what many tasks find in the order of their entries: what one finds waits for all before it."""

    def __init__(self, report: Callable[[Problem], None]) -> None:
        self._report = report
        self._begun = 0
        self._running: set[int] = set()
        self._held: list[tuple[int, Problem]] = []

    def begin(self) -> int:
        """The number of an entry that is looked at from now on."""
        number, self._begun = self._begun, self._begun + 1
        self._running.add(number)
        return number

    def end(self, number: int, found: Problem | None) -> None:
        """It was looked at."""
        self._running.discard(number)
        if found is not None:
            heapq.heappush(self._held, (number, found))
        if self._held:
            self._tell(min(self._running, default=self._begun))

    def finish(self) -> None:
        """Tell the rest: what comes before was given up."""
        self._tell(self._begun)

    def _tell(self, bound: int) -> None:
        while self._held and self._held[0][0] < bound:
            self._report(heapq.heappop(self._held)[1])


class Verification(msgspec.Struct):
    """How far it is, and what it found.

    ``problems`` are all that is wrong or, counted as ``unread`` too, could not be looked at. ``unproven``: read
    whole, but nothing that the store keeps could tell whether the bytes are right.
    ``stopped``: why the rest was not checked, where it was not.
    """

    checked: int = 0
    bytes_read: int = 0
    problems: int = 0
    unread: int = 0
    unproven: int = 0
    stopped: str = ""

    def add(self, more: Verification) -> None:
        """Add the sums of other entries."""
        for name in ("checked", "bytes_read", "problems", "unread", "unproven"):
            setattr(self, name, getattr(self, name) + getattr(more, name))


async def verify(
    entries: Iterable[Entry],
    buckets: Buckets[str, Store],
    report: Callable[[Problem], None],
    verification: Verification,
    *,
    content: bool = False,
) -> None:
    """Ask for each version of ``entries``; with ``content`` read it and hold it against what proves it.

    ``report`` gets what is wrong, and what nothing proves, in the order of ``entries``; ``verification`` is kept up
    to date. What fails for one version is a problem, and the rest goes on; where it would fail for all,
    ``stopped`` says why. Raises what reading ``entries`` raises.
    """
    slots = trio.CapacityLimiter(OBJECTS_AT_ONCE if content else HEADS_AT_ONCE)
    patience = Patience()
    in_order = _InOrder(report)

    async def check(entry: Entry) -> None:
        number = in_order.begin()
        found: Problem | None
        try:
            store = await buckets.of(entry.bucket)
            found = await _look(store, entry, verification, patience, content=content)
        except (NoSuchBucketError, WrongRegionError, UsageError) as error:
            # True of all that is in this bucket, and of no other.
            buckets.fail(entry.bucket, error)
            found = Problem(entry, f"cannot be read: {error}", is_unread=True)
        if found is not None:
            verification.problems += not found.is_unproven
            verification.unproven += found.is_unproven
            verification.unread += found.is_unread
        in_order.end(number, found)
        verification.checked += 1

    try:
        await in_parallel(slots, entries, check)
    except (EngineError, StoreError) as error:
        verification.stopped = " ".join(str(error).split())
    in_order.finish()


async def _look(
    store: Store, entry: Entry, verification: Verification, patience: Patience, *, content: bool
) -> Problem | None:
    """What is not as it should be. Raises StoreError where the rest would fail like it."""
    try:
        info = await store.head(entry.key, version_id=entry.version_id)
        why = _difference(entry, info)
        if not why and content:
            is_right = await _read(store, entry, info, verification)
            if is_right is None:
                return Problem(entry, "is not proven: no digest of its bytes is known", True)
            why = "" if is_right else "has other bytes than its ETag or checksum says"
        patience.heard()
    except NoSuchKeyError:
        patience.heard()
        why = "is not there any more"
    except (NoSuchBucketError, NoCredentialsError, ExpiredCredentialsError, WrongRegionError):
        raise
    except StoreError as error:
        if error.retryable:
            await patience.unheard(store, error)
        is_unread = not isinstance(error, ChecksumError)
        return Problem(entry, f"cannot be read: {error}", is_unread=is_unread)
    return Problem(entry, why) if why else None


def _difference(entry: Entry, info: ObjectInfo) -> str:
    if entry.size is not None and entry.size != info.size:
        return f"has {info.size} bytes, the manifest says {entry.size}"
    if entry.etag and not is_same_etag(entry.etag, info.etag):
        return f"has the ETag {info.etag}, the manifest says {entry.etag}"
    return ""


async def _read(
    store: Store, entry: Entry, info: ObjectInfo, verification: Verification
) -> bool | None:
    """Are its bytes right? Read once where its ETag is their MD5, and once more where they seem to be wrong."""
    is_md5 = info.etag_is_md5 if is_md5_etag(info.etag) else None
    digests = None if is_md5 else await _digests(store, entry, info)
    is_right = await _hold(
        store, entry, info, list(trials(info.etag, info.size, is_md5, digests)), verification
    )
    if is_right is False:
        digests = await _digests(store, entry, info)
        is_right = await _hold(
            store, entry, info, list(trials(info.etag, info.size, is_md5, digests)), verification
        )
    return is_right


async def _digests(store: Store, entry: Entry, info: ObjectInfo) -> ObjectDigests | None:
    """What the store keeps beside the ETag, if it tells."""
    try:
        found = await store.digests(entry.key, version_id=entry.version_id)
    except StoreError as error:
        if error.retryable:
            raise
        return None
    return found if found.etag == info.etag else None


async def _hold(
    store: Store, entry: Entry, info: ObjectInfo, ways: list[Trial], verification: Verification
) -> bool | None:
    """Read all bytes, a piece at a time, and try all ways to prove them."""
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
            await trio.to_thread.run_sync(_feed, path, length, ways)
            verification.bytes_read += length
    return agreed(trial.verdict() for trial in ways)


def _feed(path: str, length: int, ways: list[Trial]) -> None:
    with open(path, "rb") as file:
        data = memoryview(file.read(length))
    for trial in ways:
        trial.update(data)


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

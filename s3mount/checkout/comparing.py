"""Is a file that is there already the wanted version? Reads it where its stat alone does not tell."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

import xxhash

from s3mount.checkout.digests import Row
from s3mount.config import MIB
from s3mount.manifest.model import Entry
from s3mount.refs import ETag, ObjectDigests
from s3mount.transfer.proving import Trial, agreed, trials

READ_BYTES = MIB


class Verdict(NamedTuple):
    """What was found of a file: ``is_right`` is ``None`` where nothing could be compared."""

    is_right: bool | None
    digest: bytes
    found: os.stat_result


class FileHashes(NamedTuple):
    """XXH3-128 of a file, and whether it is what ETag and digests say; ``None``: they do not tell."""

    digest: bytes
    is_right: bool | None


def hash_file(
    descriptor: int,
    size_bytes: int,
    etag: ETag,
    etag_is_digest: bool | None = None,
    digests: ObjectDigests | None = None,
) -> FileHashes:
    """Hash an open file, and hold it against an ETag and what else a store tells, as ``proving.trials``. Blocks.

    Read once where the first trial succeeds, once more for each further one. Raises OSError, with EIO when the
    file is shorter than ``size_bytes``.
    """
    running = xxhash.xxh3_128()
    ways = trials(etag, size_bytes, etag_is_digest, digests)
    first = next(ways, None)
    for piece in _pieces(descriptor, size_bytes):
        running.update(piece)
        if first is not None:
            first.update(piece)

    def verdicts() -> Iterator[bool | None]:
        if first is not None:
            yield first.verdict()
        for trial in ways:
            yield _tried(trial, descriptor, size_bytes)

    return FileHashes(running.digest(), agreed(verdicts()))


def _tried(trial: Trial, descriptor: int, size_bytes: int) -> bool | None:
    for piece in _pieces(descriptor, size_bytes):
        trial.update(piece)
    return trial.verdict()


def _pieces(descriptor: int, length: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(READ_BYTES, max(length, 1))))
    offset = 0
    while offset < length:
        n = os.preadv(descriptor, [buffer[: length - offset]], offset)
        if n == 0:
            raise OSError(errno.EIO, "it became shorter while it was read")
        yield buffer[:n]
        offset += n


def compare(
    descriptor: int, entry: Entry, row: Row | None, digests: ObjectDigests | None = None
) -> Verdict:
    """Does the open file hold ``entry``? ``digests`` is what the store told of it, if it was asked.

    Blocks; reads it whole, once where possible. Raises OSError; with EBUSY when it changed while it was read.
    """
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode) or entry.size not in (None, before.st_size):
        return Verdict(False, b"", before)
    known = row is not None and row.holds(entry) and row.size == before.st_size
    hashes = hash_file(descriptor, before.st_size, "" if known else entry.etag, None, digests)
    after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise OSError(errno.EBUSY, "it changed while it was read")
    if known:
        assert row is not None
        return Verdict(hashes.digest == row.digest, hashes.digest, after)
    return Verdict(hashes.is_right, hashes.digest, after)

"""Is a file that is there already the wanted version? Reads it where its stat alone does not tell."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

import xxhash

from s3mount.checkout.digests import Row
from s3mount.config import MIB
from s3mount.flow.parts import PARTS_MAX, PartPlan
from s3mount.manifest.model import Entry

READ_BYTES = MIB
COMMON_PART_MIB = (8, 5, 16, 10, 15, 64, 32, 50, 20, 25, 100, 128, 256, 512, 1000, 1024, 6, 7, 12)
"""Part sizes of tools: aws and s3mount, rclone and others, s3transfer at 8; the rarer behind."""
TRIES_MAX = 6
"""So many part sizes are tried at most: each costs an MD5 of the file, 1.3 s a GiB."""


class Verdict(NamedTuple):
    """What was found of a file: ``is_right`` is ``None`` where nothing could be compared."""

    is_right: bool | None
    digest: bytes
    found: os.stat_result


class FileHashes(NamedTuple):
    """XXH3-128 and ETag (empty: none asked for, or none fits) of a file."""

    digest: bytes
    etag: str


def is_md5(etag: str) -> bool:
    """Has ``etag`` the form of an MD5? With SSE-C and SSE-KMS it is none all the same."""
    return len(etag) == 32 and not set(etag) - set("0123456789abcdef")


def part_count(etag: str) -> int | None:
    """How many parts a multipart ETag tells, ``None`` for any other ETag."""
    head, dash, tail = etag.partition("-")
    if not dash or not is_md5(head) or not tail.isascii() or not tail.isdigit():
        return None
    return int(tail) if 1 <= int(tail) <= PARTS_MAX else None


def fitting_plans(size_bytes: int, parts: int) -> Iterator[Callable[[], Iterator[int]]]:
    """The ways to cut a file of this size into so many parts that tools are known to use, the likeliest first.

    Each gives the lengths of the parts. At most TRIES_MAX.
    """
    if parts == 1:
        yield lambda: iter((size_bytes,))
        return
    smallest = -(-size_bytes // parts)
    largest = -(-size_bytes // (parts - 1)) - 1
    sizes = [mib * MIB for mib in COMMON_PART_MIB]
    # Tools that make parts larger until they suffice round up to a whole MiB, or not at all.
    sizes += [-(-smallest // MIB) * MIB, smallest]
    fitting = [size for size in dict.fromkeys(sizes) if smallest <= size <= largest]
    plans = [_equal(size, size_bytes) for size in fitting]
    growing = PartPlan(8 * MIB)
    if growing.count(size_bytes) == parts and growing.part_of(size_bytes - 1) >= 900:
        plans.insert(0, lambda: (part.length for part in growing.ranges(size_bytes)))
    yield from plans[:TRIES_MAX]


def _equal(part_bytes: int, size_bytes: int) -> Callable[[], Iterator[int]]:
    def lengths() -> Iterator[int]:
        left = size_bytes
        while left > 0:
            yield min(part_bytes, left)
            left -= part_bytes

    return lengths


def hash_file(descriptor: int, size_bytes: int, wanted_etag: str) -> FileHashes:
    """Hash an open file: its XXH3-128, and the ETag that it has if that can be ``wanted_etag``. Blocks.

    Of a plain ETag it is the MD5; of a multipart one ``wanted_etag`` itself where some fitting part size
    leads to it. Raises OSError, with EIO when the file is shorter than ``size_bytes``.
    """
    running = xxhash.xxh3_128()
    if is_md5(wanted_etag):
        digest = hashlib.md5(usedforsecurity=False)
        for piece in _pieces(descriptor, 0, size_bytes):
            running.update(piece)
            digest.update(piece)
        return FileHashes(running.digest(), digest.hexdigest())
    for piece in _pieces(descriptor, 0, size_bytes):
        running.update(piece)
    parts = part_count(wanted_etag)
    if parts is not None:
        for plan in fitting_plans(size_bytes, parts):
            if _multipart_etag(descriptor, plan()) == wanted_etag:
                return FileHashes(running.digest(), wanted_etag)
    return FileHashes(running.digest(), "")


def _multipart_etag(descriptor: int, lengths: Iterator[int]) -> str:
    together = hashlib.md5(usedforsecurity=False)
    offset = count = 0
    for length in lengths:
        part = hashlib.md5(usedforsecurity=False)
        for piece in _pieces(descriptor, offset, length):
            part.update(piece)
        together.update(part.digest())
        offset += length
        count += 1
    return f"{together.hexdigest()}-{count}"


def _pieces(descriptor: int, offset: int, length: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(READ_BYTES, max(length, 1))))
    stop = offset + length
    while offset < stop:
        n = os.preadv(descriptor, [buffer[: stop - offset]], offset)
        if n == 0:
            raise OSError(errno.EIO, "it became shorter while it was read")
        yield buffer[:n]
        offset += n


def compare(descriptor: int, entry: Entry, row: Row | None) -> Verdict:
    """Does the open file hold ``entry``? Blocks; reads it whole, once where possible.

    Raises OSError; with EBUSY when it changed while it was read.
    """
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode) or entry.size not in (None, before.st_size):
        return Verdict(False, b"", before)
    known = row is not None and row.holds(entry) and row.size == before.st_size
    hashes = hash_file(descriptor, before.st_size, "" if known else entry.etag)
    after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise OSError(errno.EBUSY, "it changed while it was read")
    if known:
        assert row is not None
        return Verdict(hashes.digest == row.digest, hashes.digest, after)
    if hashes.etag:
        return Verdict(hashes.etag == entry.etag, hashes.digest, after)
    return Verdict(None, hashes.digest, after)

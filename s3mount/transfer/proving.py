"""Whether bytes are those of an object, by its ETag and by what else the store keeps of it.

A digest that fits proves the bytes. One that does not proves them wrong only where it is known of what it is made:
an ETag of parts whose lengths were only guessed proves nothing.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

import xxhash
from awscrt import checksums as crt

from s3mount.config import MIB, PART_BYTES_MAX
from s3mount.flow.parts import PARTS_MAX, STEP_PARTS, PartPlan
from s3mount.refs import ETag, ObjectDigests
from s3mount.s3.headers import is_md5_etag

USUAL_PART_MIB = (8, 5, 16, 10, 15, 64, 32, 128, 100, 50, 20, 25, 256, 512, 1000, 1024, 6, 7, 12)
"""Part sizes of tools: aws and s3mount, rclone and others, s3transfer's doubled 8; the rarer behind."""
READ_BYTES = MIB
TRIES_MIN = 6
TRIES_MAX = 64
TRIED_BYTES = 2 << 30
"""So many part sizes are tried, at least, at most, and as long as they hash no more: an MD5 takes 1.3 s a GiB."""

Lengths: TypeAlias = Callable[[], Iterator[int]]
"""Gives the lengths of an object's parts, in order."""


class Hash(Protocol):
    """A digest that grows, as those of ``hashlib``."""

    def update(self, data: memoryview, /) -> object:
        """Add the next bytes."""
        ...

    def digest(self) -> bytes:
        """What it is so far."""
        ...


class _Crc:
    """A CRC as a ``Hash``."""

    def __init__(self, function: Callable[[bytes, int], int], length: int) -> None:
        self._function = function
        self._length = length
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._function(data, self._value)  # type: ignore[arg-type]

    def digest(self) -> bytes:
        return self._value.to_bytes(self._length, "big")


CRCS: dict[str, Callable[[], Hash]] = {
    "crc32": lambda: _Crc(zlib.crc32, 4),
    "crc32c": lambda: _Crc(crt.crc32c, 4),
    "crc64nvme": lambda: _Crc(crt.crc64nvme, 8),
}
"""The checksums of S3 that ``hashlib`` does not have."""
_HASHES: dict[str, Callable[[], Hash]] = CRCS | {
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
}


class Trial:
    """Takes an object's bytes in order, and holds them against one digest of it.

    With ``lengths`` that is a digest of the digests of parts of these lengths, else of the whole. ``is_sure``:
    whether another digest means other bytes. Each takes its bytes once.
    """

    def __init__(
        self, algorithm: str, expected: bytes, lengths: Lengths | None, *, is_sure: bool
    ) -> None:
        self._new = _HASHES[algorithm]
        self._expected = expected
        self._is_sure = is_sure
        self._lengths = None if lengths is None else lengths()
        self._whole = self._new()
        self._part = self._new()
        self._room = 0 if self._lengths is None else next(self._lengths, 0)

    def update(self, data: memoryview) -> None:
        """Take the next bytes; releases the GIL for long ones."""
        if self._lengths is None:
            self._whole.update(data)
            return
        while data:
            if not self._room:
                self._end_part()
                self._room = next(self._lengths, len(data))
            piece = data[: self._room]
            self._part.update(piece)
            self._room -= len(piece)
            data = data[len(piece) :]

    def _end_part(self) -> None:
        self._whole.update(memoryview(self._part.digest()))
        self._part = self._new()

    def verdict(self) -> bool | None:
        """Were these the bytes? ``None``: not known. To be asked once, behind the last byte."""
        if self._lengths is not None:
            self._end_part()
        if self._whole.digest() == self._expected:
            return True
        return False if self._is_sure else None


def trials(
    etag: ETag, size: int, etag_is_digest: bool | None, digests: ObjectDigests | None = None
) -> Iterator[Trial]:
    """The ways in which an object of ``size`` bytes can be proven, the likeliest first; none where nothing can.

    ``etag_is_digest``: ``False`` where the store says that the ETag is made of no MD5s. ``digests`` is what the
    store told beside the ETag, if it was asked.
    """
    if digests is not None:
        etag_is_digest = bool(etag_is_digest is not False and digests.etag_is_digest)
        for algorithm, value in digests.checksums.items():
            expected = _from_base64(value)
            if algorithm not in _HASHES or expected is None:
                continue
            if not digests.is_composite:
                yield Trial(algorithm, expected, None, is_sure=True)
            for lengths, is_told in _cuts(size, digests) if digests.is_composite else ():
                yield Trial(algorithm, expected, lengths, is_sure=is_told)
    if is_md5_etag(etag):
        yield Trial("md5", bytes.fromhex(etag), None, is_sure=etag_is_digest is not False)
        return
    parts = part_count(etag)
    if parts is None:
        return
    expected = bytes.fromhex(etag.partition("-")[0])
    cuts = list(_cuts(size, digests))
    if not (cuts and cuts[0][1]):
        cuts += [(plan, False) for plan in fitting_plans(size, parts)]
    for lengths, is_told in cuts:
        yield Trial("md5", expected, lengths, is_sure=is_told and etag_is_digest is not False)


def _cuts(size: int, digests: ObjectDigests | None) -> Iterator[tuple[Lengths, bool]]:
    """How the store says that the object was cut, and whether it told of every part."""
    if digests is None:
        return
    told = digests.part_lengths
    if told:
        yield lambda: iter(told), True
    elif digests.first_part_bytes:
        yield _equal(digests.first_part_bytes, size), False


def _from_base64(value: str) -> bytes | None:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return None


def agreed(verdicts: Iterable[bool | None]) -> bool | None:
    """What several trials come to: proven by one, else wrong by one, else not known. Stops at a proof."""
    found: bool | None = None
    for verdict in verdicts:
        if verdict:
            return True
        found = verdict if found is None else found
    return found


def proven(
    data: bytes, etag: ETag, etag_is_digest: bool | None, digests: ObjectDigests | None = None
) -> bool | None:
    """Are ``data`` the bytes of the object? ``None``: not known."""

    def verdict(trial: Trial) -> bool | None:
        trial.update(memoryview(data))
        return trial.verdict()

    return agreed(map(verdict, trials(etag, len(data), etag_is_digest, digests)))


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
    """Hash an open file, and hold it against an ETag and what else a store tells, as ``trials``. Blocks.

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


def part_count(etag: ETag) -> int | None:
    """How many parts the ETag of a multipart upload tells, ``None`` for any other ETag."""
    head, dash, tail = etag.partition("-")
    if not dash or not is_md5_etag(head) or not tail.isascii() or not tail.isdigit():
        return None
    return int(tail) if 1 <= int(tail) <= PARTS_MAX else None


def fitting_plans(size: int, parts: int) -> Iterator[Lengths]:
    """The ways to cut an object of this size into so many parts that tools are known to use, the likeliest first.

    Part sizes that tools have by default, then whole MiB, then the least that suffices. How many are tried
    depends on the size: TRIES_MIN to TRIES_MAX.
    """
    if parts == 1:
        yield lambda: iter((size,))
        return
    smallest = -(-size // parts)
    largest = min(-(-size // (parts - 1)) - 1, PART_BYTES_MAX)
    tries = max(TRIES_MIN, min(TRIES_MAX, TRIED_BYTES // max(size, 1)))
    for part_mib in USUAL_PART_MIB if parts > STEP_PARTS else ():
        growing = PartPlan(part_mib * MIB)
        if tries and growing.count(size) == parts:
            tries -= 1
            yield _growing(growing, size)
    first_mib = -(-smallest // MIB)
    sizes = [mib * MIB for mib in USUAL_PART_MIB]
    # Tools that make parts larger until they suffice round up to a whole MiB, to a million bytes, or not at all.
    sizes += [first_mib * MIB, smallest, -(-smallest // 10**6) * 10**6]
    sizes += [mib * MIB for mib in range(first_mib, min(largest // MIB + 1, first_mib + TRIES_MAX))]
    fitting = [one for one in dict.fromkeys(sizes) if smallest <= one <= largest]
    for one in fitting[:tries]:
        yield _equal(one, size)


def _growing(plan: PartPlan, size: int) -> Lengths:
    return lambda: (part.length for part in plan.ranges(size))


def _equal(part_bytes: int, size: int) -> Lengths:
    def lengths() -> Iterator[int]:
        left = size
        while left > 0:
            yield min(part_bytes, left)
            left -= part_bytes

    return lengths

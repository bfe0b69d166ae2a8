"""Digests of bodies: what is sent along, and what answers are held to.

GB/s on one core: CRC64NVME 55, CRC32C 57 (awscrt), CRC32 4.3 (zlib), MD5 0.77. So CRC64NVME is
computed always, and MD5 only for stores that ignore checksums.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import trio
from awscrt import checksums as crt

from s3mount.errors import DamagedBodyError, RejectedError
from s3mount.refs import Body, Checksum, FileSlice, PartInfo
from s3mount.s3.headers import has_foreign_etag, is_md5_etag

_T = TypeVar("_T")

CRC_HEADER = "x-amz-checksum-crc64nvme"
BLOCK_SHIFT = 17
BLOCK_BYTES = 1 << BLOCK_SHIFT
"""Contents are known by the CRC64NVME of each 128 KiB."""
SUM_BYTES = 8
READ_BYTES = 1 << 20
INLINE_BYTES_MAX = 256 * 1024
"""Files up to this size are digested in the loop: a thread costs 124 us, this 10 to 40."""

_FULL_OBJECT: dict[str, tuple[Callable[[bytes, int], int], int]] = {
    CRC_HEADER: (crt.crc64nvme, 8),
    "x-amz-checksum-crc32c": (crt.crc32c, 4),
    "x-amz-checksum-crc32": (zlib.crc32, 4),
}


class RunningChecksum:
    """A checksum over pieces, to be held against what the store says of the whole object."""

    __slots__ = ("_expected", "_function", "_length", "_value")

    def __init__(self, function: Callable[[bytes, int], int], length: int, expected: str) -> None:
        self._function = function
        self._length = length
        self._expected = expected
        self._value = 0

    def update(self, piece: bytes | memoryview) -> None:
        """Add the next piece."""
        self._value = self._function(piece, self._value)  # type: ignore[arg-type]

    @property
    def found(self) -> str:
        """What it is so far."""
        return _base64(self._value, self._length)

    @property
    def matches(self) -> bool:
        """Is it, so far, what the store said?"""
        return self.found == self._expected


class RunningMD5:
    """The MD5 over pieces, to be held against an ETag."""

    __slots__ = ("_digest", "_expected")

    def __init__(self, expected: str) -> None:
        self._expected = expected
        self._digest = hashlib.md5(usedforsecurity=False)

    def update(self, piece: bytes | memoryview) -> None:
        """Add the next piece."""
        self._digest.update(piece)

    @property
    def found(self) -> str:
        """What it is so far."""
        return self._digest.hexdigest()

    @property
    def matches(self) -> bool:
        """Is it, so far, what the store said?"""
        return self.found == self._expected


RunningDigest = RunningChecksum | RunningMD5


class CacheBlockSums:
    """Writes the CRC64NVME of each block of a file into the file, as ``FileSlice`` says, while bytes arrive.

    The bytes come in order from the slice's beginning, which is that of a block.
    """

    __slots__ = ("_fd", "_position", "_sink", "_value")

    def __init__(self, fd: int, sink: FileSlice) -> None:
        self._fd = fd
        self._sink = sink
        self._position = sink.offset
        self._value = 0

    def update(self, piece: bytes | memoryview) -> None:
        """The next bytes; sums of blocks that they complete, or that end the slice, are written. Raises OSError."""
        block_bytes = 1 << self._sink.sums_shift
        first = self._position >> self._sink.sums_shift
        view = memoryview(piece)
        found = []
        while view:
            room = block_bytes - (self._position & (block_bytes - 1))
            part = view[:room]
            self._value = crt.crc64nvme(part, self._value)
            self._position += len(part)
            is_end = self._position == self._sink.offset + self._sink.length
            if len(part) == room or is_end:
                found.append(self._value)
                self._value = 0
            view = view[room:]
        if found:
            place = self._sink.sums_offset + SUM_BYTES * first
            os.pwrite(self._fd, struct.pack(f"<{len(found)}Q", *found), place)


def block_sums(data: bytes | memoryview, shift: int) -> list[int]:
    """The CRC64NVME of each block of ``1 << shift`` bytes; the last block may be shorter."""
    view = memoryview(data)
    size = 1 << shift
    return [crt.crc64nvme(view[start : start + size]) for start in range(0, len(view), size)]


def promised(answer: Mapping[str, str]) -> RunningChecksum | None:
    """The strongest checksum of the whole object that an answer to GET names, if any.

    Checksums of checksums (COMPOSITE, with a ``-N`` behind) say nothing about the bytes in a row.
    """
    if answer.get("x-amz-checksum-type", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    for name, (function, length) in _FULL_OBJECT.items():
        value = answer.get(name)
        if value and "-" not in value:
            return RunningChecksum(function, length, value)
    return None


def etag_is_md5(etag: str, answer: Mapping[str, str]) -> bool:
    """May ``etag`` be held against the MD5 of the bytes? Not with SSE-KMS or SSE-C."""
    return is_md5_etag(etag) and not has_foreign_etag(answer)


def _base64(value: int, length: int) -> str:
    return base64.b64encode(value.to_bytes(length, "big")).decode()


def _pieces(body: FileSlice, use: Callable[[memoryview], None]) -> None:
    """Read a slice piece by piece. Raises RejectedError when the file cannot give it all."""
    try:
        fd = os.open(body.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RejectedError(f"{body.path}: {error.strerror}") from error
    buffer = memoryview(bytearray(min(READ_BYTES, max(body.length, 1))))
    try:
        done = 0
        while done < body.length:
            n = os.preadv(fd, [buffer[: body.length - done]], body.offset + done)
            if n == 0:
                raise DamagedBodyError(f"{body.path} ends inside the part to send")
            use(buffer[:n])
            done += n
    except OSError as error:
        raise RejectedError(f"{body.path}: {error.strerror}") from error
    finally:
        os.close(fd)


def crc64nvme(body: Body) -> Checksum:
    """CRC64NVME of a body, base64 as S3 writes it. Blocks. Raises DamagedBodyError unless it is as expected."""
    value = 0

    def use(piece: memoryview) -> None:
        nonlocal value
        value = crt.crc64nvme(piece, value)

    if isinstance(body, bytes):
        value = crt.crc64nvme(body)
    else:
        _pieces(body, use)
    return _as_expected(body, _base64(value, 8))


def _as_expected(body: Body, found: Checksum) -> Checksum:
    if isinstance(body, FileSlice) and body.expected not in (None, found):
        raise DamagedBodyError(
            f"{body.path} has other bytes at {body.offset} than were written; nothing was sent"
        )
    return found


def crc_in_base64(name: str, data: bytes) -> Checksum:
    """The checksum of ``data`` by this name (``crc64nvme``, ``crc32c``, ``crc32``), as S3 writes it."""
    function, length = _FULL_OBJECT[f"x-amz-checksum-{name}"]
    return _base64(function(data, 0), length)


def md5(body: Body) -> bytes:
    """MD5 of a body. Blocks. Raises DamagedBodyError unless the body is as expected."""
    digest = hashlib.md5(usedforsecurity=False)
    value = 0

    def use(piece: memoryview) -> None:
        nonlocal value
        digest.update(piece)
        value = crt.crc64nvme(piece, value)

    if isinstance(body, bytes):
        digest.update(body)
    else:
        _pieces(body, digest.update if body.expected is None else use)
        if body.expected is not None:
            _as_expected(body, _base64(value, 8))
    return digest.digest()


def sha256(body: Body) -> str:
    """SHA-256 of a body in hex, for signatures that cover it. Blocks."""
    digest = hashlib.sha256()
    if isinstance(body, bytes):
        digest.update(body)
    else:
        _pieces(body, digest.update)
    return digest.hexdigest()


async def off_loop(function: Callable[[Body], _T], body: Body, limiter: trio.CapacityLimiter) -> _T:
    """A digest computed where it does not hold up the loop: at once when small, else in a thread."""
    length = len(body) if isinstance(body, bytes) else body.length
    if length <= INLINE_BYTES_MAX:
        await trio.lowlevel.checkpoint()
        return function(body)
    return await trio.to_thread.run_sync(function, body, limiter=limiter)


def combined_crc64nvme(parts: Sequence[PartInfo]) -> str | None:
    """CRC64NVME of the object that these parts make; ``None`` when one of them has none."""
    value = 0
    for part in parts:
        if part.checksum is None:
            return None
        piece = int.from_bytes(base64.b64decode(part.checksum), "big")
        value = crt.combine_crc64nvme(value, piece, part.size)
    return _base64(value, 8)


def multipart_etag(parts: Sequence[PartInfo]) -> str | None:
    """The ETag that S3 gives an object of these parts; ``None`` when theirs are no MD5s."""
    if not all(is_md5_etag(part.etag) for part in parts):
        return None
    digests = b"".join(bytes.fromhex(part.etag) for part in parts)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"

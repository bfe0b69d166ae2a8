"""What S3 will say of bytes that are still here: ETags and checksums of local files.

Reading and hashing happen in threads with a limiter of their own, and release the GIL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import trio

from s3mount.flow.parts import PartPlan
from s3mount.refs import Body, ByteRange, ETag, FileSlice, PartInfo
from s3mount.s3 import checksums
from s3mount.s3.headers import is_md5_etag
from s3mount.tasks import in_parallel

HASHING_THREADS = 2
"""MD5 takes 1.3 s a GiB and thread. Two keep up with any upload and leave processors to others."""

CRC64_BASE64_LENGTH = 12
"""Tells a CRC64NVME from the 32-bit checksums, whose base64 has 8 characters."""

_threads = trio.CapacityLimiter(HASHING_THREADS)


def etag_of(part_md5s: Sequence[bytes]) -> ETag:
    """The ETag of an object that was uploaded in parts with these MD5s, in order."""
    digest = hashlib.md5(b"".join(part_md5s), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(part_md5s)}"


async def md5_of(body: Body) -> bytes:
    """The MD5 of a body. Raises RejectedError when the file cannot be read or is too short."""
    return await checksums.off_loop(checksums.md5, body, _threads)


async def crc64nvme_of(body: Body) -> str:
    """The CRC64NVME of a body in base64, as S3 writes it. Raises RejectedError as ``md5_of``."""
    return await checksums.off_loop(checksums.crc64nvme, body, _threads)


async def etag_if_put(path: str, size: int) -> ETag:
    """The ETag that a single PUT of the file's first ``size`` bytes would get (without SSE-KMS, SSE-C)."""
    return (await md5_of(FileSlice(path, 0, size))).hex()


async def etag_if_parts(path: str, size: int, plan: PartPlan) -> ETag:
    """The ETag that a multipart upload by ``plan`` would get (without SSE-KMS, SSE-C).

    Raises RejectedError as ``md5_of``.
    """
    ranges = list(plan.ranges(size)) or [ByteRange(0, 0)]
    found: list[bytes] = [b""] * len(ranges)

    async def hash_part(index: int) -> None:
        part = ranges[index]
        found[index] = await md5_of(FileSlice(path, part.start, part.length))

    await in_parallel(trio.CapacityLimiter(HASHING_THREADS), range(len(ranges)), hash_part)
    return etag_of(found)


async def is_part(body: Body, part: PartInfo) -> bool:
    """Whether ``part`` can be shown to hold the bytes of ``body``: by its checksum, else its MD5.

    False as well where it holds them but neither is told.
    """
    length = len(body) if isinstance(body, bytes) else body.length
    if part.size != length:
        await trio.lowlevel.checkpoint()
        return False
    if part.checksum is not None and len(part.checksum) == CRC64_BASE64_LENGTH:
        return await crc64nvme_of(body) == part.checksum
    if is_md5_etag(part.etag):
        return (await md5_of(body)).hex() == part.etag
    await trio.lowlevel.checkpoint()
    return False

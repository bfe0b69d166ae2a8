"""Whether local bytes are those of an object, by its ETag: the proof that a checksum's hint needs."""

from __future__ import annotations

from collections.abc import Iterator

from s3mount.config import MIB, PART_BYTES_MIN
from s3mount.flow.parts import PartPlan
from s3mount.refs import ContentRef
from s3mount.s3.headers import is_md5_etag
from s3mount.transfer.digest import etag_if_parts, etag_if_put

USUAL_PART_BYTES = (8 * MIB, 5 * MIB, 16 * MIB, 64 * MIB, 128 * MIB)
"""What other tools cut objects into, the AWS CLI first."""
PLANS_MAX = 2
"""As many ways to cut are tried; each takes 1.3 s a GiB."""


async def has_etag_of(path: str, size: int, content: ContentRef, part_bytes: int) -> bool:
    """Would the file's first ``size`` bytes get the ETag of ``content``?

    MD5, or MD5s of parts as long as the mount's own or as usual. False as well where the ETag is no
    digest (SSE-KMS, SSE-C): no other bytes have it but by accident. Raises RejectedError when the file cannot be read.
    """
    if size != content.size:
        return False
    if is_md5_etag(content.etag):
        return await etag_if_put(path, size) == content.etag
    for plan in _plans(content, part_bytes):
        if await etag_if_parts(path, size, plan) == content.etag:
            return True
    return False


def _plans(content: ContentRef, part_bytes: int) -> Iterator[PartPlan]:
    """Ways to cut it into as many parts as its ETag tells."""
    digest, dash, count = content.etag.rpartition("-")
    if not dash or not is_md5_etag(digest) or not count.isdecimal():
        return
    found = 0
    for size in dict.fromkeys((part_bytes, *USUAL_PART_BYTES)):
        if size < PART_BYTES_MIN and size != part_bytes:
            continue
        plan = PartPlan(size)
        if found < PLANS_MAX and plan.count(content.size) == int(count):
            found += 1
            yield plan

"""Ambiguous writes: what a refusal of a repeated write means, as our own first try may have won.

A write whose answer was lost (a timeout, a dropped connection, an engine that was killed) is sent
again. If the first try took effect, a conditional repetition is refused with 412, and the
repetition of CompleteMultipartUpload finds no upload. Each function here looks at what the key
holds and returns the first try's result where it can be shown to be that, by the ETag and the
metadata; else it raises the refusal unchanged. Shown or not, nothing is written.

For everybody who repeats writes: the retries of one request, and the engine's client, which
repeats requests over the death of a process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio

from s3mount.errors import RejectedError, StoreError
from s3mount.refs import (
    Body,
    ContentRef,
    Key,
    ObjectHeaders,
    ObjectInfo,
    PartInfo,
    PutResult,
)
from s3mount.s3.checksums import md5, multipart_etag
from s3mount.s3.headers import same_when_stored

Head: TypeAlias = Callable[[Key], Awaitable[ObjectInfo]]
"""Looks at a key as ``Store.head`` does."""


async def settle_put(
    head: Head, key: Key, body: Body, headers: ObjectHeaders, refusal: StoreError
) -> PutResult:
    """The result of our earlier PUT of ``body``. Raises ``refusal`` where that cannot be shown.

    Where ETags are not MD5 (SSE-KMS, SSE-C) it never can.
    """
    info = await _look(head, key, refusal)
    etag = await trio.to_thread.run_sync(_md5_or_none, body)
    if info.etag != etag or not _carries(info, headers):
        raise refusal
    return PutResult(info.etag, info.version_id)


async def settle_copy(
    head: Head, source: ContentRef, key: Key, headers: ObjectHeaders | None, refusal: StoreError
) -> PutResult:
    """The result of our earlier copy of ``source``. Raises ``refusal`` where that cannot be shown."""
    info = await _look(head, key, refusal)
    same_bytes = info.size == source.size and info.etag == source.etag
    if not same_bytes or (headers is not None and not _carries(info, headers)):
        raise refusal
    return PutResult(info.etag, info.version_id)


async def settle_complete(
    head: Head, key: Key, parts: Sequence[PartInfo], refusal: StoreError
) -> PutResult:
    """The result of our earlier CompleteMultipartUpload. Raises ``refusal`` where that cannot be shown."""
    expected = multipart_etag(sorted(parts, key=lambda part: part.number))
    info = await _look(head, key, refusal)
    if expected is None or info.etag != expected:
        raise refusal
    return PutResult(info.etag, info.version_id)


def _md5_or_none(body: Body) -> str | None:
    try:
        return md5(body).hex()
    except RejectedError:
        return None  # the file is gone meanwhile: nothing can be shown


async def _look(head: Head, key: Key, refusal: StoreError) -> ObjectInfo:
    try:
        return await head(key)
    except StoreError as error:
        raise refusal from error


def _carries(info: ObjectInfo, headers: ObjectHeaders) -> bool:
    return info.headers is not None and same_when_stored(info.headers, headers)

"""From a local file into the bucket: one PUT, or parts in parallel."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import trio

from s3mount.errors import ChecksumError, RejectedError, S3MountError
from s3mount.flow.parts import PartPlan
from s3mount.refs import ANY, Condition, FileSlice, Key, ObjectHeaders, PutResult
from s3mount.s3.store import Store
from s3mount.transfer.multipart import INVALID_PART, bring_missing, confirm
from s3mount.transfer.parts import PartsUpload

log = logging.getLogger(__name__)

ABORT_S = 15.0
"""How long a failed or cancelled upload may take to tidy up behind itself. What is left then is
found by ``Store.list_uploads``."""


async def upload_file(
    store: Store,
    path: str,
    size: int,
    key: Key,
    headers: ObjectHeaders,
    *,
    condition: Condition = ANY,
    part_bytes: int,
    slots: trio.CapacityLimiter,
    on_sent: Callable[[int], None] | None = None,
) -> PutResult:
    """Upload the first ``size`` bytes of ``path``: one PUT up to ``part_bytes``, parts above.

    ``slots`` bounds the requests that carry a body, over all uploads that share it. ``on_sent(n)``
    is called with the growing number of bytes that the store confirmed.

    Raises the store's errors; ChecksumError (retryable) when a file that goes up in parts was
    changed meanwhile; RejectedError when it cannot be read. After an error, and after cancellation,
    no unfinished upload is left behind unless the store cannot be reached for that either.
    """
    if size <= part_bytes:
        body = FileSlice(path, 0, size) if size else b""
        async with slots:
            result = await store.put(key, body, headers, condition=condition)
        if on_sent is not None:
            on_sent(size)
        return result
    before = _fingerprint(path)
    upload = PartsUpload(key, PartPlan(part_bytes))
    try:
        upload.upload_id = await store.create_multipart(key, headers)
        sender = _Sender(store, upload, path, size, slots, on_sent)
        await sender.send_missing()
        if _fingerprint(path) != before:
            raise ChecksumError(f"{path} was changed while it was sent", key=key)
        return await sender.complete(condition)
    except BaseException:
        await _abort_quietly(store, upload)
        raise


class _Sender:
    """Brings the bytes of a file into one upload, and completes it."""

    def __init__(
        self,
        store: Store,
        upload: PartsUpload,
        path: str,
        size: int,
        slots: trio.CapacityLimiter,
        on_sent: Callable[[int], None] | None,
    ) -> None:
        self._store = store
        self._upload = upload
        self._path = path
        self._size = size
        self._slots = slots
        self._on_sent = on_sent

    async def send_missing(self) -> None:
        """Send every part that S3 lacks."""
        await bring_missing(self._upload, self._size, self._send, self._slots)

    async def _send(self, index: int) -> None:
        upload = self._upload
        span = upload.span(index, self._size)
        body = FileSlice(self._path, span.start, span.length)
        part = await self._store.upload_part(upload.key, upload.upload_id, index + 1, body)
        upload.arrived(index, part)
        if self._on_sent is not None:
            self._on_sent(sum(each.size for each in upload.sent.values()))

    async def complete(self, condition: Condition) -> PutResult:
        """Complete; once more where S3 has other parts than were sent, as when an older request arrived late."""
        try:
            return await self._complete(condition)
        except RejectedError as error:
            if error.code != INVALID_PART or (await confirm(self._store, self._upload))[1]:
                raise
        await self.send_missing()
        return await self._complete(condition)

    async def _complete(self, condition: Condition) -> PutResult:
        parts = self._upload.finished_parts(self._size)
        assert parts is not None
        return await self._store.complete_multipart(
            self._upload.key, self._upload.upload_id, parts, condition=condition
        )


async def _abort_quietly(store: Store, upload: PartsUpload) -> None:
    """Abort in the way out of another error, which is the one that counts."""
    if not upload.upload_id:
        return
    with trio.move_on_after(ABORT_S, shield=True):
        try:
            await store.abort_multipart(upload.key, upload.upload_id)
        except S3MountError as error:
            log.warning("an unfinished upload of %r stays in the bucket: %s", upload.key, error)


def _fingerprint(path: str) -> tuple[int, int, int]:
    """Changes when the file's bytes do. Raises RejectedError when it cannot be read."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise RejectedError(f"{path}: {error.strerror}") from error
    return status.st_ino, status.st_size, status.st_mtime_ns

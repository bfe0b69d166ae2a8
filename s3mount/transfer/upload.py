"""From a local file into the bucket: one PUT, or parts in parallel that may begin before the end is known."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from s3mount.errors import ChecksumError, RejectedError, S3MountError
from s3mount.flow.parts import PartPlan
from s3mount.refs import (
    ANY,
    Body,
    ByteRange,
    Condition,
    ContentRef,
    FileSlice,
    Key,
    ObjectHeaders,
    PartInfo,
    PutResult,
)
from s3mount.s3.store import Store
from s3mount.tasks import in_parallel
from s3mount.transfer.digest import is_part
from s3mount.transfer.ledger import PartLedger

log = logging.getLogger(__name__)

ABORT_S = 15.0
"""How long a failed or cancelled upload may take to tidy up behind itself. What is left then is
found by ``Store.list_uploads``."""


class MultipartUpload:
    """One multipart upload to ``key``, begun or resumed, whose parts come in any order.

    ``on_part`` is called, in the trio loop, with each part that the store confirmed and for the
    upload to be resumed from what it recorded. Parts are counted from 0. Sends of different parts
    may run at the same time; sends of one part wait for each other, and the last one counts.
    """

    def __init__(
        self,
        store: Store,
        key: Key,
        plan: PartPlan,
        *,
        on_part: Callable[[PartInfo], None] | None = None,
    ) -> None:
        self.key = key
        self.ledger = PartLedger(plan)
        self._store = store
        self._on_part = on_part
        self._upload_id = ""
        self._turns: dict[int, trio.Lock] = {}

    @property
    def upload_id(self) -> str:
        """S3's name for it; empty before ``begin`` or ``resume``."""
        return self._upload_id

    async def begin(self, headers: ObjectHeaders) -> str:
        """CreateMultipartUpload; the upload id, to be recorded before any part is sent."""
        self._upload_id = await self._store.create_multipart(self.key, headers)
        return self._upload_id

    async def resume(self, upload_id: str) -> dict[int, PartInfo]:
        """Go on with an upload of an earlier run; the parts that the store holds of it.

        Whether they are still what the file holds is for ``verify`` or the caller's records to
        tell. Raises NoSuchKeyError when the upload is gone.
        """
        parts = await self._store.list_parts(self.key, upload_id)
        self._upload_id = upload_id
        self.ledger.replace(parts)
        return self.ledger.parts

    async def verify(self, path: str, size: int) -> list[int]:
        """Forget every confirmed part that cannot be shown to hold the file's bytes; what is missing then.

        Raises RejectedError when the file cannot be read.
        """
        for index, part in self.ledger.parts.items():
            if index < self.ledger.plan.count(size):
                place = self.ledger.part_range(index, size)
                if not await is_part(FileSlice(path, place.start, place.length), part):
                    self.ledger.forget(index)
        await trio.lowlevel.checkpoint()
        return self.ledger.missing(size)

    async def send_part(self, index: int, body: Body) -> PartInfo:
        """UploadPart; a part that was sent before is replaced.

        Cancelled or failed, the part counts as not sent. Raises NoSuchKeyError when the upload is
        gone, and the store's other errors.
        """
        async with self._turn(index):
            part = await self._store.upload_part(self.key, self._upload_id, index + 1, body)
            self._confirm(part)
            return part

    async def copy_part(self, index: int, source: ContentRef, byte_range: ByteRange) -> PartInfo:
        """UploadPartCopy from exactly ``source``; else as ``send_part``."""
        async with self._turn(index):
            part = await self._store.upload_part_copy(
                self.key, self._upload_id, index + 1, source, byte_range
            )
            self._confirm(part)
            return part

    @asynccontextmanager
    async def _turn(self, index: int) -> AsyncIterator[None]:
        lock = self._turns.setdefault(index, trio.Lock())
        try:
            async with lock:
                self.ledger.forget(index)
                yield
        finally:
            if not lock.locked():
                self._turns.pop(index, None)

    def _confirm(self, part: PartInfo) -> None:
        self.ledger.confirm(part)
        if self._on_part is not None:
            self._on_part(part)

    async def complete(self, size: int, *, condition: Condition = ANY) -> PutResult:
        """CompleteMultipartUpload of the first ``size`` bytes.

        Raises ValueError while a part is missing. RejectedError with code ``InvalidPart`` says that
        the store holds other parts than were confirmed (an older send that arrived late, or more
        parts than the file has now, which some stores do not let go): see ``reconcile``.
        """
        parts = self.ledger.to_complete(size)
        return await self._store.complete_multipart(
            self.key, self._upload_id, parts, condition=condition
        )

    async def reconcile(self, size: int) -> list[int]:
        """Forget every part that the store holds differently; what is missing then.

        Nothing missing after ``InvalidPart`` means that the store does not let parts behind the
        file's present end go (Ceph 16): ``abort``, and ``begin`` anew. Raises NoSuchKeyError when the upload is gone.
        """
        held = {p.number: p for p in await self._store.list_parts(self.key, self._upload_id)}
        for index, part in self.ledger.parts.items():
            there = held.get(part.number)
            if there is None or there.etag != part.etag or there.size != part.size:
                self.ledger.forget(index)
        return self.ledger.missing(size)

    async def abort(self) -> None:
        """AbortMultipartUpload, if it was begun; no error when it is gone."""
        if not self._upload_id:
            await trio.lowlevel.checkpoint()
            return
        await self._store.abort_multipart(self.key, self._upload_id)
        self._upload_id = ""
        self.ledger.replace(())


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
    sent = 0

    def count(part: PartInfo) -> None:
        nonlocal sent
        sent += part.size
        if on_sent is not None:
            on_sent(sent)

    upload = MultipartUpload(store, key, PartPlan(part_bytes), on_part=count)
    try:
        await upload.begin(headers)
        await _send_missing(upload, path, size, slots)
        if _fingerprint(path) != before:
            raise ChecksumError(f"{path} was changed while it was sent", key=key)
        return await _complete(upload, path, size, slots, condition)
    except BaseException:
        await _abort_quietly(upload)
        raise


async def _complete(
    upload: MultipartUpload,
    path: str,
    size: int,
    slots: trio.CapacityLimiter,
    condition: Condition,
) -> PutResult:
    """Complete; once more if a part has to be sent again first."""
    try:
        return await upload.complete(size, condition=condition)
    except RejectedError as error:
        if error.code != "InvalidPart" or not await upload.reconcile(size):
            raise
    await _send_missing(upload, path, size, slots)
    return await upload.complete(size, condition=condition)


async def _send_missing(
    upload: MultipartUpload, path: str, size: int, slots: trio.CapacityLimiter
) -> None:
    async def send(index: int) -> None:
        place = upload.ledger.part_range(index, size)
        await upload.send_part(index, FileSlice(path, place.start, place.length))

    await in_parallel(slots, upload.ledger.missing(size), send)


async def _abort_quietly(upload: MultipartUpload) -> None:
    """Abort in the way out of another error, which is the one that counts."""
    with trio.move_on_after(ABORT_S, shield=True):
        try:
            await upload.abort()
        except S3MountError as error:
            log.warning("an unfinished upload of %r stays in the bucket: %s", upload.key, error)


def _fingerprint(path: str) -> tuple[int, int, int]:
    """Changes when the file's bytes do. Raises RejectedError when it cannot be read."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise RejectedError(f"{path}: {error.strerror}") from error
    return status.st_ino, status.st_size, status.st_mtime_ns

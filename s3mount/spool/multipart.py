"""Sending large blobs in parts: streaming while the file is still written, completing, going on after a crash."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from s3mount.errors import NoSuchKeyError, S3MountError, StoreError
from s3mount.flow.parts import PartPlan
from s3mount.refs import ByteRange, Condition, FileSlice, Key, ObjectHeaders, PartInfo, PutResult
from s3mount.s3.store import Store
from s3mount.spool.blobs import Blob
from s3mount.spool.changes import Change
from s3mount.spool.parts import PartsUpload
from s3mount.spool.spool import Spool

log = logging.getLogger(__name__)

STREAM_LAG_PARTS = 1
"""Parts kept back behind the writer: the kernel's writeback reorders within a few MiB."""


class Hooks(Protocol):
    """The part of ``uploader.Hooks`` that sending in parts needs."""

    def headers_of(self, change: Change, *, with_times: bool = True) -> ObjectHeaders:
        """See ``uploader.Hooks.headers_of``."""
        ...

    async def fill(self, change: Change, start: int, stop: int) -> None:
        """See ``uploader.Hooks.fill``."""
        ...


class MultipartSender:
    """All multipart uploads of one spool. At most ``parts_max`` parts are on their way at once."""

    def __init__(
        self, spool: Spool, store: Store, hooks: Hooks, *, part_bytes: int, parts_max: int
    ) -> None:
        self._spool = spool
        self._store = store
        self._hooks = hooks
        self._plan = PartPlan(part_bytes)
        self._slots = trio.CapacityLimiter(parts_max)
        self._nursery: trio.Nursery | None = None
        self._streams: dict[str, trio.Event] = {}

    async def run(self) -> None:
        """Give streaming tasks a home; cancel to stop."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run ``task`` in the background until the sender stops; it must not raise."""
        if self._nursery is not None:
            self._nursery.start_soon(task)

    @staticmethod
    def slice_of(blob: Blob, start: int, stop: int) -> FileSlice:
        """The bytes of ``blob`` from ``start`` to ``stop``, as a body."""
        return FileSlice(str(blob.path), start, stop - start)

    # ----------------------------------------------------------------- streaming

    def grown(self, change: Change, blob: Blob) -> None:
        """The open file of ``change`` grew: send its finished parts, while it is being written.

        Call it as often as you like.
        """
        wake = self._streams.get(blob.id)
        if wake is not None:
            wake.set()
        elif self._nursery is not None:
            self._streams[blob.id] = trio.Event()
            self._nursery.start_soon(self._stream, change, blob)

    def is_worth_streaming(self, blob: Blob) -> bool:
        """Is there a whole part behind the writer that could leave now?"""
        if blob.base is not None:
            return False
        behind = self._plan.part_range(STREAM_LAG_PARTS + 1).stop
        return blob.size >= behind and (blob.upload is None or bool(self._ready(blob)))

    def _ready(self, blob: Blob) -> list[int]:
        """Parts that are wholly written, not sent, and behind the writer."""
        upload = blob.upload
        last = self._plan.part_of(blob.size - 1) - STREAM_LAG_PARTS
        ready = []
        for index in range(last):
            if upload is not None and (index in upload.sent or index in upload.sending):
                continue
            part = self._plan.part_range(index)
            if blob.extents.covers(part.start, part.stop):
                ready.append(index)
        return ready

    async def _stream(self, change: Change, blob: Blob) -> None:
        """Send parts as they are finished, until the change leaves the OPEN state or a part fails."""
        try:
            if blob.upload is None:
                await self._begin(change, blob, streamed=True)
            async with trio.open_nursery() as nursery:
                while self._still_streaming(change, blob):
                    wake = self._streams[blob.id] = trio.Event()
                    upload = blob.upload
                    assert upload is not None
                    for index in self._ready(blob):
                        worker = object()
                        await self._slots.acquire_on_behalf_of(worker)
                        if not self._still_streaming(change, blob):
                            self._slots.release_on_behalf_of(worker)
                            return
                        upload.begin(index)
                        nursery.start_soon(self._stream_part, blob, upload, index, worker)
                    with trio.move_on_after(1.0):
                        await wake.wait()
        except S3MountError as error:
            # Not lost: whatever is unsent is sent when the file is closed.
            log.info("streaming of %r pauses: %s", change.key, error)
        finally:
            self._streams.pop(blob.id, None)

    def _still_streaming(self, change: Change, blob: Blob) -> bool:
        return (
            self._spool.changes.get(change.key) is change
            and change.state == "open"
            and change.blob_id == blob.id
            and blob.upload is not None
            and blob.upload.key == change.key
        )

    async def _stream_part(
        self, blob: Blob, upload: PartsUpload, index: int, worker: object
    ) -> None:
        try:
            await self._send_part(blob, upload, index)
        except S3MountError as error:
            log.info("part %d of %r is not sent yet: %s", index + 1, upload.key, error)
        finally:
            self._slots.release_on_behalf_of(worker)

    # ------------------------------------------------------------------- parts

    async def _begin(self, change: Change, blob: Blob, *, streamed: bool) -> PartsUpload:
        upload = self._new_upload(change.key)
        if change.upload_id:
            known = await self._resume(change)
            if known is not None:
                upload.upload_id, upload.sent = change.upload_id, known
        if not upload.upload_id:
            begun = change.attributes
            headers = self._hooks.headers_of(change, with_times=not streamed)
            upload.upload_id = await self._store.create_multipart(change.key, headers)
            if self._spool.changes.get(change.key) is not change:
                self.abandon(upload)
                raise S3MountError("the file went away while its upload began")
            change.upload_id = upload.upload_id
            change.upload_attributes, change.upload_streamed = begun, streamed
            self._spool.journal.upload_begun(upload.upload_id, change)
        blob.upload = upload
        return upload

    def _new_upload(self, key: Key) -> PartsUpload:
        upload = PartsUpload(key, self._plan)

        def forgot(number: int) -> None:
            self._spool.journal.part_changed(upload.upload_id, number)

        upload.on_forgotten(forgot)
        return upload

    async def _resume(self, change: Change) -> dict[int, PartInfo] | None:
        """The parts of an upload of an earlier run that count: both S3 and the journal have them."""
        journalled = self._spool.journal.parts(change.upload_id)
        try:
            there = await self._store.list_parts(change.key, change.upload_id)
        except NoSuchKeyError:
            self._spool.journal.upload_ended(change.upload_id)
            change.upload_id = ""
            return None
        confirmed = {part.number - 1: part for part in there}
        return {
            index: part
            for index, part in journalled.items()
            if index in confirmed and confirmed[index].etag == part.etag
        }

    async def _send_part(self, blob: Blob, upload: PartsUpload, index: int) -> None:
        """Send one part that ``upload.begin`` was told of."""
        span = self._plan.part_range(index)
        stop = min(span.stop, blob.size)
        try:
            part = await self._store.upload_part(
                upload.key, upload.upload_id, index + 1, self.slice_of(blob, span.start, stop)
            )
        except BaseException:
            upload.failed(index)
            raise
        if stop == min(span.stop, blob.size) and upload.arrived(index, part):
            self._spool.journal.part_sent(upload.upload_id, part)
        else:
            upload.failed(index)

    async def _copy_part(self, change: Change, blob: Blob, upload: PartsUpload, index: int) -> None:
        """Let S3 copy a part that nobody touched from the version below it."""
        span = self._plan.part_range(index)
        stop = min(span.stop, blob.size)
        assert blob.base is not None
        try:
            part = await self._store.upload_part_copy(
                upload.key,
                upload.upload_id,
                index + 1,
                blob.base,
                ByteRange(span.start, stop - span.start),
            )
        except BaseException:
            upload.failed(index)
            raise
        if upload.arrived(index, part):
            self._spool.journal.part_sent(upload.upload_id, part)

    async def _bring(self, change: Change, blob: Blob, upload: PartsUpload, index: int) -> None:
        """Make S3 have part ``index``, by copying or by sending."""
        span = self._plan.part_range(index)
        stop = min(span.stop, blob.size)
        untouched = (
            blob.base is not None
            and stop <= blob.base_limit
            and not blob.extents.touches(span.start, stop)
        )
        if untouched:
            await self._copy_part(change, blob, upload, index)
            return
        if blob.missing(span.start, stop):
            await self._hooks.fill(change, span.start, stop)
        await self._send_part(blob, upload, index)

    # ---------------------------------------------------------------- completing

    async def send(self, change: Change, blob: Blob, condition: Condition) -> PutResult:
        """Bring all parts of ``blob`` to S3 and complete the upload. Raises S3MountError.

        May be repeated: what S3 has confirmed is not sent again. Writes meanwhile take parts back; the
        upload is completed at a moment when all parts are those of one state of the file.
        """
        upload = blob.upload
        if upload is not None and upload.key != change.key:
            self.abandon(upload)
            blob.upload = upload = None
            change.upload_id = ""
        if upload is None:
            upload = await self._begin(change, blob, streamed=False)
        try:
            while (parts := upload.finished_parts(blob.size)) is None:
                await self._send_missing(change, blob, upload)
            result = await self._store.complete_multipart(
                change.key, upload.upload_id, parts, condition=condition
            )
        except NoSuchKeyError as error:
            if error.code != "NoSuchUpload":
                raise
            # Aborted behind our back (a lifecycle rule, a person): begin anew at the next try.
            self._spool.journal.upload_ended(upload.upload_id)
            blob.upload = None
            change.upload_id = ""
            raise StaleUploadError("the multipart upload is gone; it begins again") from None
        self._spool.journal.upload_ended(upload.upload_id)
        blob.upload = None
        change.upload_id = ""
        return result

    async def _send_missing(self, change: Change, blob: Blob, upload: PartsUpload) -> None:
        errors: list[S3MountError] = []

        async def bring(index: int, worker: object) -> None:
            try:
                await self._bring(change, blob, upload, index)
            except S3MountError as error:
                errors.append(error)
                nursery.cancel_scope.cancel()
            finally:
                self._slots.release_on_behalf_of(worker)

        async with trio.open_nursery() as nursery:
            for index in upload.unsent(blob.size):
                worker = object()
                await self._slots.acquire_on_behalf_of(worker)
                upload.begin(index)
                nursery.start_soon(bring, index, worker)
            if not nursery.child_tasks and upload.sending:
                # Parts that the stream sent before the file was closed are still on their way.
                await trio.sleep(0.005)
        if errors:
            raise errors[0]

    # ------------------------------------------------------------------ ending

    def abandon(self, upload: PartsUpload) -> None:
        """The upload is of no use any more: abort it in the background."""
        if upload.upload_id:
            self.start_soon(lambda: self._abort(upload.key, upload.upload_id))

    async def _abort(self, key: Key, upload_id: str) -> None:
        try:
            await self._store.abort_multipart(key, upload_id)
        except StoreError as error:
            log.info("multipart upload %s of %r is left for later: %s", upload_id, key, error)
            return
        self._spool.journal.upload_ended(upload_id)

    async def abort_leftovers(self) -> None:
        """Abort uploads of earlier runs that no change goes on with."""
        wanted = {change.upload_id for change in self._spool.changes.values()}
        for upload_id, key in self._spool.journal.uploads():
            if upload_id not in wanted:
                await self._abort(key, upload_id)


class StaleUploadError(StoreError):
    """The multipart upload that was to be continued is gone; a new one is begun."""

    retryable = True

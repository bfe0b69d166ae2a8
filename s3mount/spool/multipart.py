"""Sending large blobs in parts: streaming while the file is still written, completing, going on after a crash."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from s3mount.errors import (
    DamagedBodyError,
    NoSuchKeyError,
    PreconditionFailedError,
    S3MountError,
    ServerFaultError,
)
from s3mount.flow.parts import PartPlan
from s3mount.refs import ByteRange, Condition, Key, PartInfo, PutResult
from s3mount.s3.checksums import multipart_etag
from s3mount.s3.store import Store
from s3mount.spool.blobs import Blob
from s3mount.spool.changes import Change
from s3mount.spool.hooks import Hooks
from s3mount.spool.outcomes import BaseGoneError, StaleUploadError, TryAgain, damage_of
from s3mount.spool.parts import PartsUpload
from s3mount.spool.spool import Spool
from s3mount.spool.sums import DamagedBlockError
from s3mount.steps import reach

log = logging.getLogger(__name__)

STREAMED_PARTS_MAX = 2
"""Parts of a file on their way at once while it is still being written: the writer's processor time
comes first; after close() all slots are used."""
STREAM_LAG_PARTS = 1
"""Parts kept back behind the writer: the kernel's writeback reorders within a few MiB."""

NO_SUCH_UPLOAD = "NoSuchUpload"
"""S3's code when the upload, not the key, is what it does not know."""
LEFTOVER_PERIOD_S = 60.0
"""How often uploads that could not be aborted at once are looked for."""


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
        self._beginning: dict[str, trio.Event] = {}
        self._take_over()

    async def run(self) -> None:
        """Give streaming tasks a home, and abort uploads that nobody needs; cancel to stop."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                while True:
                    await self._abort_leftovers()
                    await trio.sleep(LEFTOVER_PERIOD_S)
            finally:
                self._nursery = None

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run ``task`` in the background until the sender stops; it must not raise."""
        if self._nursery is not None:
            self._nursery.start_soon(task)

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
        last = self._plan.count(blob.size) - 1 - STREAM_LAG_PARTS
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
                await self._begin_once(change, blob, streamed=True)
            own_slots = trio.CapacityLimiter(STREAMED_PARTS_MAX)
            async with trio.open_nursery() as nursery:
                while self._still_streaming(change, blob):
                    wake = self._streams[blob.id] = trio.Event()
                    upload = blob.upload
                    assert upload is not None
                    for index in self._ready(blob):
                        worker = object()
                        await own_slots.acquire_on_behalf_of(worker)
                        if not self._still_streaming(change, blob):
                            return
                        upload.begin(index)
                        nursery.start_soon(
                            self._stream_part, blob, upload, index, own_slots, worker
                        )
                    with trio.move_on_after(1.0):
                        await wake.wait()
        except S3MountError as error:
            # Not lost: whatever is unsent is sent when the file is closed.
            log.info("streaming of %r pauses: %s", change.key, error)
        except Exception:
            # One file's trouble must not end the sending of all others.
            log.exception("internal error while streaming %r", change.key)
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
        self,
        blob: Blob,
        upload: PartsUpload,
        index: int,
        own_slots: trio.CapacityLimiter,
        worker: object,
    ) -> None:
        try:
            async with self._slots:
                await self._send_part(blob, upload, index)
        except S3MountError as error:
            log.info("part %d of %r is not sent yet: %s", index + 1, upload.key, error)
        except BaseException:
            # Also while it waited for a slot: nobody else would take it as not on its way.
            upload.failed(index)
            raise
        finally:
            own_slots.release_on_behalf_of(worker)

    # ------------------------------------------------------------------- parts

    async def _begin_once(self, change: Change, blob: Blob, *, streamed: bool) -> None:
        """Begin the upload of ``blob`` unless it has begun; the stream and ``send`` may both come."""
        while (begun := self._beginning.get(blob.id)) is not None:
            await begun.wait()
        if blob.upload is not None:
            return
        self._beginning[blob.id] = trio.Event()
        try:
            await self._begin(change, blob, streamed=streamed)
        finally:
            self._beginning.pop(blob.id).set()

    async def _begin(self, change: Change, blob: Blob, *, streamed: bool) -> None:
        upload = self._new_upload(change.key)
        begun = change.attributes
        headers = self._hooks.headers_of(change, with_times=not streamed)
        upload.upload_id = await self._store.create_multipart(upload.key, headers)
        reach("upload: created")
        if not self._is_current(change, blob):
            self._spool.journal.upload_begun(upload.upload_id, upload.key, None)
            self.abandon(upload)
            raise TryAgain("the file changed its place while its upload began")
        change.upload_id = upload.upload_id
        change.upload_attributes, change.upload_streamed = begun, streamed
        if begun is not None:
            change.note_try(begun.ctime_ns)
        self._spool.journal.upload_begun(upload.upload_id, upload.key, change)
        reach("upload: noted")
        blob.upload = upload

    def _is_current(self, change: Change, blob: Blob) -> bool:
        return self._spool.changes.get(change.key) is change and change.blob_id == blob.id

    def _new_upload(self, key: Key) -> PartsUpload:
        upload = PartsUpload(key, self._plan)

        def forgot(number: int) -> None:
            self._spool.journal.part_changed(upload.upload_id, number)

        upload.on_forgotten(forgot)
        return upload

    def _take_over(self) -> None:
        """Let the blobs that an earlier run left know which of their parts were sent, before anybody writes."""
        for change in self._spool.changes.values():
            blob = self._spool.live_blobs.get(change.blob_id)
            if not change.upload_id or blob is None:
                continue
            upload = self._new_upload(change.key)
            upload.upload_id = change.upload_id
            upload.is_confirmed = False
            for index, part in self._spool.journal.parts(change.upload_id).items():
                span = self._plan.part_range(index)
                if part.size == min(span.stop, blob.size) - span.start:
                    upload.sent[index] = part
            blob.upload = upload
            # What S3 has of it and what a power cut left of it need not be of one state.
            blob.is_unsure = True

    async def _confirm(self, upload: PartsUpload) -> None:
        """Keep of the parts of an earlier run those that S3 has too. NoSuchKeyError: the upload is gone."""
        try:
            there = await self._store.list_parts(upload.key, upload.upload_id)
        except NoSuchKeyError as error:
            # Ceph 16 names the key where it means the upload.
            raise NoSuchKeyError(
                str(error), key=upload.key, status=error.status, code=NO_SUCH_UPLOAD
            ) from error
        confirmed = {part.number - 1: part.etag for part in there}
        for index, part in list(upload.sent.items()):
            if confirmed.get(index) != part.etag:
                del upload.sent[index]
        upload.is_confirmed = True
        reach("recovery: parts confirmed")

    async def _send_part(self, blob: Blob, upload: PartsUpload, index: int) -> None:
        """Send one part that ``upload.begin`` was told of."""
        span = self._plan.part_range(index)
        stop = min(span.stop, blob.size)
        if stop < span.start:
            # Cut off before its turn came.
            upload.failed(index)
            return
        try:
            body = blob.body(span.start, stop)
            part = await self._store.upload_part(upload.key, upload.upload_id, index + 1, body)
        except (DamagedBodyError, DamagedBlockError) as error:
            upload.failed(index)
            raise damage_of(blob, span.start, stop, error) from error
        except BaseException:
            upload.failed(index)
            raise
        reach("part: sent")
        if stop != min(span.stop, blob.size):
            upload.failed(index)
        else:
            self._arrived(blob, upload, index, part)

    def _arrived(self, blob: Blob, upload: PartsUpload, index: int, part: PartInfo) -> None:
        if upload.arrived(index, part) and blob.upload is upload:
            self._spool.journal.part_sent(upload.upload_id, part)

    async def _copy_part(self, blob: Blob, upload: PartsUpload, index: int) -> None:
        """Let S3 copy a part that nobody touched from the version below it."""
        span = self._plan.part_range(index)
        stop = min(span.stop, blob.size)
        assert blob.base is not None
        part = await self._store.upload_part_copy(
            upload.key,
            upload.upload_id,
            index + 1,
            blob.base,
            ByteRange(span.start, stop - span.start),
        )
        reach("part: copied")
        self._arrived(blob, upload, index, part)

    async def _bring(self, change: Change, blob: Blob, upload: PartsUpload, index: int) -> None:
        """Make S3 have part ``index``, by copying or by sending."""
        span = self._plan.part_range(index)
        stop = min(span.stop, blob.size)
        untouched = (
            blob.base is not None
            and stop <= blob.base_limit
            and not blob.extents.touches(span.start, stop)
        )
        try:
            if untouched:
                await self._copy_part(blob, upload, index)
                return
            if blob.missing(span.start, stop):
                await self._hooks.fill(change, span.start, stop)
        except (PreconditionFailedError, NoSuchKeyError) as error:
            upload.failed(index)
            if error.code == NO_SUCH_UPLOAD:
                raise
            raise BaseGoneError(f"the version that it changes is gone: {error}") from error
        except BaseException:
            upload.failed(index)
            raise
        await self._send_part(blob, upload, index)

    # ---------------------------------------------------------------- completing

    async def send(self, change: Change, blob: Blob, condition: Condition) -> tuple[PutResult, int]:
        """Bring all parts of ``blob`` to S3 and complete the upload: the result, and the size in bytes.

        May be repeated: what S3 has confirmed is not sent again. Raises TryAgain when the content
        changes meanwhile, and S3MountError.
        """
        content_seq = change.content_seq
        if blob.upload is not None and not _is_of(blob.upload, change):
            self.abandon(blob.upload)
            blob.upload = None
            change.upload_id = ""
        if blob.upload is None:
            await self._begin_once(change, blob, streamed=False)
        upload = blob.upload
        try:
            if upload is not None and not upload.is_confirmed:
                await self._confirm(upload)
            is_forced = False
            while True:
                if upload is None or blob.upload is not upload or change.content_seq != content_seq:
                    raise TryAgain("changed while it was sent")
                parts = upload.finished_parts(blob.size)
                if parts is None:
                    await self._send_missing(change, blob, upload)
                elif is_forced:
                    break
                else:
                    await self._spool.forcing.journal()
                    is_forced = True
            upload.completing = parts
            reach("complete: before")
            try:
                result = await self._store.complete_multipart(
                    upload.key, upload.upload_id, parts, condition=condition
                )
            except ServerFaultError:
                # What Ceph 16 says when the upload is gone: the next try asks for its parts first.
                upload.is_confirmed = False
                raise
            reach("complete: answered")
        except NoSuchKeyError as error:
            if error.code != NO_SUCH_UPLOAD or upload is None:
                raise
            result, parts = await self._completed_before(change, blob, upload)
        self._ended(change, blob, upload)
        return result, sum(part.size for part in parts)

    async def _completed_before(
        self, change: Change, blob: Blob, upload: PartsUpload
    ) -> tuple[PutResult, list[PartInfo]]:
        """The upload is gone: completed by a try whose answer was lost, or aborted by somebody.

        Raises StaleUploadError unless it can be shown that S3 has exactly what the blob holds.
        """
        begun = change.upload_attributes
        parts = upload.finished_parts(blob.size)
        try:
            there = await self._store.head(upload.key)
        except NoSuchKeyError:
            there = None
        if there is not None and there.headers is not None and begun and parts is not None:
            is_of_this_upload = self._hooks.written_at_ns(there.headers) == begun.ctime_ns
            etag = multipart_etag(parts)
            has_these_parts = parts == upload.completing if etag is None else there.etag == etag
            if is_of_this_upload and has_these_parts and upload.finished_parts(blob.size) == parts:
                blob.is_unsure = True
                return PutResult(there.etag, there.version_id, there.last_modified_ns), parts
        self._ended(change, blob, upload)
        raise StaleUploadError("the multipart upload is gone; it begins again", key=upload.key)

    def _ended(self, change: Change, blob: Blob, upload: PartsUpload) -> None:
        self._spool.journal.upload_ended(upload.upload_id)
        if blob.upload is upload:
            blob.upload = None
        if change.upload_id == upload.upload_id:
            change.upload_id = ""

    def drop_unused(self, change: Change, blob: Blob) -> None:
        """An upload of which nothing arrived (or was taken back) is not worth going on with for a small file."""
        upload = blob.upload
        if upload is None or blob.size > self._plan.part_bytes or upload.sent or upload.sending:
            return
        self.abandon(upload)
        blob.upload = None
        change.upload_id = ""
        change.upload_attributes = None

    async def _send_missing(self, change: Change, blob: Blob, upload: PartsUpload) -> None:
        errors: list[Exception] = []

        async def bring(index: int, worker: object) -> None:
            try:
                await self._bring(change, blob, upload, index)
            except (S3MountError, OSError) as error:
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
        except S3MountError as error:
            log.info("multipart upload %s of %r is left for later: %s", upload_id, key, error)
            return
        reach("abort: answered")
        self._spool.journal.upload_ended(upload_id)

    async def _abort_leftovers(self) -> None:
        """Abort uploads that no change goes on with, of this run and of earlier ones."""
        for upload_id, key in self._spool.journal.uploads():
            if upload_id not in self._wanted():
                await self._abort(key, upload_id)

    def _wanted(self) -> set[str]:
        blobs = self._spool.live_blobs.values()
        going_on = {blob.upload.upload_id for blob in blobs if blob.upload is not None}
        return going_on | {change.upload_id for change in self._spool.changes.values()}


def _is_of(upload: PartsUpload, change: Change) -> bool:
    """Was it begun for this very change? After a move and back it was for an earlier one of the key."""
    return upload.key == change.key and upload.upload_id == change.upload_id

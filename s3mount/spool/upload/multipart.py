"""Sending large blobs in parts: streaming while the file is still written, completing, going on after a crash."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from s3mount.background import Background, attempt
from s3mount.crashpoints import crashpoint
from s3mount.errors import (
    DamagedBodyError,
    LocalDiskError,
    NoSuchKeyError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
    ServerFaultError,
)
from s3mount.flow.parts import PartPlan
from s3mount.refs import ByteRange, Condition, ContentRef, Key, PartInfo, PutResult
from s3mount.s3.checksums import multipart_etag
from s3mount.s3.headers import is_md5_etag
from s3mount.s3.store import Store
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.blobs.block_checksums import DamagedBlockError
from s3mount.spool.journal.changes import Put
from s3mount.spool.send_errors import BaseGoneError, StaleUploadError, TryAgain, damage_of
from s3mount.spool.spool import Spool
from s3mount.spool.upload import stale_uploads
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.spool.upload.kept import Kept
from s3mount.spool.upload.provider import ContentProvider
from s3mount.spool.upload.resuming import Resuming
from s3mount.spool.upload.stale_uploads import StaleUploads
from s3mount.spool.upload.traffic import Traffic
from s3mount.spool.upload.zeros import Zeros
from s3mount.transfer.digest import md5_of
from s3mount.transfer.multipart import INVALID_PART, NO_SUCH_UPLOAD, bring_missing
from s3mount.transfer.parts import PartsUpload

log = logging.getLogger(__name__)


class MultipartSender:
    """All multipart uploads of one spool. At most ``parts_max`` parts are on their way at once.

    Each takes one of ``slots``, and begins when ``may_send`` returns.
    Where the store does not copy parts of what it has, they are fetched and sent.
    """

    def __init__(
        self,
        spool: Spool,
        store: Store,
        provider: ContentProvider,
        known: KnownCapabilities,
        kept: Kept,
        *,
        part_bytes: int,
        parts_max: int,
        prefix: str,
        may_send: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self._spool = spool
        self._may_send = may_send
        self._store = store
        self._provider = provider
        self._plan = PartPlan(part_bytes)
        self.slots = trio.CapacityLimiter(parts_max)
        self._background: Background | None = None
        self._kept = kept
        self._known = known
        self._early: list[Callable[[], Awaitable[None]]] = []
        self._beginning: dict[str, trio.Event] = {}
        self._stale_uploads = StaleUploads(spool, store)
        self.traffic = Traffic()
        self.zeros = Zeros(
            store, self._plan, self._stale_uploads, self.slots, self.traffic, known, prefix
        )
        self._resuming = Resuming(spool, store)
        self._resuming.take_over(self._new_upload)

    async def run(self) -> None:
        """Give background tasks a home, and abort uploads that nobody needs; cancel to stop."""
        async with trio.open_nursery() as nursery:
            self._background = Background(nursery)
            for task in self._early:
                self._background.start(task)
            self._early.clear()
            try:
                while True:
                    await attempt(self._stale_uploads.abort_all, otherwise=None)
                    await trio.sleep(stale_uploads.PERIOD_S)
            finally:
                self._background = None

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run ``task`` in the background, once the sender runs and until it stops."""
        if self._background is None:
            self._early.append(task)
        else:
            self._background.start(task)

    def abandon(self, upload: PartsUpload) -> None:
        """The upload is of no use any more: abort it in the background."""
        if upload.upload_id:
            self.start_soon(lambda: self._stale_uploads.abort(upload.key, upload.upload_id))

    # ------------------------------------------------------------------- parts

    async def begin(self, change: Put, blob: Blob, *, streamed: bool) -> None:
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

    async def _begin(self, change: Put, blob: Blob, *, streamed: bool) -> None:
        if streamed:
            await self._kept.learn(change)
            if not self._is_current(change, blob):
                raise TryAgain("the file changed its place before its upload began")
        upload = self._new_upload(change.key)
        begun = change.attributes
        headers = self._provider.headers_of(change, with_times=not streamed)
        holes = self.zeros.holes(blob, range(self._plan.count(blob.size)))
        upload.has_copies = blob.base is not None or bool(holes)
        upload.upload_id = await self._store.create_multipart(
            upload.key, headers, has_copies=upload.has_copies
        )
        crashpoint("upload: created")
        if not self._is_current(change, blob):
            self._spool.journal.upload_begun(upload.upload_id, upload.key)
            self.abandon(upload)
            raise TryAgain("the file changed its place while its upload began")
        change.upload_id = upload.upload_id
        change.upload_attributes, change.upload_streamed = begun, streamed
        if begun is not None:
            change.note_try(begun.ctime_ns)
        # Its row is written as a whole: recovery may have found more in the blob than the row told of.
        try:
            self._spool.journal.upload_begun(upload.upload_id, upload.key)
        except LocalDiskError:
            change.upload_id = ""
            self.abandon(upload)
            raise
        self._spool.save(change, makes_room=True)
        crashpoint("upload: noted")
        blob.upload = upload

    def _is_current(self, change: Put, blob: Blob) -> bool:
        return self._spool.changes.get(change.key) is change and change.blob_id == blob.id

    def _new_upload(self, key: Key) -> PartsUpload:
        upload = PartsUpload(key, self._plan)

        def forgot(number: int) -> None:
            self._spool.journal.part_changed(upload.upload_id, number)

        upload.on_forgotten(forgot)
        return upload

    async def send_part(self, blob: Blob, upload: PartsUpload, index: int) -> None:
        """Send one part that ``upload.begin`` was told of; the caller tells it ``ended``, however this ends."""
        await self._may_send()
        span = self._plan.part_range(index)
        stop = min(span.stop, blob.size)
        if stop < span.start:
            # Cut off before its turn came.
            return
        try:
            body = blob.body(span.start, stop)
            part = await self._store.upload_part(upload.key, upload.upload_id, index + 1, body)
        except (DamagedBodyError, DamagedBlockError) as error:
            raise damage_of(blob, span.start, stop, error) from error
        self.traffic.sent_bytes += body.length
        crashpoint("part: sent")
        if stop == min(span.stop, blob.size):
            self._arrived(blob, upload, index, part)

    def _arrived(self, blob: Blob, upload: PartsUpload, index: int, part: PartInfo) -> None:
        if upload.arrived(index, part) and blob.upload is upload:
            try:
                self._spool.journal.part_sent(upload.upload_id, part)
            except LocalDiskError as error:
                # After a kill it is found by its checksum.
                log.info("part %d of %r is not noted: %s", part.number, upload.key, error)

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
        self.traffic.copied_bytes += stop - span.start
        crashpoint("part: copied")
        self._arrived(blob, upload, index, part)

    async def _is_copied(self, blob: Blob, upload: PartsUpload, index: int) -> bool:
        """Copy a part; not when the base is gone: the cache may have its bytes. Raises S3MountError."""
        base = blob.base
        assert base is not None
        if self._known.seen.part_copies is False:
            return False
        try:
            await self._copy_part(blob, upload, index)
            return True
        except (PreconditionFailedError, NoSuchKeyError) as error:
            if error.code == NO_SUCH_UPLOAD:
                raise
        except (RejectedError, RangeError):
            # Some stores look at the range before the condition, and what replaced the base is shorter.
            try:
                there = await self._store.head(base.key, version_id=base.version_id)
            except NoSuchKeyError:
                return False
            if there.etag == base.etag:
                raise
        return False

    async def _bring(self, change: Put, blob: Blob, upload: PartsUpload, index: int) -> None:
        """Make S3 have part ``index``, by copying or by sending."""
        span = self._plan.part_range(index)
        stop = min(span.stop, blob.size)
        untouched = (
            blob.base is not None
            and stop <= blob.base_limit
            and not blob.extents.touches(span.start, stop)
        )
        try:
            if untouched and await self._is_copied(blob, upload, index):
                return
            if blob.missing(span.start, stop):
                await self._provider.fill(change, span.start, stop)
        except (PreconditionFailedError, NoSuchKeyError) as error:
            if error.code == NO_SUCH_UPLOAD:
                raise
            raise BaseGoneError(f"the version that it changes is gone: {error}") from error
        await self.send_part(blob, upload, index)

    # ---------------------------------------------------------------- completing

    async def send(self, change: Put, blob: Blob, condition: Condition) -> tuple[PutResult, int]:
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
            await self.begin(change, blob, streamed=False)
        upload = blob.upload
        if upload is not None and not _is_of(upload, change):
            # Somebody else's, who waited for the same stream to begin.
            raise TryAgain("the file changed its place while its upload began")
        try:
            if upload is not None and not upload.is_confirmed:
                await self._resuming.confirm(blob, upload)
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
                    await self._spool.durability.journal()
                    is_forced = True
            upload.completing = parts
            crashpoint("complete: before")
            try:
                result = await self._store.complete_multipart(
                    upload.key, upload.upload_id, parts, condition=condition
                )
            except ServerFaultError:
                # What Ceph 16 says when the upload is gone: the next try asks for its parts first.
                upload.is_confirmed = False
                raise
            except RejectedError as error:
                if error.code == INVALID_PART:
                    await self._after_invalid_part(change, blob, upload)
                raise
            crashpoint("complete: answered")
        except NoSuchKeyError as error:
            if error.code != NO_SUCH_UPLOAD or upload is None:
                raise
            result, parts = await self._completed_before(change, blob, upload)
        self._ended(change, blob, upload)
        return result, sum(part.size for part in parts)

    async def _after_invalid_part(self, change: Put, blob: Blob, upload: PartsUpload) -> None:
        """S3 has other parts than were named, as when an older request for one arrived late.

        Raises StaleUploadError, so that the next try sends those again; or all, where S3 has the parts
        and more: Ceph 16 refuses to leave those out that a file was cut before. And what ``confirm`` raises.
        """
        named = upload.completing
        await self._resuming.confirm(blob, upload)
        if upload.finished_parts(blob.size) == named:
            self.abandon(upload)
            if blob.upload is upload:
                blob.upload = None
                change.upload_id = ""
        raise StaleUploadError("S3 has other parts of the upload than were sent", key=upload.key)

    async def _completed_before(
        self, change: Put, blob: Blob, upload: PartsUpload
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
            is_of_this_upload = self._provider.written_at_ns(there.headers) == begun.ctime_ns
            has_these_parts = there.etag == multipart_etag(parts) or (
                parts == upload.completing
                and there.size == blob.size
                and not await self._is_md5(blob, parts[-1])
            )
            if is_of_this_upload and has_these_parts and upload.finished_parts(blob.size) == parts:
                blob.is_unsure = True
                return PutResult(there.etag, there.version_id, there.last_modified_ns), parts
        self._ended(change, blob, upload)
        raise StaleUploadError("the multipart upload is gone; it begins again", key=upload.key)

    async def _is_md5(self, blob: Blob, part: PartInfo) -> bool:
        """Do the parts' ETags tell of their bytes, as this one shows? Not with SSE-KMS, for one."""
        if not is_md5_etag(part.etag):
            return False
        start = self._plan.part_range(part.number - 1).start
        try:
            return (await md5_of(blob.body(start, start + part.size))).hex() == part.etag
        except (DamagedBodyError, DamagedBlockError):
            return True

    def _ended(self, change: Put, blob: Blob, upload: PartsUpload) -> None:
        self._spool.journal.upload_ended(upload.upload_id)
        if blob.upload is upload:
            blob.upload = None
        if change.upload_id == upload.upload_id:
            change.upload_id = ""

    def drop_unused(self, change: Put, blob: Blob) -> None:
        """An upload of which nothing arrived (or was taken back) is not worth going on with for a small file."""
        upload = blob.upload
        if upload is None or blob.size > self._plan.part_bytes or upload.sent or upload.sending:
            return
        self.abandon(upload)
        blob.upload = None
        change.upload_id = ""
        change.upload_attributes = None

    async def _send_missing(self, change: Put, blob: Blob, upload: PartsUpload) -> None:
        holes = self.zeros.holes(blob, upload.unsent(blob.size))
        async with self.zeros.lent(blob, upload, holes) as zeros:

            async def bring(index: int) -> None:
                if zeros is None or not await self._is_copied_hole(blob, upload, index, zeros):
                    await self._bring(change, blob, upload, index)

            await bring_missing(upload, blob.size, bring, self.slots)

    async def _is_copied_hole(
        self, blob: Blob, upload: PartsUpload, index: int, zeros: ContentRef
    ) -> bool:
        """Let S3 copy a part that is nothing but hole from ``zeros``. Raises S3MountError."""
        span = self._plan.part_range(index)
        stop = min(span.stop, blob.size)
        length = stop - span.start
        if not 0 < length <= zeros.size or not blob.is_hole(span.start, stop):
            return False
        part = await self.zeros.copy(upload, index, zeros, length)
        if part is not None:
            self.traffic.copied_bytes += length
            crashpoint("part: copied")
            self._arrived(blob, upload, index, part)
        return part is not None


def _is_of(upload: PartsUpload, change: Put) -> bool:
    """Was it begun for this very change? After a move and back it was for an earlier one of the key."""
    return upload.key == change.key and upload.upload_id == change.upload_id

"""Into the bucket: one PUT, or parts in parallel, gone on with after a kill."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import msgspec
import trio

from s3mount.config import PART_BYTES_MAX, PART_BYTES_MIN
from s3mount.errors import (
    AccessDeniedError,
    ChecksumError,
    NoSuchKeyError,
    PartSizeError,
    PreconditionFailedError,
    RejectedError,
    SeveralUploadsError,
    UploadExistsError,
)
from s3mount.flow.parts import PARTS_MAX, PartPlan
from s3mount.refs import (
    ANY,
    ByteRange,
    Condition,
    Key,
    ObjectHeaders,
    PartInfo,
    PutResult,
    UploadInfo,
)
from s3mount.s3.store import Store
from s3mount.transfer.ledger import Ledger, Record
from s3mount.transfer.multipart import (
    INVALID_PART,
    NO_SUCH_UPLOAD,
    abort_quietly,
    adopt,
    bring_missing,
    confirm,
)
from s3mount.transfer.parts import PartsUpload
from s3mount.transfer.source import FileSource, Source, SourceChangedError

log = logging.getLogger(__name__)

OnBytes = Callable[[int], None]


class Resume(msgspec.Struct, frozen=True):
    """How an upload in parts goes on with an earlier one.

    ``force`` drops all unfinished uploads of the key first. ``is_strict``: one of somebody else that cannot be gone
    on with is an error, where it else is left alone.
    """

    force: bool = False
    is_strict: bool = False


GO_ON = Resume()


def _nothing(n: int) -> None:
    pass


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
    on_sent: OnBytes = _nothing,
) -> PutResult:
    """``upload`` of the first ``size`` bytes of ``path``, which leaves no unfinished upload behind."""
    return await upload(
        store,
        FileSource(path, size),
        key,
        headers,
        condition=condition,
        plan=PartPlan(part_bytes),
        slots=slots,
        on_sent=on_sent,
    )


async def upload(
    store: Store,
    source: Source,
    key: Key,
    headers: ObjectHeaders,
    *,
    plan: PartPlan,
    slots: trio.CapacityLimiter,
    condition: Condition = ANY,
    ledger: Ledger | None = None,
    resume: Resume = GO_ON,
    on_sent: OnBytes = _nothing,
    on_resumed: OnBytes = _nothing,
) -> PutResult:
    """Upload ``source``: by one PUT where it is no larger than a part, else in parts.

    ``slots`` bounds the requests that carry a body, over all uploads that share it. ``on_sent(n)`` is called
    with the bytes of each body that the store confirmed. With a ``ledger``, which must be entered, an upload in
    parts that was cut off is gone on with, ``on_resumed(n)`` hears how many bytes S3 has already, and errors and
    cancellation leave it there for the next call; without one nothing is left behind unless the store cannot be
    reached for that either.

    Raises the store's errors; ChecksumError (retryable) when the source changes each time while it is sent;
    RejectedError and SourceError when it cannot be read; PartSizeError for more than 10,000 parts;
    UploadExistsError and SeveralUploadsError as ``Resume`` says.
    """
    if source.size <= plan.part_bytes:
        async with slots, source.part(ByteRange(0, source.size)) as body:
            result = await store.put(key, body, headers, condition=condition)
        on_sent(source.size)
        return result
    if plan.count(source.size) > PARTS_MAX:
        raise PartSizeError(
            f"more than {PARTS_MAX:,} parts of {plan.part_bytes} bytes: use larger ones"
        )
    run = _Upload(store, source, key, headers, slots, on_sent)
    # One that is gone, or whose source changed while it was sent, begins anew once.
    for is_last in (False, True):
        try:
            if ledger is None:
                await run.begin(plan)
            else:
                on_resumed(await run.begin_or_resume(plan, ledger, resume))
                resume = msgspec.structs.replace(resume, force=False)
            result = await run.send(condition)
        except (ChecksumError, NoSuchKeyError, PreconditionFailedError) as error:
            is_gone = isinstance(error, NoSuchKeyError) and error.code == NO_SUCH_UPLOAD
            await run.give_up()
            if ledger is not None:
                ledger.write(None)
            if is_last or not (is_gone or isinstance(error, SourceChangedError)):
                raise
            log.info("the upload of %r begins anew: %s", key, error)
        except BaseException:
            if ledger is None:
                await run.give_up()
            raise
        else:
            if ledger is not None:
                ledger.write(None)
            return result
    raise AssertionError("unreachable")


class _Upload:
    """Brings the bytes of a source into one upload, and completes it."""

    def __init__(
        self,
        store: Store,
        source: Source,
        key: Key,
        headers: ObjectHeaders,
        slots: trio.CapacityLimiter,
        on_sent: OnBytes,
    ) -> None:
        self._store = store
        self._source = source
        self._key = key
        self._headers = headers
        self._slots = slots
        self._on_sent = on_sent
        self._state = ""
        self._parts: PartsUpload

    # --------------------------------------------------------------- beginning

    async def begin(self, plan: PartPlan) -> None:
        """Begin a new upload."""
        self._parts = PartsUpload(self._key, plan)
        self._state = await self._source.state()
        self._parts.upload_id = await self._store.create_multipart(self._key, self._headers)

    async def begin_or_resume(self, plan: PartPlan, ledger: Ledger, resume: Resume) -> int:
        """Go on with the upload that the ledger or S3 knows, or begin one; the bytes that S3 has of it."""
        self._parts = PartsUpload(self._key, plan)
        self._state = await self._source.state()
        if await self._goes_on(ledger, plan, resume):
            return self._sent_bytes()
        if await self._adopts_foreign(resume):
            plan = self._parts.plan
        else:
            await self.begin(plan)
        ledger.write(
            Record(
                self._parts.upload_id,
                plan.part_bytes,
                plan.step_parts,
                self._state,
                _digest(self._headers),
                self._key,
            )
        )
        return self._sent_bytes()

    def _sent_bytes(self) -> int:
        return sum(part.size for part in self._parts.sent.values())

    async def _goes_on(self, ledger: Ledger, plan: PartPlan, resume: Resume) -> bool:
        """Is there an upload of this very source in the ledger? One of another is aborted."""
        record = ledger.read()
        if record is None:
            return False
        self._parts.upload_id = record.upload_id
        is_same = (record.source, record.headers) == (self._state, _digest(self._headers))
        is_same = (
            is_same
            and not resume.force
            and plan
            in (
                PartPlan(record.part_bytes),
                PartPlan(record.part_bytes, record.step_parts),
            )
        )
        if is_same:
            self._parts.plan = PartPlan(record.part_bytes, record.step_parts)
            try:
                there, _ = await confirm(self._store, self._parts)
                await self._take(there, is_ours=True)
                return True
            except NoSuchKeyError:
                pass
        else:
            log.info("the upload of %r begins anew", self._key)
            await self.give_up()
        ledger.write(None)
        return False

    async def _take(self, there: list[PartInfo], *, is_ours: bool) -> None:
        """Take as sent those of the parts that hold the source's bytes."""
        if isinstance(self._source, FileSource):
            await adopt(self._parts, there, self._source.size, self._source.body, _no_note)
        elif is_ours:
            # They came from this very source, and were held against its length and checksum when they were sent.
            for part in there:
                index = part.number - 1
                span = self._parts.span(index, self._source.size)
                if part.size == span.length:
                    self._parts.sent[index] = part

    async def _adopts_foreign(self, resume: Resume) -> bool:
        """Go on with the one upload of the key that somebody else began, where it is of these bytes."""
        found = await self._unfinished()
        if resume.force:
            for upload, _ in found:
                await self._store.abort_multipart(self._key, upload.upload_id)
            return False
        # One without parts holds nothing that could be gone on with, or lost.
        found = [(upload, parts) for upload, parts in found if parts]
        if len(found) > 1:
            raise SeveralUploadsError(
                f"the key has {len(found)} unfinished uploads: --force drops them"
            )
        for upload, parts in found:
            plan = constant_plan(parts)
            if plan is not None and plan.count(self._source.size) <= PARTS_MAX:
                self._parts = PartsUpload(self._key, plan)
                self._parts.upload_id = upload.upload_id
                await self._take(parts, is_ours=False)
                if len(self._parts.sent) == len(parts):
                    return True
            if resume.is_strict:
                raise UploadExistsError(
                    "the key has an unfinished upload of other bytes, or with parts of several sizes: "
                    "--force drops it"
                )
        return False

    async def _unfinished(self) -> list[tuple[UploadInfo, list[PartInfo]]]:
        try:
            uploads = await self._store.list_uploads(self._key)
        except (AccessDeniedError, RejectedError) as error:
            log.info("unfinished uploads of %r cannot be listed: %s", self._key, error)
            return []
        found = []
        for upload in uploads:
            if upload.key == self._key:
                try:
                    parts = await self._store.list_parts(self._key, upload.upload_id)
                except NoSuchKeyError:
                    continue
                found.append((upload, parts))
        return found

    # ----------------------------------------------------------------- sending

    async def send(self, condition: Condition) -> PutResult:
        """Send what S3 lacks, and complete the upload."""
        await self._send_missing()
        if await self._source.state() != self._state:
            raise SourceChangedError("it was changed while it was sent", key=self._key)
        try:
            return await self._complete(condition)
        except RejectedError as error:
            # S3 has other parts than were sent, as when an older request arrived late?
            if error.code != INVALID_PART or (await confirm(self._store, self._parts))[1]:
                raise
        await self._send_missing()
        return await self._complete(condition)

    async def _send_missing(self) -> None:
        await bring_missing(self._parts, self._source.size, self._send, self._slots)

    async def _send(self, index: int) -> None:
        upload = self._parts
        async with self._source.part(upload.span(index, self._source.size)) as body:
            part = await self._store.upload_part(upload.key, upload.upload_id, index + 1, body)
        upload.arrived(index, part)
        self._on_sent(part.size)

    async def _complete(self, condition: Condition) -> PutResult:
        parts = self._parts.finished_parts(self._source.size)
        assert parts is not None
        return await self._store.complete_multipart(
            self._key, self._parts.upload_id, parts, condition=condition
        )

    async def give_up(self) -> None:
        """Abort it, whatever comes of that."""
        await abort_quietly(self._store, self._parts)


def constant_plan(parts: list[PartInfo]) -> PartPlan | None:
    """How an upload with these parts was cut, if all but the last one have one size."""
    sizes = [part.size for part in sorted(parts, key=lambda part: part.number)]
    largest = max(sizes)
    if any(size != largest for size in sizes[:-1]) or not (
        PART_BYTES_MIN <= largest <= PART_BYTES_MAX
    ):
        return None
    return PartPlan(largest, PARTS_MAX)


def _digest(headers: ObjectHeaders) -> str:
    return hashlib.sha256(msgspec.json.encode(headers, order="sorted")).hexdigest()[:16]


def _no_note(part: PartInfo) -> None:
    pass

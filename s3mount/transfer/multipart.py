"""The multipart upload of the mount's spool and of the commands: sending what is missing, and what S3 has of it.

``PartsUpload`` is the state of one; what is done with it is the same for both, where its bytes come from is not.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import trio

from s3mount.errors import NoSuchKeyError, S3MountError
from s3mount.refs import Body, ByteRange, PartInfo
from s3mount.s3.store import Store
from s3mount.tasks import in_parallel
from s3mount.transfer.digest import HASHING_THREADS, crc64nvme_of, is_part
from s3mount.transfer.parts import PartsUpload

log = logging.getLogger(__name__)

NO_SUCH_UPLOAD = "NoSuchUpload"
"""S3's code when the upload, not the key, is what it does not know."""
INVALID_PART = "InvalidPart"
"""S3's code when a part that is to be completed is not there, or is another."""
PARTS_MAX_LEAST = 8
RESENT_SHARE = 11
"""Of one file's parts an eleventh are on their way at once, or ``PARTS_MAX_LEAST`` where that is more: what is cut
off by a kill has to be sent again, and is less than a tenth of a file of 100 parts."""
STILL_SENDING_S = 0.005
ABORT_S = 15.0
"""How long a failed or cancelled upload may take to tidy up behind itself. What is left then is
found by ``Store.list_uploads``."""


async def confirm(store: Store, upload: PartsUpload) -> tuple[list[PartInfo], bool]:
    """Take as sent only what S3 has; all parts that it has, and whether it has all that were taken as sent.

    Raises NoSuchKeyError with NO_SUCH_UPLOAD when the upload is gone, and the store's other errors.
    """
    try:
        there = await store.list_parts(upload.key, upload.upload_id)
    except NoSuchKeyError as error:
        # Ceph 16 names the key where it means the upload.
        raise NoSuchKeyError(
            str(error), key=upload.key, status=error.status, code=NO_SUCH_UPLOAD
        ) from error
    etags = {part.number - 1: part.etag for part in there}
    missing = [i for i, part in upload.sent.items() if etags.get(i) != part.etag]
    for index in missing:
        del upload.sent[index]
    upload.is_confirmed = True
    return there, not missing


async def adopt(
    upload: PartsUpload,
    there: Iterable[PartInfo],
    size: int,
    body_of: Callable[[ByteRange], Body | None],
    note: Callable[[PartInfo], None],
) -> None:
    """Take as sent those of the parts in S3 that are not yet, and hold the source's bytes.

    Their checksum or MD5 shows it; parts of which neither is told are sent again. ``body_of`` gives the bytes of a
    part, ``None`` where they are not here; ``note`` hears of each part that is taken. Bytes that cannot be read
    are no error here.
    """
    unsent = set(upload.unsent(size))
    has_checksums = all(part.checksum is not None for part in upload.sent.values())

    async def look(part: PartInfo) -> None:
        index = part.number - 1
        if index not in unsent:
            return
        span = upload.span(index, size)
        # As if it were on its way: what is written meanwhile takes it back.
        if part.size != span.length or not upload.begin(index):
            return
        try:
            body = body_of(span)
            if body is None:
                return
            holds = await is_part(body, part)
            if holds and part.checksum is None and has_checksums:
                # Some stores do not list what they demand when the upload is completed.
                part = msgspec.structs.replace(part, checksum=await crc64nvme_of(body))
            if holds and upload.arrived(index, part):
                note(part)
        except (S3MountError, OSError) as error:
            log.info("part %d of %r is sent again: %s", part.number, upload.key, error)
        finally:
            upload.ended(index)

    await in_parallel(trio.CapacityLimiter(HASHING_THREADS), there, look)


async def bring_missing(
    upload: PartsUpload,
    size: int,
    bring: Callable[[int], Awaitable[None]],
    slots: trio.CapacityLimiter,
) -> None:
    """Await ``bring(index)`` for every part that S3 lacks, some at once, each in one of ``slots``.

    The first S3MountError or OSError cancels the others and is raised. Parts that somebody else is sending may be
    on their way still when it returns.
    """
    errors: list[Exception] = []

    async def work(index: int, worker: object) -> None:
        try:
            await bring(index)
        except (S3MountError, OSError) as error:
            errors.append(error)
            nursery.cancel_scope.cancel()
        finally:
            upload.ended(index)
            slots.release_on_behalf_of(worker)
            own_slots.release_on_behalf_of(worker)

    own_slots = trio.CapacityLimiter(max(PARTS_MAX_LEAST, upload.plan.count(size) // RESENT_SHARE))
    async with trio.open_nursery() as nursery:
        for index in upload.unsent(size):
            worker = object()
            await own_slots.acquire_on_behalf_of(worker)
            await slots.acquire_on_behalf_of(worker)
            if upload.begin(index):
                nursery.start_soon(work, index, worker)
            else:
                slots.release_on_behalf_of(worker)
                own_slots.release_on_behalf_of(worker)
        if not nursery.child_tasks and upload.sending:
            await trio.sleep(STILL_SENDING_S)
    if errors:
        raise errors[0]


async def abort_quietly(store: Store, upload: PartsUpload) -> None:
    """Abort in the way out of another error, which is the one that counts. Cannot be cancelled."""
    if not upload.upload_id:
        return
    with trio.move_on_after(ABORT_S, shield=True):
        try:
            await store.abort_multipart(upload.key, upload.upload_id)
        except S3MountError as error:
            log.warning("an unfinished upload of %r stays in the bucket: %s", upload.key, error)
    upload.upload_id = ""

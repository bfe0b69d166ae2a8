"""Going on with the multipart uploads of an earlier run: which of their parts S3 has.

The journal names parts whose answer was noted. Of the others, those that were on their way when
the run ended, some arrived: they are kept when it can be shown that they hold the blob's bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import trio

from s3mount.background import contained
from s3mount.crashpoints import crashpoint
from s3mount.errors import NoSuchKeyError, S3MountError
from s3mount.flow.parts import PartPlan
from s3mount.refs import PartInfo
from s3mount.s3.store import Store
from s3mount.spool.blobs import Blob
from s3mount.spool.changes import Put
from s3mount.spool.parts import PartsUpload
from s3mount.spool.spool import Spool
from s3mount.tasks import in_parallel
from s3mount.transfer.digest import HASHING_THREADS, crc64nvme_of, is_part

log = logging.getLogger(__name__)

NO_SUCH_UPLOAD = "NoSuchUpload"
"""S3's code when the upload, not the key, is what it does not know."""

NewUpload = Callable[[str], PartsUpload]


class Resuming:
    """Brings what is noted of uploads together with what S3 has of them."""

    def __init__(self, spool: Spool, store: Store, plan: PartPlan) -> None:
        self._spool = spool
        self._store = store
        self._plan = plan

    def take_over(self, new_upload: NewUpload) -> None:
        """Let the blobs that an earlier run left know which of their parts were sent, before anybody writes."""
        for change in self._spool.changes.values():
            blob = self._spool.blob_of(change)
            if not isinstance(change, Put) or not change.upload_id or blob is None:
                continue
            with contained(f"the upload of {change.key!r} begins again"):
                blob.upload = self._earlier_upload(change, blob, new_upload)
            if blob.upload is None:
                change.upload_id = ""
            # What S3 has of it and what a power cut left of it need not be of one state.
            blob.is_unsure = True

    def _earlier_upload(self, change: Put, blob: Blob, new_upload: NewUpload) -> PartsUpload:
        upload = new_upload(change.key)
        upload.upload_id = change.upload_id
        upload.is_confirmed = False
        for index, part in self._spool.journal.parts(change.upload_id).items():
            if part.size == self._size_of(blob, index):
                upload.sent[index] = part
        return upload

    def _size_of(self, blob: Blob, index: int) -> int:
        span = self._plan.part_range(index)
        return min(span.stop, blob.size) - span.start

    async def confirm(self, blob: Blob, upload: PartsUpload) -> bool:
        """Take as sent what S3 has of ``upload``, and nothing else; was it all that was taken as sent before?

        Raises NoSuchKeyError when the upload is gone, and what else the store or the journal raises.
        """
        try:
            there = await self._store.list_parts(upload.key, upload.upload_id)
        except NoSuchKeyError as error:
            # Ceph 16 names the key where it means the upload.
            raise NoSuchKeyError(
                str(error), key=upload.key, status=error.status, code=NO_SUCH_UPLOAD
            ) from error
        confirmed = {part.number - 1: part.etag for part in there}
        missing = [i for i, part in upload.sent.items() if confirmed.get(i) != part.etag]
        for index in missing:
            del upload.sent[index]
        upload.is_confirmed = True
        crashpoint("recovery: parts confirmed")
        await self._adopt(blob, upload, there)
        return not missing

    async def _adopt(self, blob: Blob, upload: PartsUpload, there: list[PartInfo]) -> None:
        """Take as sent those of the parts in S3 that are not noted and hold the blob's bytes.

        Their checksum or MD5 shows it. Parts of which neither is told are sent again, and so are
        parts with bytes of a base, which S3 copies.
        """
        unsent = set(upload.unsent(blob.size))
        has_checksums = all(part.checksum is not None for part in upload.sent.values())

        async def look(part: PartInfo) -> None:
            index = part.number - 1
            span = self._plan.part_range(index)
            stop = span.start + part.size
            if index not in unsent:
                return
            if part.size != self._size_of(blob, index) or blob.missing(span.start, stop):
                return
            # As if it were on its way: what is written meanwhile takes it back.
            if not upload.begin(index):
                return
            try:
                body = blob.body(span.start, stop)
                holds = await is_part(body, part)
                if holds and part.checksum is None and has_checksums:
                    # Some stores do not list what they demand when the upload is completed.
                    part = msgspec.structs.replace(part, checksum=await crc64nvme_of(body))
                if holds and upload.arrived(index, part) and blob.upload is upload:
                    self._spool.journal.part_sent(upload.upload_id, part)
            except (S3MountError, OSError) as error:
                log.info("part %d of %r is sent again: %s", part.number, upload.key, error)
            finally:
                upload.ended(index)

        await in_parallel(trio.CapacityLimiter(HASHING_THREADS), there, look)
        crashpoint("recovery: parts adopted")

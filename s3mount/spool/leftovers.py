"""Multipart uploads that nobody goes on with: aborted, so that none is left to be paid for.

Only uploads whose id the journal knows. One whose CreateMultipartUpload was answered to nobody (a
lost answer that was asked for again, a kill at that moment) stays in the bucket, without parts and so without cost:
ListMultipartUploads tells nothing that would prove it ours and not another client's that writes
the same key, which must never be aborted. A lifecycle rule of the bucket takes such ones away.
"""

from __future__ import annotations

import logging

from s3mount.errors import S3MountError
from s3mount.refs import Key
from s3mount.s3.store import Store
from s3mount.spool.spool import Spool
from s3mount.steps import reach

log = logging.getLogger(__name__)

PERIOD_S = 60.0
"""How often uploads that could not be aborted at once are looked for."""


class Leftovers:
    """The uploads of one spool that are of no use any more."""

    def __init__(self, spool: Spool, store: Store) -> None:
        self._spool = spool
        self._store = store

    async def abort(self, key: Key, upload_id: str) -> None:
        """Abort an upload; what cannot be aborted now is by ``abort_all``. Raises LocalDiskError."""
        try:
            await self._store.abort_multipart(key, upload_id)
        except S3MountError as error:
            log.info("multipart upload %s of %r is left for later: %s", upload_id, key, error)
            return
        reach("abort: answered")
        self._spool.journal.upload_ended(upload_id)

    async def abort_all(self) -> None:
        """Abort uploads that no change goes on with, of this run and of earlier ones. Raises LocalDiskError."""
        for upload_id, key in self._spool.journal.uploads():
            if upload_id not in self._wanted():
                await self.abort(key, upload_id)

    def _wanted(self) -> set[str]:
        blobs = self._spool.live_blobs.values()
        going_on = {blob.upload.upload_id for blob in blobs if blob.upload is not None}
        return going_on | {change.upload_id for change in self._spool.changes.values()}

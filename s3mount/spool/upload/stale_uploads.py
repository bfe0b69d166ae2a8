"""Stale multipart uploads, with which nothing goes on, and temporary objects: none is left to be paid for.

Only uploads whose id the journal knows. One whose CreateMultipartUpload was answered to nobody (a
lost answer that was asked for again, a kill at that moment) stays in the bucket, without parts and so without cost:
ListMultipartUploads tells nothing that would prove it ours and not another client's that writes
the same key, which must never be aborted. A lifecycle rule of the bucket takes such ones away.

A temporary object is noted in the journal among the uploads, under its key in place of an upload's id.
"""

from __future__ import annotations

import logging

from s3mount.crashpoints import crashpoint
from s3mount.errors import (
    AccessDeniedError,
    ExpiredCredentialsError,
    NoSuchKeyError,
    S3MountError,
)
from s3mount.refs import ContentRef, Key
from s3mount.s3.store import Store
from s3mount.spool.journal.changes import Put
from s3mount.spool.spool import Spool

log = logging.getLogger(__name__)

PERIOD_S = 60.0
"""How often what could not be aborted or removed at once is looked for."""
VERSIONS_MAX = 8
"""So many versions of a temporary object are removed at a time: repeated requests may have made more than one."""


class StaleUploads:
    """The uploads and temporary objects of one spool that are of no use any more."""

    def __init__(self, spool: Spool, store: Store) -> None:
        self._spool = spool
        self._store = store
        self._used: set[Key] = set()

    def note_object(self, key: Key) -> None:
        """A temporary object is about to be put; after a kill the next start removes it. Raises LocalDiskError."""
        self._spool.journal.upload_begun(key, key)
        self._used.add(key)

    def let_go(self, key: Key) -> None:
        """Nobody needs the temporary object: ``abort_all`` removes it, if it is there."""
        self._used.discard(key)

    async def remove_object(self, key: Key, made: ContentRef | None = None) -> None:
        """Remove a temporary object; what cannot be removed now is by ``abort_all``. Raises LocalDiskError.

        ``made`` is all that was put; where that is not known, every version goes that is found.
        """
        self.let_go(key)
        try:
            if made is not None:
                await self._store.delete(key, version_id=made.version_id)
            else:
                await self._remove_found(key)
        except S3MountError as error:
            log.info("the temporary object %r is left for later: %s", key, error)
            return
        crashpoint("zeros: removed")
        self._spool.journal.upload_ended(key)

    async def _remove_found(self, key: Key) -> None:
        for _ in range(VERSIONS_MAX):
            try:
                there = await self._store.head(key)
            except ExpiredCredentialsError:
                raise
            except (NoSuchKeyError, AccessDeniedError):
                # Who may not list is refused to see what is not there.
                return
            await self._store.delete(key, version_id=there.version_id)

    async def abort(self, key: Key, upload_id: str) -> None:
        """Abort an upload; what cannot be aborted now is by ``abort_all``. Raises LocalDiskError."""
        try:
            await self._store.abort_multipart(key, upload_id)
        except S3MountError as error:
            log.info("multipart upload %s of %r is left for later: %s", upload_id, key, error)
            return
        crashpoint("abort: answered")
        self._spool.journal.upload_ended(upload_id)

    async def abort_all(self) -> None:
        """Abort uploads that no change goes on with, of this run and of earlier ones, and remove objects.

        Raises LocalDiskError.
        """
        for upload_id, key in self._spool.journal.uploads():
            if upload_id in self._wanted():
                continue
            if upload_id == key:
                await self.remove_object(key)
            else:
                await self.abort(key, upload_id)

    def _wanted(self) -> set[str]:
        blobs = self._spool.live_blobs.values()
        going_on = {blob.upload.upload_id for blob in blobs if blob.upload is not None}
        changes = self._spool.changes.values()
        pending = {change.upload_id for change in changes if isinstance(change, Put)}
        return going_on | self._used | pending

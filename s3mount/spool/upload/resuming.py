"""Going on with the multipart uploads of an earlier run: which of their parts S3 has.

The journal names parts whose answer was noted. Of the others, those that were on their way when
the run ended, some arrived: they are kept when it can be shown that they hold the blob's bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from s3mount.background import contained
from s3mount.crashpoints import crashpoint
from s3mount.refs import Body, ByteRange, PartInfo
from s3mount.s3.store import Store
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import Put
from s3mount.spool.spool import Spool
from s3mount.transfer import multipart
from s3mount.transfer.parts import PartsUpload

NewUpload = Callable[[str], PartsUpload]


class Resuming:
    """Brings what is noted of uploads together with what S3 has of them."""

    def __init__(self, spool: Spool, store: Store) -> None:
        self._spool = spool
        self._store = store

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
            if part.size == upload.span(index, blob.size).length:
                upload.sent[index] = part
        return upload

    async def confirm(self, blob: Blob, upload: PartsUpload) -> bool:
        """Take as sent what S3 has of ``upload``, and nothing else; was it all that was taken as sent before?

        Raises NoSuchKeyError when the upload is gone, and what else the store or the journal raises. Parts with
        bytes of a base are sent again: S3 copies them.
        """

        def body_of(span: ByteRange) -> Body | None:
            is_whole = not blob.missing(span.start, span.stop)
            return blob.body(span.start, span.stop) if is_whole else None

        def note(part: PartInfo) -> None:
            if blob.upload is upload:
                self._spool.journal.part_sent(upload.upload_id, part)

        there, is_all = await multipart.confirm(self._store, upload)
        crashpoint("recovery: parts confirmed")
        await multipart.adopt(upload, there, blob.size, body_of, note)
        crashpoint("recovery: parts adopted")
        return is_all

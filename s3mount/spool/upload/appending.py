"""What only grew at its end goes to S3 by an append, where the store takes one: only what is new is sent.

An append leaves what is stored beside the object as it was. Where that has no mtime, LastModified is the
time of the append, as it is of an upload that began while the file was written; else the attributes follow by
a copy inside S3, which sends nothing either.
"""

from __future__ import annotations

import logging

from s3mount.crashpoints import crashpoint
from s3mount.errors import (
    DamagedBodyError,
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
)
from s3mount.refs import Body, ByteRange, ContentRef, ObjectInfo, PutResult
from s3mount.s3.checksums import crc64nvme
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.blobs.block_checksums import DamagedBlockError
from s3mount.spool.journal.changes import Put
from s3mount.spool.send_errors import Stored, TryAgain, damage_of
from s3mount.spool.spool import Spool
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.spool.upload.provider import ContentProvider
from s3mount.spool.upload.traffic import Traffic

log = logging.getLogger(__name__)

APPENDED_BYTES_MAX = 16 << 20
"""More at once is left to an upload in parts, which goes on where it was interrupted."""
OVERLAP_BYTES_MAX = 128 << 10
"""So much before the old end may be written anew, to be compared with what was there."""
MARK = "append "
"""Begins the note of a try in ``Change.tried``: from where to where it adds, and the CRC64NVME of that."""
NO_APPENDS = frozenset((405, 501))
"""What a store answers that knows no write offset."""


class Appends:
    """Appends of ``spool``'s changes to objects of ``store``, where that was seen to append."""

    def __init__(
        self,
        spool: Spool,
        store: Store,
        provider: ContentProvider,
        known: KnownCapabilities,
        traffic: Traffic,
    ) -> None:
        self._spool = spool
        self._traffic = traffic
        self._store = store
        self._provider = provider
        self._known = known
        self._is_refused = False

    def may(self, change: Put, blob: Blob) -> bool:
        """Is ``change`` nothing but more bytes behind what S3 has under its key?"""
        base = blob.base
        if self._known.seen.appends is not True or self._is_refused:
            return False
        if base is None or blob.upload is not None or change.headers is None:
            return False
        is_in_place = base.key == change.key and base.etag == change.expected
        before, behind = base.size - blob.changed_from, blob.size - base.size
        is_little = before <= OVERLAP_BYTES_MAX and behind <= APPENDED_BYTES_MAX
        return is_in_place and blob.is_longer and is_little

    async def send(self, change: Put, blob: Blob) -> Stored | None:
        """Add to S3's object what ``blob`` has more; ``None``: it has to be sent whole. Raises TryAgain, StoreError."""
        base = blob.base
        assert base is not None
        seq, stop = change.seq, blob.size
        if blob.changed_from < base.size and not await self._is_rewritten(change, blob, base):
            return None
        changed_from = blob.changed_from
        crc = crc64nvme(blob.read(base.size, stop - base.size))
        change.note_try(f"{MARK}{base.size} {stop} {crc}")
        self._spool.save(change)
        await self._spool.durability.journal()
        self._spool.must_be_current(change)
        if blob.base != base or change.seq != seq or blob.size != stop:
            raise TryAgain("changed before it was sent")
        # What is written from here on is not on its way.
        blob.changed_from = stop
        try:
            result = await self._append(blob, base, stop)
        except BaseException as error:
            blob.changed_from = min(blob.changed_from, changed_from)
            if not isinstance(error, RejectedError):
                raise
            log.info("%r is sent whole, as S3 adds nothing to it: %s", change.key, error.describe())
            self._is_refused |= error.status in NO_APPENDS
            return None
        crashpoint("put: answered")
        return self._done(change, blob, Stored(result, stop))

    async def _is_rewritten(self, change: Put, blob: Blob, base: ContentRef) -> bool:
        """Are the last bytes of ``base`` written anew as they were? So they are by the kernel, in whole pages."""
        start, seq = blob.changed_from, change.seq
        try:
            before = await self._provider.read_base(base, start, base.size)
        except (PreconditionFailedError, NoSuchKeyError):
            return False
        if change.seq != seq or blob.base != base or blob.changed_from != start:
            raise TryAgain("changed while it was compared")
        if before != blob.read(start, base.size - start):
            return False
        blob.changed_from = base.size
        return True

    async def _append(self, blob: Blob, base: ContentRef, stop: int) -> PutResult:
        """One append of what is behind ``base``. Raises S3MountError."""
        is_small = stop - base.size <= INLINE_BODY_BYTES_MAX
        blob.is_being_sent = not is_small
        try:
            body: Body = blob.body(base.size, stop)
            if is_small:
                # Read at once, so that a write meanwhile cannot mix two states.
                blob.check(base.size, stop)
                body = blob.read(base.size, stop - base.size)
            result = await self._store.append(base, body)
            self._traffic.sent_bytes += stop - base.size
            return result
        except (DamagedBodyError, DamagedBlockError) as error:
            raise damage_of(blob, base.size, stop, error) from error
        finally:
            blob.is_being_sent = False
            if blob.is_replaced:
                self._spool.drop_blob(blob)

    def _done(self, change: Put, blob: Blob, stored: Stored) -> Stored:
        """S3 has more of ``blob`` now: the rest, if there is any, goes behind that.

        One that needs no base any more, as it has another name by now, gets none: nothing would keep it there.
        """
        change.upload_attributes, change.upload_streamed = self._provider.carried_by(change)
        if blob.base is not None and blob.changed_from >= stored.size:
            blob.base = stored.ref(change.key)
            blob.base_limit = stored.size
        return stored

    async def made(self, there: ObjectInfo) -> bytes | None:
        """The bytes that an append of which nothing was heard added to ``there``; ``None``: no such one made it.

        Raises StoreError.
        """
        change = self._spool.changes.get(there.key)
        marks = [each for each in (change.tried if change else ()) if str(each).startswith(MARK)]
        for mark in marks:
            start, stop, crc = str(mark).removeprefix(MARK).split()
            if there.size == int(stop):
                data = await self._tail(there, int(start))
                if data is not None and crc64nvme(data) == crc:
                    return data
        return None

    async def settled(self, change: Put, there: ObjectInfo) -> Stored | None:
        """``there``, if an append of which nothing was heard made it just what ``change`` is. Raises StoreError."""
        blob = self._spool.live_blobs.get(change.blob_id)
        added = await self.made(there)
        if added is None or blob is None or blob.base is None or blob.base.key != change.key:
            return None
        start, base = there.size - len(added), blob.base
        # A reader may have found it first, and reads what is below the blob from there since.
        is_base = base.size == start or base.etag == there.etag
        is_longer = is_base and blob.base_limit == start < blob.size == there.size
        if not is_longer or blob.read(start, len(added)) != added:
            return None
        if start - OVERLAP_BYTES_MAX <= blob.changed_from < start:
            # The base is gone: what has it now, has its bytes there.
            _, before = await self._store.get(
                there.key,
                byte_range=ByteRange(blob.changed_from, start - blob.changed_from),
                if_match=there.etag,
            )
            if before != blob.read(blob.changed_from, start - blob.changed_from):
                return None
        elif blob.changed_from < start:
            return None
        blob.is_unsure = True
        result = PutResult(there.etag, there.version_id, there.last_modified_ns)
        return self._done(change, blob, Stored(result, there.size))

    async def _tail(self, there: ObjectInfo, start: int) -> bytes | None:
        """The object from ``start`` on; ``None`` when it is another by now. Raises StoreError."""
        found = b""
        while start < there.size:
            span = ByteRange(start, min(INLINE_BODY_BYTES_MAX, there.size - start))
            try:
                _, data = await self._store.get(there.key, byte_range=span, if_match=there.etag)
            except (NoSuchKeyError, PreconditionFailedError):
                return None
            found += data
            start = span.stop
        return found

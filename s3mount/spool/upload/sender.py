"""One try to bring S3 to what a change says: put, copy or delete, under the condition that is due.

What S3 refuses is looked at here: whether an earlier try of our own made what is there, or
somebody else. What follows from the outcome is the uploader's business.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

import trio

from s3mount.crashpoints import crashpoint
from s3mount.errors import (
    AccessDeniedError,
    ArchivedError,
    ConflictError,
    DamagedBodyError,
    InternalError,
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
    S3MountError,
)
from s3mount.refs import ANY, Body, Condition, ContentRef, Key, ObjectInfo, PutResult
from s3mount.s3.headers import is_md5_etag, same_when_stored
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.blobs.block_checksums import DamagedBlockError
from s3mount.spool.journal.changes import ABSENT, Change, Copy, Delete, Put, PutOrCopy
from s3mount.spool.journal.recover_blob import told_from_earlier
from s3mount.spool.send_errors import (
    BaseGoneError,
    BlobGoneError,
    DamagedBlobError,
    ForeignWriteError,
    NothingLeftError,
    SourceGoneError,
    Stored,
    TryAgain,
    damage_of,
)
from s3mount.spool.spool import Spool
from s3mount.spool.upload.appending import Appends
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.spool.upload.deletions import Deletions
from s3mount.spool.upload.events import NotInS3, Report
from s3mount.spool.upload.kept import Kept
from s3mount.spool.upload.markers import Markers
from s3mount.spool.upload.moves import Moves
from s3mount.spool.upload.multipart import MultipartSender
from s3mount.spool.upload.own_tries import OwnTries
from s3mount.spool.upload.provider import ContentProvider
from s3mount.transfer.digest import etag_if_put

log = logging.getLogger(__name__)

MARKERS_WAIT_S = 10.0
"""So long the marker of a folder waits for what the store makes of markers."""


class Sender:
    """Sends single changes of ``spool`` to ``store``; bodies of more than ``part_bytes`` by ``multipart``.

    The markers of folders wait a while for what ``known`` tells of them, and none is sent where the store holds none.
    """

    def __init__(
        self,
        spool: Spool,
        store: Store,
        provider: ContentProvider,
        report: Report,
        known: KnownCapabilities,
        own: OwnTries,
        kept: Kept,
        multipart: MultipartSender,
        *,
        part_bytes: int,
    ) -> None:
        self._spool = spool
        self._store = store
        self._provider = provider
        self._report = report
        self._part_bytes = part_bytes
        self.multipart = multipart
        self._known = known
        self.deletions = Deletions(store, known)
        self.moves = Moves(spool, store, known)
        self.appends = Appends(spool, store, provider, known, multipart.traffic)
        self._own = own
        self._kept = kept
        self.marker_sender = Markers(spool, store, provider, self.deletions)
        self._replaced: set[Key] = set()

    async def perform(self, change: Change) -> Stored | None:
        """One try of ``change`` as it is now: what S3 has then, ``None`` after a deletion.

        Raises ForeignWriteError, NothingLeftError, TryAgain, and other S3MountError or OSError.
        """
        if isinstance(change, Put):
            blob = self._spool.blob_of(change)
            if blob is not None and blob.is_gone:
                gone = BlobGoneError(f"its content {blob.path} is gone from the spool")
                return await self._as_found(change, gone)
            if blob is not None and blob.fault:
                raise InternalError(blob.fault)
            if change.detach:
                await self._detach(change)
                return None
        await self._provider.before_replace(change, self.found_again)
        if not change.key.endswith("/"):
            await self._kept.learn(change)
        await self._spool.durability.journal()
        self._spool.must_be_current(change)
        crashpoint("send: before")
        if change.key.endswith("/"):
            with trio.move_on_after(MARKERS_WAIT_S):
                await self._known.decided.wait()
            if not self._known.holds_markers:
                return None if isinstance(change, Delete) else Stored(PutResult(""), 0)
            self._spool.must_be_current(change)
        if isinstance(change, Delete):
            await self._delete(change)
            crashpoint("delete: answered")
            return None
        stored = await self._send(change)
        await self._kept.restore_tags(change, stored)
        return stored

    async def _send(self, change: PutOrCopy) -> Stored:
        if change.key.endswith("/"):
            return await self.marker_sender.send(change)
        if isinstance(change, Copy):
            return await self._copy(change)
        try:
            return await self._put(change)
        except BaseGoneError as error:
            return await self._without_base(change, error)

    async def _delete(self, change: Delete) -> None:
        """Delete what was known here, or what a write of our own made since, and nobody else's version."""
        if change.key.endswith("/"):
            await self.marker_sender.delete(change)
            return
        if self.moves.is_gone(change):
            return
        if change.expected is None:
            await self.deletions.delete(change.key)
            return
        if change.expected != ABSENT and change.key not in self._replaced:
            # A refusal tells less than a look at what is there.
            with contextlib.suppress(PreconditionFailedError):
                await self.deletions.delete(change.key, if_match=change.expected)
                return
        there = await self._head(change.key)
        self._replaced.discard(change.key)
        if there is None:
            return
        if not await self._was_ours(there):
            raise ForeignWriteError("somebody else wrote what was to be deleted", key=change.key)
        change.expected = there.etag
        raise TryAgain("S3 has a later state of what was to be deleted")

    async def _know_headers(self, change: Copy, source: ContentRef) -> None:
        """Where the copy gets another ETag only what is stored beside it tells it as ours.

        So does that of an object of parts, and any where ETags are no MD5s (SSE-KMS).
        """
        keeps_etag = self._known.etag_is_md5 and is_md5_etag(source.etag)
        if change.headers is not None or keeps_etag:
            return
        original = await self._head(source.key)
        self._spool.must_be_current(change)
        if original is not None and original.etag == source.etag:
            change.headers = original.headers

    async def _copy(self, change: Copy) -> Stored:
        if self.moves.may(change):
            stored = await self.moves.rename(change, self.condition_of(change))
            if stored is not None:
                return stored
            self._spool.must_be_current(change)
        source = change.source
        headers = None
        if change.replace_headers:
            headers = self._provider.headers_of(change)
            change.note_try(_ctime_ns(change))
        else:
            change.note_try(source.etag)
            await self._know_headers(change, source)
            stored_ns = self._provider.written_at_ns(change.headers) if change.headers else None
            if stored_ns is not None and stored_ns not in change.tried:
                # The copy gets another ETag: after a kill nothing else tells it as ours.
                change.note_try(stored_ns)
                self._spool.save(change)
                await self._spool.durability.journal()
                self._spool.must_be_current(change)
        written_ns = _ctime_ns(change)
        try:
            result = await self._store.copy(
                source,
                change.key,
                headers,
                condition=self.condition_of(change),
            )
            crashpoint("copy: answered")
            if not await self._is_copy_of(change, source, result, None):
                change.expected = result.etag
                raise TryAgain("its source was replaced while it was copied")
            return Stored(result, source.size)
        except ConflictError as error:
            return await self._look_again(change, written_ns, error)
        except (PreconditionFailedError, NoSuchKeyError) as error:
            there = await self._head(source.key)
            is_there = there is not None and there.etag == source.etag
            may_be_refused = source.key != change.key and (
                is_there or source.version_id is not None
            )
            if isinstance(error, PreconditionFailedError) and may_be_refused:
                # Not the source is what was not expected, but what the key holds.
                return await self._settle(change, written_ns, error)
            if there is None or not self._own.made(there):
                if source.key == change.key:
                    if there is None and await self.moves.follow(change, source):
                        # It goes back to where a rename took it from.
                        change.expected = ABSENT
                        raise TryAgain("it was moved by an earlier try") from error
                    raise NothingLeftError("somebody else replaced it", key=change.key) from error
                return await self._without_source(change, source, written_ns)
        # Our own earlier copy, whose answer was lost, made it the same bytes under another ETag.
        if (
            headers is not None
            and source.key == change.key
            and self._own.ctime_of(there) == written_ns
        ):
            return _as_stored(there)
        if change.source == source:
            change.source = there.ref
        if source.key == change.key:
            change.expected = there.etag
        raise TryAgain("its source has another version now")

    async def _without_source(self, change: Copy, source: ContentRef, written_ns: int) -> Stored:
        """Somebody else replaced what was to be copied. Raises TryAgain, SourceGoneError, StoreError."""
        if await self.moves.follow(change, source):
            raise TryAgain("its source was moved by an earlier try")
        target = await self._head(change.key)
        self._spool.must_be_current(change)
        if target is not None and target.etag == source.etag and self._own.made(target):
            # It was copied before, by a try whose answer was lost.
            if not change.replace_headers or self._own.ctime_of(target) == written_ns:
                return _as_stored(target)
            change.source, change.expected = target.ref, target.etag
            raise TryAgain("it was copied before, with other attributes")
        earlier = await self._earlier_version(source)
        if earlier is None:
            raise SourceGoneError("somebody else replaced or removed it first", key=change.key)
        # What replaced it is not to be deleted, not even where its version would be kept.
        self._replaced.add(source.key)
        if change.source == source:
            change.source = earlier
        raise TryAgain("its source is an earlier version now")

    async def _earlier_version(self, content: ContentRef) -> ContentRef | None:
        """``content`` with its version's id, where the bucket kept it. Raises StoreError."""
        if not self._known.keeps_deleted or content.version_id is not None:
            return None
        try:
            page = await self._store.list_versions_page(content.key)
        except (AccessDeniedError, RejectedError) as error:
            log.info("earlier versions of %r are not looked for: %s", content.key, error)
            return None
        wanted = (content.key, content.etag, content.size)
        for version in page.versions:
            if (version.key, version.etag, version.size) == wanted:
                return version.ref
        return None

    async def _without_base(self, change: Put, error: S3MountError) -> Stored:
        """The version below a change is gone: by our own hand, or by somebody else's. Raises S3MountError."""
        blob = self._spool.blob_of(change)
        base = blob.base if blob is not None else None
        if blob is None or base is None:
            raise TryAgain("it needs no base any more")
        there = await self._head(base.key)
        if blob.base != base:
            raise TryAgain("its base has another version now")
        if there is not None and there.etag == base.etag:
            raise TryAgain("its base is there after all")
        if there is not None and await self._was_ours(there):
            blob.base = there.ref
            raise TryAgain("its base has another version now")
        if there is not None and base.key == change.key:
            raise ForeignWriteError("somebody else replaced what it changes", key=change.key)
        if await self.moves.follow(change, base):
            raise TryAgain("its base was moved by an earlier try")
        earlier = await self._earlier_version(base)
        if earlier is not None and blob.base == base:
            self._replaced.add(base.key)
            blob.base = earlier
            raise TryAgain("its base is an earlier version now")
        brought = 0 if blob.filled is None else blob.filled.total
        if blob.extents.total == brought and base.key != change.key:
            # Nothing of it was written here: it was only to be moved.
            raise SourceGoneError("somebody else replaced or removed it first", key=change.key)
        raise error

    async def found_again(
        self, content: ContentRef, places: Iterable[Key] = ()
    ) -> ContentRef | None:
        """``content`` is gone under its ETag: the same bytes as a write of our own left them there, if one did.

        Such a write is one whose answer was lost, while the key is still pending; ``places`` are keys to which one
        may have brought them that is not pending any more. Raises StoreError.
        """
        there = await self._head(content.key)
        if there is not None and await self._was_ours(there):
            return there.ref
        return await self.moves.find(content, places)

    async def _head(self, key: Key) -> ObjectInfo | None:
        try:
            return await self._store.head(key)
        except NoSuchKeyError:
            return None

    async def _was_ours(self, there: ObjectInfo) -> bool:
        """Did a write of ours, of which nothing was heard, make it? Also an append."""
        return self._own.made(there) or await self.appends.made(there) is not None

    async def _settle(
        self, change: PutOrCopy, written_ns: int, error: PreconditionFailedError | ConflictError
    ) -> Stored:
        """S3 holds something else than expected: what our own earlier try made, or another's.

        Returns our own try's result when it was the same state. Raises ForeignWriteError, or what
        leads to another try.
        """
        if change.expected is None:
            raise error
        there = await self._head(change.key)
        if there is None:
            # Theirs is gone again: ours may have the name.
            change.expected = ABSENT
            raise ConflictError("somebody else removed it just now", key=change.key)
        if there.etag == change.expected:
            # Refused though it holds: nobody wrote, and another try finds out what the store understands.
            raise ConflictError(f"refused, though nothing changed: {error}", key=change.key)
        stored = await self.appends.settled(change, there) if isinstance(change, Put) else None
        if stored is not None:
            return stored
        if not await self._was_ours(there) and not await self._looks_copied(change, there):
            raise ForeignWriteError(
                str(error),
                key=change.key,
                status=error.status,
                code=error.code,
                request_id=error.request_id,
            )
        if self.moves.is_wanted(there):
            raise ConflictError("another file waits to be copied from it", key=change.key)
        change.expected = there.etag
        began = isinstance(change, Put) and change.upload_attributes is not None
        if self._own.ctime_of(there) == written_ns and not began:
            blob = self._spool.blob_of(change)
            if blob is None or await self._may_hold(there, blob):
                if blob is not None:
                    blob.is_unsure = True
                return _as_stored(there)
        raise TryAgain("S3 has an earlier state of it")

    async def _may_hold(self, there: ObjectInfo, blob: Blob) -> bool:
        """May it have the bytes of ``blob``? A copy of ours may have read its source after that was replaced."""
        if there.size != blob.size:
            return False
        if not (self._known.etag_is_md5 and is_md5_etag(there.etag)) or blob.base is not None:
            return True
        return await etag_if_put(blob.location, blob.size) == there.etag

    async def _looks_copied(self, change: PutOrCopy, there: ObjectInfo) -> bool:
        """Is it what an earlier try of this copy made? S3 gives the copy of an object of parts another ETag.

        So too when the copy has become a change of what it copied.
        """
        source = None
        if isinstance(change, Put):
            base = change.base
            if base is not None and base.key != change.key and base.etag in change.tried:
                source = base
        elif not change.replace_headers:
            source = change.source
        if source is None:
            return False
        try:
            original = await self._store.head(source.key, version_id=source.version_id)
        except NoSuchKeyError:
            return False
        is_same = original.etag == source.etag and original.size == there.size
        if not is_same or original.headers is None or there.headers is None:
            return is_same and original.headers == there.headers
        return same_when_stored(there.headers, original.headers)

    async def _put(self, change: Put) -> Stored:
        written_ns = _ctime_ns(change)
        if change.expected is None and change.tried and not change.upload_id:
            stored = await self._sent_before(change, written_ns)
            if stored is not None:
                return stored
        try:
            await self._must_not_be_made(change)
            return await self._put_if_expected(change)
        except PreconditionFailedError as error:
            return await self._settle(change, written_ns, error)
        except ConflictError as error:
            return await self._look_again(change, written_ns, error)
        except DamagedBlobError as error:
            return await self._as_found(change, error)

    async def _must_not_be_made(self, change: Put) -> None:
        """Raise PreconditionFailedError where a reader found what an earlier try made, whose answer was lost."""
        blob = self._spool.blob_of(change)
        base = blob.base if blob is not None else None
        if base is None or base.key != change.key or change.expected in (None, ABSENT, base.etag):
            return
        there = await self._head(change.key)
        if there is not None and there.etag == base.etag:
            raise PreconditionFailedError("an earlier try made it", key=change.key)

    async def _sent_before(self, change: Put, written_ns: int) -> Stored | None:
        """What replaces whatever is there may have been sent by a try of which nothing was heard.

        ``None``: it was not, and goes where what is there now lies. Raises StoreError.
        """
        try:
            there = await self._head(change.key)
        except AccessDeniedError:
            # Who may not look sends it again.
            return None
        self._spool.must_be_current(change)
        change.expected = ABSENT if there is None else there.etag
        if there is None or self._own.ctime_of(there) != written_ns or not self._own.made(there):
            return None
        blob = self._spool.blob_of(change)
        if blob is not None and not await self._may_hold(there, blob):
            return None
        if blob is not None:
            blob.is_unsure = True
        return _as_stored(there)

    async def _look_again(self, change: PutOrCopy, written_ns: int, error: ConflictError) -> Stored:
        """409: another write of the key was under way. What it made is looked at before the next try.

        Raises ``error``, which leads to that try, where the key still holds what is expected.
        """
        if change.expected is not None:
            there = await self._head(change.key)
            if (ABSENT if there is None else there.etag) != change.expected:
                return await self._settle(change, written_ns, error)
        raise error

    async def _put_if_expected(self, change: Put) -> Stored:
        condition = self.condition_of(change)
        change.upload_attributes = change.upload_attributes if change.upload_id else None
        blob = self._spool.blob_of(change)
        if blob is None:
            return await self._put_body(change, b"", condition)
        self.multipart.drop_unused(change, blob)
        stored = await self._copy_known(change, blob, condition)
        if stored is not None:
            return stored
        if self.appends.may(change, blob):
            stored = await self.appends.send(change, blob)
            if stored is not None:
                return stored
        if blob.upload is not None or blob.size > self._part_bytes:
            return Stored(*await self.multipart.send(change, blob, condition))
        seq = change.seq
        await self._fill(change, 0, blob.size)
        if change.seq != seq:
            raise TryAgain("changed while it was completed")
        if blob.size <= INLINE_BODY_BYTES_MAX:
            # Read at once, so that a write meanwhile cannot mix two states.
            try:
                body: Body = blob.read_checked()
            except DamagedBlockError as error:
                raise damage_of(blob, 0, blob.size, error) from error
            return await self._put_body(change, body, condition)
        # A write meanwhile goes to a copy, for the same reason.
        blob.is_being_sent = True
        try:
            return await self._put_body(change, blob.body(0, blob.size), condition)
        except (DamagedBodyError, DamagedBlockError) as error:
            raise damage_of(blob, 0, blob.size, error) from error
        finally:
            blob.is_being_sent = False
            if blob.is_replaced:
                self._spool.drop_blob(blob)

    async def _copy_known(self, change: Put, blob: Blob, condition: Condition) -> Stored | None:
        """Let S3 copy the content of ``change`` from where it has it already; ``None``: it has to be sent.

        Raises TryAgain when the content changes meanwhile, and S3MountError.
        """
        if blob.upload is not None:
            return None
        content_seq = change.content_seq
        source = await self._provider.find_in_s3(change)
        if change.content_seq != content_seq or change.blob_id != blob.id:
            raise TryAgain("changed while it was compared")
        if source is None:
            return None
        self._spool.must_be_current(change)
        change.note_try(_ctime_ns(change))
        headers = self._provider.headers_of(change)
        try:
            result = await self._store.copy(source, change.key, headers, condition=condition)
            crashpoint("copy: answered")
            if await self._is_copy_of(change, source, result, blob):
                return Stored(result, blob.size, is_copied=True)
            change.expected = result.etag
        except (
            PreconditionFailedError,
            NoSuchKeyError,
            RejectedError,
            AccessDeniedError,
            ArchivedError,
        ) as error:
            log.info(
                "%r is sent, as S3 does not copy it from %r: %s", change.key, source.key, error
            )
        self._report(NotInS3(source.key))
        if change.content_seq != content_seq:
            raise TryAgain("changed while it was copied")
        if change.expected is not None and condition != self.condition_of(change):
            raise TryAgain("it was copied from something else")
        return None

    async def _is_copy_of(
        self, change: PutOrCopy, source: ContentRef, result: PutResult, blob: Blob | None
    ) -> bool:
        """Was it ``source``, whose bytes ``blob`` has too if given, that was copied, and not what replaced it then?

        A store may heed no condition on the source, or look at it a moment before it reads the bytes:
        what the ETags tell counts for more. Raises S3MountError.
        """
        if result.etag == source.etag or source.version_id is not None:
            return True
        # It may have been replaced after it was copied: that it was before, only an MD5 proves.
        is_told = self._known.etag_is_md5 and is_md5_etag(source.etag)
        if blob is None and (source.key == change.key or not is_told):
            return True
        if source.key != change.key:
            there = await self._head(source.key)
            if there is not None and there.etag == source.etag:
                return True
        if blob is None:
            return False
        if is_md5_etag(result.etag):
            if await etag_if_put(blob.location, blob.size) == result.etag:
                return True
            if self._known.etag_is_md5:
                return False
        # Of a copy onto itself, and where ETags tell nothing of the bytes, the condition is all there is.
        is_guarded = self._known.seen.copy_source_condition is True
        return is_guarded and (source.key == change.key or not self._known.etag_is_md5)

    async def _as_found(self, change: Put, error: BlobGoneError | DamagedBlobError) -> Stored:
        """The blob cannot be sent. Perhaps it was: a power cut can bring rows back of what S3 has.

        Raises ``error`` when it was not.
        """
        there = await self._head(change.key)
        begun = change.upload_attributes
        ctimes = {_ctime_ns(change), _ctime_ns(change) if begun is None else begun.ctime_ns}
        if isinstance(error, BlobGoneError):
            # Sent by a run that found more in the blob than its row told of.
            ctimes |= set(map(told_from_earlier, ctimes))
        if there is None or there.size != change.size or self._own.ctime_of(there) not in ctimes:
            raise error
        blob = self._spool.blob_of(change)
        if blob is not None:
            blob.is_unsure = True
        return _as_stored(there)

    async def _put_body(self, change: Put, body: Body, condition: Condition) -> Stored:
        self._spool.must_be_current(change)
        change.note_try(_ctime_ns(change))
        headers = self._provider.headers_of(change)
        size = len(body) if isinstance(body, bytes) else body.length
        result = await self._store.put(change.key, body, headers, condition=condition)
        self.multipart.traffic.sent_bytes += size
        crashpoint("put: answered")
        return Stored(result, size)

    async def _fill(self, change: Put, start: int, stop: int) -> None:
        try:
            await self._provider.fill(change, start, stop)
        except (PreconditionFailedError, NoSuchKeyError) as error:
            raise BaseGoneError(f"the version that it changes is gone: {error}") from error

    def condition_of(self, change: Change) -> Condition:
        """What the upload of ``change`` demands of the key."""
        if change.expected is None:
            return ANY
        if change.expected == ABSENT:
            return Condition(if_absent=True)
        return Condition(if_match=change.expected)

    async def _detach(self, change: Put) -> None:
        """Fetch all of the base, so that nothing in S3 has to stay for this change."""
        blob = self._spool.blob_of(change)
        if blob is None:
            raise TryAgain("replaced before its content was fetched")
        base = blob.base
        if base is not None:
            try:
                await self._fill(change, 0, blob.size)
            except BaseGoneError as error:
                await self._without_base(change, error)
        if change.headers is None and base is not None:
            there = await self._head(base.key)
            if there is not None and there.etag == base.etag:
                change.headers = there.headers
        await self._spool.detach(blob)
        change.detach = False
        raise TryAgain("its content is here now")


def _as_stored(there: ObjectInfo) -> Stored:
    return Stored(PutResult(there.etag, there.version_id, there.last_modified_ns), there.size)


def _ctime_ns(change: PutOrCopy) -> int:
    return change.attributes.ctime_ns if change.attributes is not None else 0

"""Renames in one request, where the store has RenameObject: copy and deletion at once.

A rename is journalled as a copy to the new key and a deletion of the old one. Both are done when S3 moved the
object, which keeps its ETag: so what is there under the new name is known for it, whoever asks, also after a
kill and an answer that was lost. Until that is known, what reads the old name finds the object under one of
the names that it was to get (``Moves.find``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from s3mount.crashpoints import crashpoint
from s3mount.errors import NoSuchKeyError, PreconditionFailedError, RejectedError
from s3mount.refs import Condition, ContentRef, Key, ObjectInfo, PutResult
from s3mount.s3.store import Store
from s3mount.spool.journal.changes import ABSENT, Change, Copy, Delete
from s3mount.spool.send_errors import Stored
from s3mount.spool.spool import Spool
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.spool.upload.queue import UploadQueue

log = logging.getLogger(__name__)

NO_RENAMES = frozenset((405, 501))
"""What a store answers that has no RenameObject."""


class Moves:
    """Renames of ``spool``'s changes in ``store``, where that was seen to rename."""

    def __init__(self, spool: Spool, store: Store, known: KnownCapabilities) -> None:
        self._spool = spool
        self._store = store
        self._known = known
        self._is_refused = False
        self._gone: set[Key] = set()

    @property
    def _are_known(self) -> bool:
        return self._known.seen.renames is True and not self._is_refused

    def may(self, change: Copy) -> bool:
        """Is all that ``change`` and the deletion behind it ask for a rename of an object, wanted by nobody else?"""
        source = change.source
        if not self._are_known or change.replace_headers:
            return False
        if source.key == change.key or source.key not in change.former or source.version_id:
            return False
        going = self._spool.changes.get(source.key)
        is_going = isinstance(going, Delete) and going.expected == source.etag
        return is_going and self._spool.dependencies.readers_of(source.key) == {change.key}

    def may_take(self, key: Key, queue: UploadQueue) -> bool:
        """May a rename that is under way, or whose answer was lost, take what S3 holds under ``key`` elsewhere?"""
        return self._are_known and any(
            queue.is_sending(reader) or self._spool.changes[reader].tried
            for reader in self._spool.dependencies.readers_of(key)
        )

    async def rename(self, change: Copy, condition: Condition) -> Stored | None:
        """Let S3 move the source of ``change``; ``None``: it has to be copied. Raises TryAgain, StoreError."""
        source = change.source
        change.note_try(source.etag)
        self._spool.save(change)
        await self._spool.durability.journal()
        self._spool.must_be_current(change)
        if not self.may(change):
            return None
        try:
            result = await self._store.rename(source, change.key, condition=condition)
            crashpoint("copy: answered")
        except (NoSuchKeyError, PreconditionFailedError):
            # By an earlier try, whose answer was lost, or not at all.
            there = await self._look(change.key)
            if there is None or there.etag != source.etag:
                return None
            result = PutResult(there.etag, there.version_id, there.last_modified_ns)
        except RejectedError as error:
            log.info("%r is copied, as S3 does not rename it: %s", change.key, error.describe())
            self._is_refused |= error.status in NO_RENAMES
            return None
        stored = Stored(result, source.size)
        self._moved(source, stored.ref(change.key))
        return stored

    def _moved(self, source: ContentRef, target: ContentRef) -> None:
        """S3 has under ``target`` what was ``source``: who waited for its deletion, or reads it, is told."""
        for key in list(self._spool.dependencies.readers_of(source.key)):
            self._point(self._spool.changes[key], source, target)
        going = self._spool.changes.get(source.key)
        if going is None or going.expected != source.etag:
            return
        going.expected = ABSENT
        if isinstance(going, Delete):
            self._gone.add(source.key)
        self._spool.save(going, makes_room=True)

    def _point(self, change: Change, source: ContentRef, target: ContentRef) -> bool:
        """Let ``change`` read ``target`` where it reads ``source``."""
        blob = self._spool.blob_of(change)
        if isinstance(change, Copy) and change.source == source:
            change.source = target
        elif blob is not None and blob.base == source:
            blob.base = target
        else:
            return False
        self._spool.save(change, makes_room=True)
        return True

    def is_gone(self, change: Change) -> bool:
        """Did a rename of ours take away what ``change`` is to delete? Asked once."""
        is_gone = change.key in self._gone and change.expected == ABSENT
        self._gone.discard(change.key)
        return is_gone

    async def follow(self, change: Change, content: ContentRef) -> bool:
        """``content``, which ``change`` reads, is gone: was it moved by a try of ours? Raises StoreError."""
        there = await self._find(content, (change.key, *reversed(change.former)))
        if there is None or self._spool.changes.get(change.key) is not change:
            return False
        return self._point(change, content, there)

    def is_wanted(self, there: ObjectInfo) -> bool:
        """Did a rename of ours bring under this key what another change still reads under the key from before?"""
        if not self._are_known:
            return False
        return any(
            (content.etag, content.size) == (there.etag, there.size)
            for key in self._spool.dependencies.moved_from(there.key)
            if (content := self._read_by(key)) is not None
        )

    def _read_by(self, key: Key) -> ContentRef | None:
        """The content in S3 that the change of ``key`` reads, if it reads any."""
        change = self._spool.changes.get(key)
        if change is None or isinstance(change, Copy):
            return None if change is None else change.source
        blob = self._spool.blob_of(change)
        return None if blob is None else blob.base

    async def find(self, content: ContentRef, places: Iterable[Key] = ()) -> ContentRef | None:
        """``content`` is gone: where a rename under way, or to ``places``, may have brought it. Raises StoreError."""
        under_way = self._spool.dependencies.moved_from(content.key)
        return await self._find(content, (*under_way, *places))

    async def _find(self, content: ContentRef, keys: Iterable[Key]) -> ContentRef | None:
        if not self._are_known:
            return None
        for key in keys:
            if key == content.key:
                continue
            there = await self._look(key)
            if there is not None and (there.etag, there.size) == (content.etag, content.size):
                return there.ref
        return None

    async def _look(self, key: Key) -> ObjectInfo | None:
        try:
            return await self._store.head(key)
        except NoSuchKeyError:
            return None

"""The objects that stand for directories: what other programs stored in them and with them survives.

A marker of ours has no content. One that another program made may have some, and metadata of its own; it
is looked at just before it is replaced or deleted, and the write demands what was seen. A marker is
always written by PUT, as some stores cannot copy a key that ends in "/"; only content too large for that is
copied inside S3.
"""

from __future__ import annotations

from s3mount.crashpoints import crashpoint
from s3mount.errors import (
    AccessDeniedError,
    ConflictError,
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
    S3MountError,
)
from s3mount.refs import Condition, Key, ObjectHeaders, ObjectInfo, PutResult
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.spool.journal.changes import ABSENT, Copy, Delete, PutOrCopy
from s3mount.spool.send_errors import ForeignWriteError, Stored, TryAgain
from s3mount.spool.spool import Spool
from s3mount.spool.upload.deletions import Deletions
from s3mount.spool.upload.provider import ContentProvider


class Markers:
    """Sends changes of keys that end in "/"."""

    def __init__(
        self, spool: Spool, store: Store, provider: ContentProvider, deletions: Deletions
    ) -> None:
        self._spool = spool
        self._store = store
        self._provider = provider
        self._deletions = deletions

    async def send(self, change: PutOrCopy) -> Stored:
        """Bring S3 to what ``change`` says, a put or a copy. Raises TryAgain and other S3MountError."""
        origin_key = _origin(change)
        origin, target = None, None
        if change.expected != ABSENT:
            target = await self._look_at_target(change)
        if origin_key == change.key:
            origin = target
        else:
            origin = await self._look(origin_key)
            if target is not None and target.size:
                raise RejectedError(
                    f"the folder's object there has {target.size} bytes that another program stored",
                    key=change.key,
                )
        self._spool.must_be_current(change)
        headers = self._headers(change, origin)
        if change.attributes is not None:
            change.note_try(change.attributes.ctime_ns)
        condition = Condition(if_absent=True)
        if target is not None:
            condition = Condition(if_match=target.etag)
        try:
            result = await self._write(change, origin, headers, condition)
        except (PreconditionFailedError, ConflictError) as error:
            await self._after_refusal(change, condition, error)
            raise
        crashpoint("put: answered")
        moved_from = self._spool.changes.get(origin_key)
        if origin is not None and isinstance(moved_from, Delete):
            # What it held is under the new key now.
            moved_from.expected = origin.etag
        return Stored(result, 0 if origin is None else origin.size)

    def _headers(self, change: PutOrCopy, origin: ObjectInfo | None) -> ObjectHeaders:
        if origin is not None and origin.headers is not None:
            if isinstance(change, Copy) and not change.replace_headers:
                return origin.headers
            change.headers = origin.headers
        return self._provider.headers_of(change)

    async def _write(
        self,
        change: PutOrCopy,
        origin: ObjectInfo | None,
        headers: ObjectHeaders,
        condition: Condition,
    ) -> PutResult:
        if origin is None or not origin.size:
            return await self._store.put(change.key, b"", headers, condition=condition)
        if origin.size > INLINE_BODY_BYTES_MAX:
            return await self._store.copy(origin.ref, change.key, headers, condition=condition)
        _, data = await self._store.get(origin.key, if_match=origin.etag or None)
        return await self._store.put(change.key, data, headers, condition=condition)

    async def _after_refusal(
        self, change: PutOrCopy, condition: Condition, error: S3MountError
    ) -> None:
        """Another write came first. Raises TryAgain where a look shows it, else ConflictError."""
        there = await self._look(change.key)
        if (None if there is None else there.etag) != condition.if_match:
            change.expected = None
            raise TryAgain("the folder's object was replaced just now")
        raise ConflictError(f"refused, though nothing changed: {error}", key=change.key)

    async def delete(self, change: Delete) -> None:
        """Delete the marker. Raises ForeignWriteError where it has content, TryAgain and other S3MountError."""
        if not change.expected:
            there = await self._look(change.key)
            if there is None:
                return
            _must_be_empty(there)
            change.expected = there.etag or None
        try:
            await self._deletions.delete(change.key, if_match=change.expected)
            return
        except PreconditionFailedError:
            there = await self._look(change.key)
        if there is None:
            return
        _must_be_empty(there)
        change.expected = there.etag
        raise TryAgain("the folder's object was replaced just now")

    async def _look_at_target(self, change: PutOrCopy) -> ObjectInfo | None:
        try:
            return await self._look(change.key)
        except AccessDeniedError:
            if not change.expected:
                raise
            # What was last put there, or read there, is all that the condition lets the write replace.
            return ObjectInfo(change.key, 0, change.expected, 0)

    async def _look(self, key: Key) -> ObjectInfo | None:
        try:
            return await self._store.describe(key)
        except NoSuchKeyError:
            return None


def _origin(change: PutOrCopy) -> Key:
    """The key of the marker that ``change`` replaces or moves."""
    if isinstance(change, Copy):
        return change.source.key
    return change.former[-1] if change.former else change.key


def _must_be_empty(there: ObjectInfo) -> None:
    if there.size:
        raise ForeignWriteError(
            f"the folder's object has {there.size} bytes that another program stored", key=there.key
        )

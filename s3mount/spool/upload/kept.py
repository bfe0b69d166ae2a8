"""What is stored with the object that a change replaces, looked at just before, so that it survives the change.

Tags, grants and retention may be changed without a new version or date, so that what an earlier look told
of them may be wrong. A new object has nothing to keep: it costs no look.
"""

from __future__ import annotations

import logging

from s3mount.errors import AccessDeniedError, NoSuchKeyError, RejectedError
from s3mount.refs import Key
from s3mount.s3.store import Store
from s3mount.spool.journal.changes import ABSENT, Change, Copy, Delete, Put, PutOrCopy
from s3mount.spool.send_errors import Stored
from s3mount.spool.spool import Spool
from s3mount.spool.upload.own_tries import OwnTries
from s3mount.transfer.tags import restore_tags

log = logging.getLogger(__name__)


class Kept:
    """Looks after what changes of ``spool`` must keep."""

    def __init__(self, spool: Spool, store: Store, own: OwnTries) -> None:
        self._spool = spool
        self._store = store
        self._own = own
        self._is_said = False

    async def learn(self, change: Change) -> None:
        """Bring ``change.headers`` up to date, where ``change`` replaces an object. Raises S3MountError.

        What S3 may lose on the way (tags) is journalled, so that it survives a kill as well.
        """
        origin = _origin(change)
        if isinstance(change, Delete) or origin is None or _is_in_parts(change):
            return
        try:
            there = await self._store.describe(origin)
        except NoSuchKeyError:
            return
        below = change.source if isinstance(change, Copy) else change.base
        wanted = below.etag if below is not None else change.expected
        if there.headers is None or (there.etag != wanted and origin not in change.former):
            return
        if origin == change.key and self._own.made(there):
            return
        change.headers = there.headers
        if there.headers.tags and self._spool.changes.get(change.key) is change:
            self._spool.save(change)

    async def restore_tags(self, change: PutOrCopy, stored: Stored) -> None:
        """Where the store did not take the tags along with the object, set them. Raises S3MountError."""
        tags = change.headers.tags if change.headers is not None else None
        try:
            await restore_tags(self._store, change.key, tags, stored.result.version_id)
        except (AccessDeniedError, RejectedError) as error:
            if not self._is_said:
                log.warning(
                    "the tags of %r and others cannot be kept: %s", change.key, error.describe()
                )
            self._is_said = True


def _origin(change: Change) -> Key | None:
    """Whose tags, grants and so on ``change`` keeps; ``None`` where there is nothing to keep, or the store does it."""
    if isinstance(change, Copy):
        return change.source.key if change.replace_headers else None
    if isinstance(change, Delete) or change.headers is None:
        return None
    if change.base is not None:
        return change.base.key
    if change.former:
        return change.former[-1]
    return change.key if change.expected not in (None, ABSENT) else None


def _is_in_parts(change: Change) -> bool:
    return isinstance(change, Put) and bool(change.upload_id)

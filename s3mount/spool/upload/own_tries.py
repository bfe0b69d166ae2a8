"""Tells what our own tries made in S3, of which nothing was heard, from what others did."""

from __future__ import annotations

from s3mount.refs import ObjectInfo
from s3mount.spool.spool import Spool
from s3mount.spool.upload.provider import ContentProvider


class OwnTries:
    """The tries of ``spool``'s pending changes."""

    def __init__(self, spool: Spool, provider: ContentProvider) -> None:
        self._spool = spool
        self._provider = provider

    def ctime_of(self, there: ObjectInfo) -> int | None:
        """The ctime that is stored with an object, if it is one of ours."""
        return None if there.headers is None else self._provider.written_at_ns(there.headers)

    def made(self, there: ObjectInfo) -> bool:
        """Is it what a try of ours made? An append is not told so: it leaves what is stored beside the object."""
        change = self._spool.changes.get(there.key)
        if change is None:
            return False
        return self.ctime_of(there) in change.tried or there.etag in change.tried

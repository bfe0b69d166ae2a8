"""What the uploader asks of the rooms above: what to store beside an object, and bytes that are not in its blob."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeAlias

from s3mount.refs import Attributes, ContentRef, Key, ObjectHeaders
from s3mount.spool.journal.changes import Change, Put, PutOrCopy

FindAgain: TypeAlias = Callable[[ContentRef, Iterable[Key]], Awaitable[ContentRef | None]]
"""See ``Sender.found_again``."""


class ContentProvider(Protocol):
    """Answers the uploader; vfs implements it."""

    def headers_of(self, change: PutOrCopy, *, with_times: bool = True) -> ObjectHeaders:
        """What to store with the object of ``change``; without times while it is still written."""
        ...

    def carried_by(self, change: PutOrCopy) -> tuple[Attributes, bool]:
        """The attributes that ``change.headers`` carry, and whether they leave the mtime to LastModified."""
        ...

    def written_at_ns(self, headers: ObjectHeaders) -> int | None:
        """The ctime that ``headers_of`` stored with an object, ``None`` where there is none."""
        ...

    async def fill(self, change: Put, start: int, stop: int) -> None:
        """Bring the bytes of the base missing in ``[start, stop)`` into the blob.

        Raises S3MountError: PreconditionFailedError or NoSuchKeyError when the base is gone.
        """
        ...

    async def read_base(self, base: ContentRef, start: int, stop: int) -> bytes:
        """The bytes of ``base`` from ``start`` to ``stop``, through the cache. Raises S3MountError."""
        ...

    async def before_replace(self, change: Change, find: FindAgain) -> None:
        """``change`` is about to destroy what S3 holds under its key. Raises S3MountError.

        ``find`` is asked where S3 has something else there already.
        """
        ...

    async def find_in_s3(self, change: Put) -> ContentRef | None:
        """A version in S3 that was proven to have exactly the bytes of ``change``'s blob, if one is known.

        Raises S3MountError and OSError when the blob cannot be read.
        """
        ...

    def keep_both(self, change: PutOrCopy) -> Key:
        """Somebody else wrote the key of ``change`` first: move ours to a free key, which is returned.

        Raises LocalDiskError.
        """
        ...

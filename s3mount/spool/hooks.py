"""What the rooms above do for the spool's uploader, and are told by it."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from s3mount.refs import Attributes, ContentRef, Key, ObjectHeaders, PutResult
from s3mount.spool.changes import Change, Copy, Put, PutOrCopy

ConflictOutcome: TypeAlias = Literal["kept-both", "overwritten", "held", "not-deleted", "not-moved"]


class Hooks(Protocol):
    """What the uploader needs of the rooms above; vfs implements it."""

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

    async def before_replace(self, change: Change) -> None:
        """``change`` is about to destroy what S3 holds under its key. Raises S3MountError."""
        ...

    async def find_in_s3(self, change: Put) -> ContentRef | None:
        """A version in S3 that was proven to have exactly the bytes of ``change``'s blob, if one is known.

        Raises S3MountError and OSError when the blob cannot be read.
        """
        ...

    def not_in_s3(self, key: Key) -> None:
        """What ``find_in_s3`` said of ``key`` does not hold (any more)."""
        ...

    def uploaded(self, change: Change, result: PutResult | None) -> None:
        """S3 has exactly ``change``, which is no longer pending; ``None`` for a deletion."""
        ...

    def uploaded_earlier(self, change: Change, content: ContentRef | None) -> None:
        """S3 has an earlier state of ``change``, which stays pending; ``None``: nothing."""
        ...

    def content_uploaded(self, change: Copy, blob_id: str, content: ContentRef) -> None:
        """S3 has the bytes of ``change``, not its present attributes; the blob is not needed any more."""
        ...

    def lost(self, change: Change) -> None:
        """``change``, no longer pending, was one of attributes of a version that somebody replaced."""
        ...

    def keep_both(self, change: PutOrCopy) -> Key:
        """Somebody else wrote the key of ``change`` first: move ours to a free key, which is returned.

        Raises LocalDiskError.
        """
        ...

    def conflicted(self, key: Key, outcome: ConflictOutcome, kept_as: Key = "") -> None:
        """Tell people of a conflict: ``kept_as`` is the key that ours has now, where that is another."""
        ...

"""A pending change: what a key shall become in S3, and what is known about it now."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import msgspec

from s3mount.errors import S3MountError, StoreError
from s3mount.refs import Attributes, ContentRef, ETag, Key, ObjectHeaders
from s3mount.spool.journal.states import Event, State, after

ConflictPolicy: TypeAlias = Literal["keep-both", "overwrite", "hold"]
"""What happens when somebody else wrote a key first: theirs keeps the name and ours gets another, ours
replaces theirs, or ours waits until a person decides."""

ABSENT = ""
"""``Change.expected`` when S3 is known to hold nothing under the key."""


class _Head(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False, tag_field="op"):
    """What every change has.

    ``seq`` is the number of the last change, ``first_seq`` of the first one that S3 lacks. ``expected`` is the
    ETag that S3 is believed to hold under the key: ``None`` unknown, ``ABSENT`` nothing; ``expected_size`` is
    that object's, negative when unknown.
    ``tried`` tells of writes of this key that were begun and never heard of again: the ctimes that they
    carry (int), or the ETags of what they copy (str). An object with one of them is our own.
    ``attempts`` counts failed tries since S3 last took something of it, ``refusals`` those that S3 refused
    since somebody last asked for another; ``error`` is the last one for people, ``error_kind`` the name of
    its class. ``held``: a conflict that waits for a person. ``on_conflict``, where set, is what that person
    decided for this change.
    """

    key: Key
    seq: int = 0
    first_seq: int = 0
    state: State = State.QUEUED
    expected: ETag | None = None
    expected_size: int = -1
    tried: tuple[int | ETag, ...] = ()
    attempts: int = 0
    refusals: int = 0
    error: str = ""
    error_kind: str = ""
    held: bool = False
    on_conflict: ConflictPolicy | None = None

    @property
    def op(self) -> str:
        """What is to be done, in one word: ``put``, ``copy`` or ``delete``."""
        return str(self.__struct_config__.tag)

    def apply(self, event: Event) -> None:
        """Take the step that ``event`` leads to; nothing else writes ``state``.

        Raises ValueError for a step that must never happen.
        """
        self.state = after(self.state, event)

    def note_failure(self, error: S3MountError) -> None:
        """A try failed, in a way that people should hear of."""
        self.attempts += 1
        self.error = str(error)
        if isinstance(error, StoreError):
            self.error = error.describe(of=self.key)
        self.error_kind = type(error).__name__

    def forget_failures(self) -> None:
        """What went wrong before means nothing any more."""
        self.attempts = self.refusals = 0
        self.error = self.error_kind = ""
        self.held = False
        self.on_conflict = None

    def note_try(self, mark: int | ETag) -> None:
        """A write that can be known by its ctime or ETag is about to be sent; whether it arrives is open."""
        if mark not in self.tried:
            self.tried = (*self.tried[1 - TRIED_MAX :], mark)


class _Kept(_Head, kw_only=True, omit_defaults=True, gc=False):
    """What a change has after which there is an object.

    ``former``: keys under which S3 may still have this file as it was before a rename; they are deleted once S3
    has it under its new one. ``headers`` are those known of the object that is replaced, so that foreign metadata
    survive; ``inherits`` names that object when they are not known yet, as S3 could not be asked: they are
    fetched before it is sent.
    """

    attributes: Attributes | None = None
    former: tuple[Key, ...] = ()
    headers: ObjectHeaders | None = None
    inherits: ContentRef | None = None


class Put(_Kept, kw_only=True, omit_defaults=True, gc=False, tag="put"):
    """The content of blob ``blob_id``, or nothing without one (a folder's marker).

    Where ``base`` is set, bytes below ``base_limit`` that are not in ``extents`` are those of ``base``; ``sums``
    are its blocks' checksums, where they fit; ``synced``: the blob was forced to the disk once, and since then
    before every row that tells of more, but for the bytes in ``filled``, which are also those of ``base``.
    ``content_seq`` is the seq of the last change of the bytes (later ones changed attributes only).
    ``upload_id`` names an unfinished multipart upload of the blob, begun with ``upload_attributes``
    (``upload_streamed``: without their times, as the file was still being written). ``detach`` asks for the base
    to be fetched before anything else, because changes wait for each other in a circle.
    """

    content_seq: int = 0
    size: int = 0
    blob_id: str = ""
    base: ContentRef | None = None
    base_limit: int = 0
    extents: tuple[tuple[int, int], ...] = ()
    synced: bool = False
    filled: tuple[tuple[int, int], ...] = ()
    sums: bytes = b""
    upload_id: str = ""
    upload_attributes: Attributes | None = None
    upload_streamed: bool = False
    detach: bool = False

    @property
    def reads(self) -> Key | None:
        """The key whose present content in S3 this change still needs, if any."""
        return None if self.base is None else self.base.key


class Copy(_Kept, kw_only=True, omit_defaults=True, gc=False, tag="copy"):
    """Exactly ``source``, copied inside S3; without ``replace_headers`` with all that is stored with it."""

    source: ContentRef
    replace_headers: bool = True

    @property
    def size(self) -> int:
        """How many bytes the key gets."""
        return self.source.size

    @property
    def reads(self) -> Key | None:
        """The key whose present content in S3 this change still needs."""
        return self.source.key


class Delete(_Head, kw_only=True, omit_defaults=True, gc=False, tag="delete"):
    """Nothing is to be there any more."""

    size: ClassVar[int] = 0
    reads: ClassVar[Key | None] = None
    former: ClassVar[tuple[Key, ...]] = ()


PutOrCopy: TypeAlias = Put | Copy
"""After which there is an object."""
Change: TypeAlias = Put | Copy | Delete
"""The desired state of one key, as long as S3 does not have it. One row of the journal."""


def as_copy(change: PutOrCopy, content: ContentRef) -> Copy:
    """What is left of ``change`` once S3 has its bytes, ``content``, under the key: what is stored beside them."""
    kept = {name: getattr(change, name) for name in _Kept.__struct_fields__}
    state = State.OPEN if change.state is State.OPEN else State.QUEUED
    return Copy(**{**kept, "former": (), "state": state}, source=content)


def renamed(
    change: PutOrCopy, key: Key, *, expected: ETag | None, state: State = State.QUEUED
) -> PutOrCopy:
    """``change`` under another key, of which nothing was sent yet."""
    moved = msgspec.structs.replace(change, key=key, expected=expected, state=state, tried=())
    moved.forget_failures()
    if isinstance(moved, Put):
        moved.upload_id = ""
    return moved


def as_put(change: Copy, blob_id: str) -> Put:
    """``change`` as one that sends its source's bytes, which blob ``blob_id`` is to get first."""
    kept = {name: getattr(change, name) for name in _Kept.__struct_fields__}
    return Put(
        **{**kept, "state": State.QUEUED},
        size=change.size,
        base=change.source,
        blob_id=blob_id,
        detach=True,
    )


def blob_id_of(change: Change | None) -> str:
    """The id of the blob that ``change`` sends; empty without one."""
    return change.blob_id if isinstance(change, Put) else ""


TRIED_MAX = 16
"""So many unanswered writes of one key are remembered."""
SETTLED_NS = 2_000_000_000
"""How far a clock may be off between two looks at it."""


def carries(change: Put) -> bool:
    """Does the object of a multipart upload that was begun with ``upload_attributes`` carry those of now?

    An upload that began while the file was written carries no times: then its LastModified stands for
    an mtime that came from writing (not one that was set to some time before).
    """
    begun, now = change.upload_attributes, change.attributes
    if begun is None or now is None:
        return begun is now
    if (begun.mode, begun.uid, begun.gid, begun.rdev) != (now.mode, now.uid, now.gid, now.rdev):
        return False
    if begun.xattrs != now.xattrs:
        return False
    if change.upload_streamed:
        return now.mtime_ns >= begun.mtime_ns - SETTLED_NS
    return now.mtime_ns == begun.mtime_ns


def parent_of(key: Key) -> Key:
    """The key of the directory that holds ``key``; empty for the bucket's top.

    >>> parent_of("a/b/c"), parent_of("a/b/"), parent_of("a")
    ('a/b/', 'a/', '')
    """
    return key[: key.rstrip("/").rfind("/") + 1] if key.endswith("/") else key[: key.rfind("/") + 1]

"""What the uploader reports, each at once when it is so: one union, for one ``match``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from s3mount.refs import ContentRef, Key, PutResult
from s3mount.spool.journal.changes import Change, Copy

ConflictOutcome: TypeAlias = Literal["kept-both", "overwritten", "held", "not-deleted", "not-moved"]


@dataclass(frozen=True, slots=True)
class Answered:
    """S3 has each content under its key by our hand, ``None`` after a deletion; the journal still has the changes."""

    answers: list[tuple[Key, Change, ContentRef | None]]


@dataclass(frozen=True, slots=True)
class Uploaded:
    """S3 has exactly ``change``, which is no longer pending; ``result`` is ``None`` for a deletion."""

    change: Change
    result: PutResult | None


@dataclass(frozen=True, slots=True)
class UploadedEarlier:
    """S3 has an earlier state of ``change``, which stays pending; ``content`` is ``None`` where it has nothing."""

    change: Change
    content: ContentRef | None


@dataclass(frozen=True, slots=True)
class ContentUploaded:
    """S3 has the bytes of ``change``, not its present attributes; the blob is not needed any more."""

    change: Copy
    blob_id: str
    content: ContentRef


@dataclass(frozen=True, slots=True)
class GivenUp:
    """``change``, no longer pending, gave way to what somebody else did first: theirs stays as it is."""

    change: Change


@dataclass(frozen=True, slots=True)
class Failed:
    """A try of ``change``, which stays pending, ended with its ``error``; its state tells whether it is tried again."""

    change: Change


@dataclass(frozen=True, slots=True)
class Conflicted:
    """Somebody else wrote ``key`` first; ``kept_as`` is the key that ours has now, where that is another."""

    key: Key
    outcome: ConflictOutcome
    kept_as: Key = ""


@dataclass(frozen=True, slots=True)
class NotInS3:
    """What ``ContentProvider.find_in_s3`` said of ``key`` does not hold (any more)."""

    key: Key


UploadEvent: TypeAlias = (
    Answered
    | Uploaded
    | UploadedEarlier
    | ContentUploaded
    | GivenUp
    | Failed
    | Conflicted
    | NotInS3
)
Report: TypeAlias = Callable[[UploadEvent], None]
"""Told of each event, before the uploader does anything else. What it raises is logged, and no harm to the upload."""

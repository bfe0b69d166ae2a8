"""A pending change: what a key shall become in S3, and what is known about it now."""

from __future__ import annotations

from typing import Literal

import msgspec

from s3mount.refs import Attributes, ContentRef, ETag, Key, ObjectHeaders
from s3mount.spool.states import State

ABSENT = ""
"""``Change.expected`` when S3 is known to hold nothing under the key."""


class Change(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The desired state of one key, as long as S3 does not have it. One row of the journal.

    ``put``: the content of blob ``blob_id``; where ``base`` is set, bytes below ``base_limit`` that are
    not in ``extents`` are those of ``base``. ``copy``: exactly ``source``, copied inside S3.
    ``delete``: nothing. ``seq`` is the number of the last change, ``first_seq`` of the first one
    that S3 lacks. ``expected`` is the ETag that S3 is believed to hold under the key: ``None``
    unknown, ``ABSENT`` nothing. With ``replace_headers`` unset a copy keeps all stored with its source;
    ``headers`` are those known of the object that is replaced, so that foreign metadata survive.
    ``upload_id`` names an unfinished multipart upload of the blob. ``detach`` asks for the base to be
    fetched before anything else, because changes wait for each other in a circle.
    """

    key: Key
    op: Literal["put", "copy", "delete"]
    seq: int = 0
    first_seq: int = 0
    state: State = State.QUEUED
    attributes: Attributes | None = None
    size: int = 0
    blob_id: str = ""
    base: ContentRef | None = None
    base_limit: int = 0
    extents: list[tuple[int, int]] = []
    source: ContentRef | None = None
    headers: ObjectHeaders | None = None
    replace_headers: bool = True
    storage_class: str | None = None
    expected: ETag | None = None
    upload_id: str = ""
    detach: bool = False
    attempts: int = 0
    error: str = ""

    @property
    def reads(self) -> Key | None:
        """The key whose present content in S3 this change still needs, if any."""
        if self.op == "copy" and self.source is not None:
            return self.source.key
        if self.op == "put" and self.base is not None:
            return self.base.key
        return None


def parent_of(key: Key) -> Key:
    """The key of the directory that holds ``key``; empty for the bucket's top.

    >>> parent_of("a/b/c"), parent_of("a/b/"), parent_of("a")
    ('a/b/', 'a/', '')
    """
    return key[: key.rstrip("/").rfind("/") + 1] if key.endswith("/") else key[: key.rfind("/") + 1]

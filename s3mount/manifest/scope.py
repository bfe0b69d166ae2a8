"""What a manifest is a list of: all keys of a part of a bucket at a time, or what one mount has put.

It stands in the manifest itself, so that a restore knows which keys the manifest would name if they had been
there. The number of entries belongs to it: a manifest that was cut or added to is a list of nothing in particular.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote, unquote

import msgspec

from s3mount.errors import UsageError
from s3mount.manifest.times import format_time, parse_time

COLUMN = "scope"
"""The column of the CSV; the last entry's field holds it, all others are empty."""
METADATA = b"s3mount.scope"
"""The name in a Parquet file's metadata."""


class Scope(msgspec.Struct, frozen=True):
    """``is_whole``: of all keys below ``prefix`` (a folder, or empty), else of some of them.

    ``at_ns`` is the time that is listed, ``count`` how many entries there are.
    """

    bucket: str
    prefix: str
    at_ns: int
    is_whole: bool
    count: int = 0

    def __str__(self) -> str:
        """``all s3://BUCKET/PREFIX TIME COUNT``, the prefix URL-encoded; ``put`` where it is not whole."""
        kind = "all" if self.is_whole else "put"
        return (
            f"{kind} s3://{self.bucket}/{quote(self.prefix)} {format_time(self.at_ns)} {self.count}"
        )


def parse(text: str) -> Scope | None:
    """What ``str`` of a Scope wrote; ``None`` for anything else."""
    words = text.split(" ")
    if len(words) != 4 or words[0] not in ("all", "put") or not words[3].isdecimal():
        return None
    bucket, slash, prefix = words[1].removeprefix("s3://").partition("/")
    try:
        at_ns = parse_time(words[2], 0)
    except UsageError:
        return None
    if not bucket or not slash:
        return None
    return Scope(bucket, unquote(prefix), at_ns, words[0] == "all", int(words[3]))


class Scopes(msgspec.Struct, frozen=True):
    """The scopes that one file tells; several where manifests were joined. ``count``: entries there are."""

    found: Sequence[Scope]
    count: int

    @property
    def is_changed(self) -> bool:
        """Are there more or fewer entries than when it was written?"""
        return bool(self.found) and sum(scope.count for scope in self.found) != self.count

    def of(self, bucket: str) -> Scope | None:
        """The one scope of a bucket; ``None`` where none, several or a changed one is told."""
        found = [scope for scope in self.found if scope.bucket == bucket]
        return found[0] if len(found) == 1 and not self.is_changed else None

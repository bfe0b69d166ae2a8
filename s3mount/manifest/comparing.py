"""What differs between two manifests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from s3mount.manifest.model import Entry, is_same_etag


class Difference(NamedTuple):
    """One key that differs; ``before`` is ``None`` for an added one, ``after`` for a removed one."""

    kind: Literal["added", "removed", "changed"]
    before: Entry | None
    after: Entry | None

    @property
    def entry(self) -> Entry:
        """The side that there is, the later one first."""
        found = self.after or self.before
        assert found is not None
        return found


def differences(
    before: Iterator[Entry], after: Iterator[Entry], *, by_content: bool = False
) -> Iterator[Difference]:
    """Keys of which another version, or none, is named; both sides sorted as ``sorted_entries`` does.

    ``by_content``: versions of the same size and ETag count as the same, as after a restore.
    """
    old, new = next(before, None), next(after, None)
    while old is not None or new is not None:
        if new is None or (old is not None and (old.bucket, old.key) < (new.bucket, new.key)):
            yield Difference("removed", old, None)
            old = next(before, None)
        elif old is None or (new.bucket, new.key) < (old.bucket, old.key):
            yield Difference("added", None, new)
            new = next(after, None)
        else:
            same = by_content and old.size == new.size and bool(old.etag)
            same = same and is_same_etag(old.etag, new.etag)
            if not same and not is_same(old, new):
                yield Difference("changed", old, new)
            old, new = next(before, None), next(after, None)


def is_same(old: Entry, new: Entry) -> bool:
    """Do two entries of one key name the same version, as far as they tell?

    A version id decides, except ``null``, which is written over in place, and where one side names
    none: then all that both sides know must agree.
    """
    if old.version_id is not None and new.version_id is not None:
        if old.version_id != new.version_id:
            return False
        if old.version_id != "null":
            return True
    if old.etag and new.etag and not is_same_etag(old.etag, new.etag):
        return False
    pairs = (
        (old.size, new.size),
        (_second(old.last_modified_ns), _second(new.last_modified_ns)),
    )
    return all(one is None or other is None or one == other for one, other in pairs)


def _second(time_ns: int | None) -> int | None:
    """Whole seconds: some sources tell no more."""
    return None if time_ns is None else time_ns // 1_000_000_000

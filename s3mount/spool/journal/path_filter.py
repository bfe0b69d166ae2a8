"""Which pending changes a path on the command line means, and which others are given up with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from s3mount.refs import Key
from s3mount.spool.journal.changes import Change, Delete, parent_of


def at_or_below(path: Key, key: Key) -> bool:
    """Is ``key`` that of ``path`` (without a ``/`` at its end), its marker, or below it? All are below the empty path.

    >>> [at_or_below("a", key) for key in ("a", "a/", "a/b", "ab")]
    [True, True, True, False]
    """
    return not path or key == path or key.startswith(f"{path}/")


def select(changes: Iterable[Change], prefix: Key, paths: Iterable[str]) -> list[Change]:
    """The changes at or below any of ``paths``, which are relative to ``prefix``; all without paths."""
    wanted = [(prefix + path.strip("/")).rstrip("/") for path in paths]
    return [
        change
        for change in changes
        if not wanted or any(at_or_below(path, change.key) for path in wanted)
    ]


def given_up_with(changes: Mapping[Key, Change], selected: Iterable[Key]) -> list[Key]:
    """``selected``, and the deletions that must be given up with them so that nothing is lost by it.

    A file that was moved is a copy, or its new content, and the deletion of its former key. Without the first
    the deletion must not happen, nor that of the directories which the former key lies in.
    """
    wanted = list(dict.fromkeys(selected))
    seen = set(wanted)

    def add_deletion(key: Key) -> None:
        change = changes.get(key)
        if key not in seen and isinstance(change, Delete):
            seen.add(key)
            wanted.append(key)

    # The list grows while it is walked through.
    for key in wanted:
        change = changes.get(key)
        if change is None:
            continue
        if change.reads is not None and change.reads != key:
            add_deletion(change.reads)
        for former in change.former:
            add_deletion(former)
        if isinstance(change, Delete):
            above = parent_of(key)
            while above:
                add_deletion(above)
                above = parent_of(above)
    return wanted

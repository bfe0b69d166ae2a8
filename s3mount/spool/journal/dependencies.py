"""Dependencies among pending changes: what lies below which directory, and what still reads what S3 holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from s3mount.refs import Key
from s3mount.spool.journal.changes import Change, Delete, parent_of


class Dependencies:
    """The pending changes of one spool, by key in ``changes``, and the indexes over them. In memory only.

    ``bytes_of`` tells how many bytes are to be sent for a change; ``put_bytes`` is their sum. ``troubled`` are the
    changes of which a try failed. Both are as they were when the changes were added last.
    """

    def __init__(self, bytes_of: Callable[[Change], int]) -> None:
        self._bytes_of = bytes_of
        self.changes: dict[Key, Change] = {}
        self._below: dict[Key, set[Key]] = {}
        self._implied: dict[Key, dict[Key, int]] = {}
        self._readers: dict[Key, set[Key]] = {}
        self._reads: dict[Key, Key] = {}
        self._moved: dict[Key, set[Key]] = {}
        self._former: dict[Key, tuple[Key, ...]] = {}
        self.put_bytes = 0
        self.troubled: dict[Key, Change] = {}
        self._put_sizes: dict[Key, int] = {}

    def add(self, change: Change) -> None:
        """``change`` is pending from now on; that of the same key was removed before."""
        self.changes[change.key] = change
        self._below.setdefault(parent_of(change.key), set()).add(change.key)
        if not isinstance(change, Delete):
            self._count_implied(change.key, 1)
        source = change.reads
        if source is not None:
            self._readers.setdefault(source, set()).add(change.key)
            self._reads[change.key] = source
        size_bytes = self._bytes_of(change)
        if size_bytes:
            self._put_sizes[change.key] = size_bytes
            self.put_bytes += size_bytes
        if change.error:
            self.troubled[change.key] = change
        if change.former:
            self._former[change.key] = change.former
            for former in change.former:
                self._moved.setdefault(former, set()).add(change.key)

    def remove(self, change: Change) -> None:
        """``change`` is not pending any more. Repeatable."""
        if self.changes.get(change.key) is not change:
            return
        del self.changes[change.key]
        self.put_bytes -= self._put_sizes.pop(change.key, 0)
        self.troubled.pop(change.key, None)
        _discard(self._below, parent_of(change.key), change.key)
        if not isinstance(change, Delete):
            self._count_implied(change.key, -1)
        source = self._reads.pop(change.key, None)
        if source is not None:
            _discard(self._readers, source, change.key)
        for former in self._former.pop(change.key, ()):
            _discard(self._moved, former, change.key)

    def _count_implied(self, key: Key, step: int) -> None:
        """Count ``key`` for every directory above it, listed under that directory's parent."""
        directory = parent_of(key)
        while directory:
            above = parent_of(directory)
            counts = self._implied.setdefault(above, {})
            counts[directory] = counts.get(directory, 0) + step
            if not counts[directory]:
                del counts[directory]
                if not counts:
                    del self._implied[above]
            directory = above

    def directories_in(self, directory: Key) -> Iterable[Key]:
        """Keys of directories directly in ``directory`` that have something pending (no deletion) below."""
        return self._implied.get(directory, ())

    def implies(self, directory: Key) -> bool:
        """Is anything but deletions pending below ``directory``?"""
        return directory in self._implied.get(parent_of(directory), ())

    def keys_below(self, directory: Key) -> Iterable[Key]:
        """The keys of ``below``."""
        return self._below.get(directory, ())

    def below(self, directory: Key) -> Iterator[Change]:
        """The changes of keys directly in ``directory`` (a key that is empty or ends with ``/``)."""
        for key in self._below.get(directory, ()):
            yield self.changes[key]

    def under(self, prefix: Key) -> list[Change]:
        """All changes of keys that begin with ``prefix``, in order of their seq."""
        found = [change for key, change in self.changes.items() if key.startswith(prefix)]
        return sorted(found, key=lambda change: change.seq)

    def readers_of(self, key: Key) -> set[Key]:
        """Keys whose change still needs what S3 holds under ``key``."""
        return self._readers.get(key, set())

    def moved_from(self, key: Key) -> list[Key]:
        """The keys that what S3 holds under ``key`` may have by now: those of renames under way, the last first."""
        found: dict[Key, None] = {}
        for moved in self._moved.get(key, ()):
            found |= dict.fromkeys((moved, *reversed(self._former[moved])))
        found.pop(key, None)
        return list(found)

    def blocker_of(self, change: Change) -> Key | None:
        """A key whose change must be done before ``change`` may be sent, if there is one."""
        for reader in self.readers_of(change.key):
            if reader != change.key:
                return reader
        if not isinstance(change, Delete):
            return None
        moved = next(iter(self._moved.get(change.key, ())), None)
        if moved is not None:
            # Nothing but the deletion of a directory's marker waits for a deletion: this makes no circle.
            return moved
        if change.key.endswith("/"):
            for below in self.below(change.key):
                if isinstance(below, Delete):
                    return below.key
        return None

    def waits_in_circle(self, change: Change) -> bool:
        """Would ``change``, if recorded now, wait for itself by way of others?"""
        seen: set[Key] = set()
        todo = [key for key in self.readers_of(change.key) if key != change.key]
        while todo:
            key = todo.pop()
            if key == change.reads:
                return True
            if key not in seen:
                seen.add(key)
                todo.extend(reader for reader in self.readers_of(key) if reader != key)
        return False


def _discard(index: dict[Key, set[Key]], name: Key, member: Key) -> None:
    members = index.get(name)
    if members is not None:
        members.discard(member)
        if not members:
            del index[name]

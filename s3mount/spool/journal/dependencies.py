"""Dependencies among pending changes: what lies below which directory, and what still reads what S3 holds."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat

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

    def take(self, exchange: Exchange) -> None:
        """``remove`` and ``add`` of all that ``exchange`` was told of; its changes must still be as they were then."""
        changes, new, gone = self.changes, exchange.new, exchange.gone
        _consume(map(changes.pop, gone.keys() - new.keys(), repeat(None)))
        changes.update(new)
        for directory, keys in exchange.left.items():
            self._below.get(directory, set()).difference_update(keys)
        for directory, keys in exchange.came.items():
            self._below.setdefault(directory, set()).update(keys)
        for directory in exchange.left.keys() | exchange.came.keys():
            if not self._below.get(directory, True):
                del self._below[directory]
        for directory, step in exchange.implied.items():
            if step:
                self._count_implied_in(directory, step)
        self.put_bytes -= sum(map(self._put_sizes.pop, gone, repeat(0)))
        self._put_sizes.update(exchange.sizes)
        self.put_bytes += sum(exchange.sizes.values())
        _consume(map(self.troubled.pop, gone, repeat(None)))
        self.troubled.update(exchange.troubled)
        self._take_readers(exchange)

    def _take_readers(self, exchange: Exchange) -> None:
        come, go = exchange.readers, exchange.left_readers
        _consume(map(self._reads.pop, go.of, repeat(None)))
        self._reads.update((key, source) for key, (source,) in come.of.items())
        _swap(self._readers, go.by, come.by)
        come, go = exchange.moved, exchange.left_moved
        _consume(map(self._former.pop, go.of, repeat(None)))
        self._former.update(come.of)
        _swap(self._moved, go.by, come.by)

    def exchange(self) -> Exchange:
        """A new, empty one."""
        return Exchange(self._bytes_of, self._reads, self._former)

    def _count_implied(self, key: Key, step: int) -> None:
        """Count ``key`` for every directory above it, listed under that directory's parent."""
        self._count_implied_in(parent_of(key), step)

    def _count_implied_in(self, directory: Key, step: int) -> None:
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


class Exchange:
    """Very many changes that come and go at once: what ``Dependencies.take`` needs of them, found out before."""

    def __init__(
        self,
        bytes_of: Callable[[Change], int],
        reads: Mapping[Key, Key],
        former: Mapping[Key, tuple[Key, ...]],
    ) -> None:
        self._bytes_of = bytes_of
        self._reads = reads
        self._former = former
        self.new: dict[Key, Change] = {}
        self.gone: dict[Key, Change] = {}
        self.left: dict[Key, set[Key]] = {}
        self.came: dict[Key, set[Key]] = {}
        self.implied: Counter[Key] = Counter()
        self.sizes: dict[Key, int] = {}
        self.troubled: dict[Key, Change] = {}
        self.readers, self.left_readers = _Named(), _Named()
        self.moved, self.left_moved = _Named(), _Named()

    def add(self, key: Key, there: Change | None, change: Change | None) -> None:
        """``change`` comes in place of ``there``; ``None``: there is, or will be, nothing."""
        directory = parent_of(key)
        if there is not None:
            self.gone[key] = there
            self.implied[directory] -= not isinstance(there, Delete)
            if key in self._reads:
                self.left_readers.add(key, (self._reads[key],))
            if key in self._former:
                self.left_moved.add(key, self._former[key])
        if change is None:
            self.left.setdefault(directory, set()).add(key)
            return
        self.new[key] = change
        self.came.setdefault(directory, set()).add(key)
        self.implied[directory] += not isinstance(change, Delete)
        size_bytes = self._bytes_of(change)
        if size_bytes:
            self.sizes[key] = size_bytes
        if change.error:
            self.troubled[key] = change
        if change.reads is not None:
            self.readers.add(key, (change.reads,))
        if change.former:
            self.moved.add(key, change.former)

    def drop(self, key: Key) -> None:
        """As if ``key`` had not been told of. Repeatable."""
        directory = parent_of(key)
        there, change = self.gone.pop(key, None), self.new.pop(key, None)
        self.implied[directory] += there is not None and not isinstance(there, Delete)
        self.implied[directory] -= change is not None and not isinstance(change, Delete)
        _discard(self.left, directory, key)
        _discard(self.came, directory, key)
        for named in (self.readers, self.left_readers, self.moved, self.left_moved):
            named.drop(key)
        self.sizes.pop(key, None)
        self.troubled.pop(key, None)


class _Named:
    """Keys, and the keys that each names: ``of`` it, and ``by`` whom each is named."""

    def __init__(self) -> None:
        self.of: dict[Key, tuple[Key, ...]] = {}
        self.by: dict[Key, set[Key]] = {}

    def add(self, key: Key, names: tuple[Key, ...]) -> None:
        self.of[key] = names
        for name in names:
            self.by.setdefault(name, set()).add(key)

    def drop(self, key: Key) -> None:
        for name in self.of.pop(key, ()):
            _discard(self.by, name, key)


def _swap(index: dict[Key, set[Key]], less: dict[Key, set[Key]], more: dict[Key, set[Key]]) -> None:
    """Take the members of ``less`` from ``index``, and let it have those of ``more``, which it takes over."""
    for name, members in less.items():
        left = index.get(name)
        if left is not None:
            left -= members
            if not left:
                del index[name]
    for name in index.keys() & more.keys():
        more[name] |= index[name]
    index.update(more)


def _consume(iterator: Iterator[object]) -> None:
    deque(iterator, maxlen=0)


def _discard(index: dict[Key, set[Key]], name: Key, member: Key) -> None:
    members = index.get(name)
    if members is not None:
        members.discard(member)
        if not members:
            del index[name]

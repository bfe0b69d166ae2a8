"""Dependencies among pending changes: what lies below which directory, and what still reads what S3 holds."""

from __future__ import annotations

from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Set,
    ValuesView,
)
from itertools import chain
from typing import TypeAlias, TypeVar, overload

from s3mount.refs import Key
from s3mount.spool.journal.changes import Change, Delete, parent_of

T = TypeVar("T")
Names: TypeAlias = dict[Key, None]
"""A set, but of no cost to the garbage collector, which looks at sets and not at such dicts: there are very many."""
_NONE: Names = {}


class Dependencies:
    """The pending changes of one spool, by key in ``changes``, and the indexes over them. In memory only.

    ``bytes_of`` tells how many bytes are to be sent for a change; ``put_bytes`` is their sum. ``troubled`` are the
    changes of which a try failed. Both are as they were when the changes were added last.

    An exchange of very many changes is taken at once, however many they are: from then on it lies above what was
    there, key by key, until ``settle`` has brought each key to its place.
    """

    def __init__(self, bytes_of: Callable[[Change], int]) -> None:
        self._bytes_of = bytes_of
        self._index = _Index(bytes_of)
        self._planned: Exchange | None = None
        self._taken: Exchange | None = None
        self._changes = _Changes(self._index.changes)

    @property
    def changes(self) -> Mapping[Key, Change]:
        """What is pending, by key."""
        return self._changes

    @property
    def put_bytes(self) -> int:
        """How many bytes are to be sent."""
        taken, total = self._taken, self._index.put_bytes
        return total if taken is None else total - taken.gone.put_bytes + taken.new.put_bytes

    @property
    def troubled(self) -> Mapping[Key, Change]:
        """The changes of which a try failed, by key."""
        taken, found = self._taken, self._index.troubled
        if taken is None:
            return found
        gone = taken.gone.changes
        return {key: each for key, each in found.items() if key not in gone} | taken.new.troubled

    def add(self, change: Change) -> None:
        """``change`` is pending from now on; that of the same key was removed before."""
        self.altered(change.key)
        self._settle(change.key)
        self._index.add(change)

    def remove(self, change: Change) -> None:
        """``change`` is not pending any more. Repeatable."""
        if self._changes.get(change.key) is not change:
            return
        self.altered(change.key)
        self._settle(change.key)
        self._index.remove(change.key)

    def altered(self, key: Key) -> None:
        """What is pending of ``key`` is not as it was, or something else: an exchange that is planned is told."""
        if self._planned is not None:
            self._planned.altered.add(key)

    # ------------------------------------------------------------------ at once

    def exchange(self) -> Exchange:
        """A new, empty one, until ``take`` or ``forget``; there is one at a time."""
        if self._taken is not None:
            self.settle(self._taken.keys())
        self._planned = Exchange(self._bytes_of)
        return self._planned

    def forget(self) -> None:
        """The exchange that is planned is not to be. Repeatable."""
        self._planned = None

    def take(self, exchange: Exchange) -> None:
        """``remove`` and ``add`` of all that ``exchange`` was told of; its changes must still be as they were then."""
        self._planned = None
        self._taken = self._changes.taken = exchange

    def settle(self, keys: Iterable[Key]) -> None:
        """Bring these keys of what was taken to their place. Repeatable."""
        for key in keys:
            self._settle(key)
        if self._taken is not None and self._taken.is_empty:
            self._taken = self._changes.taken = None

    def _settle(self, key: Key) -> None:
        if self._taken is None:
            return
        if self._taken.gone.remove(key) is not None:
            self._index.remove(key)
        change = self._taken.new.remove(key)
        if change is not None:
            self._index.add(change)

    # ------------------------------------------------------------- what is asked

    def directories_in(self, directory: Key) -> Iterable[Key]:
        """Keys of directories directly in ``directory`` that have something pending (no deletion) below."""
        found: Iterable[Key] = self._index.implied.get(directory, ())
        if self._taken is None:
            return found
        both = {*found, *self._taken.new.implied.get(directory, ())}
        return [each for each in both if self.implies(each)]

    def implies(self, directory: Key) -> bool:
        """Is anything but deletions pending below ``directory``?"""
        return self.count_below(directory) > 0

    def count_below(self, directory: Key) -> int:
        """How many changes, but for deletions, are pending below ``directory``, at any depth."""
        taken, count = self._taken, self._index.count_below(directory)
        if taken is None:
            return count
        return count - taken.gone.count_below(directory) + taken.new.count_below(directory)

    def keys_below(self, directory: Key) -> Set[Key]:
        """The keys of ``below``."""
        return self._seen(lambda index: index.below, directory)

    def below(self, directory: Key) -> Iterator[Change]:
        """The changes of keys directly in ``directory`` (a key that is empty or ends with ``/``)."""
        for key in self.keys_below(directory):
            yield self._changes[key]

    def readers_of(self, key: Key) -> Set[Key]:
        """Keys whose change still needs what S3 holds under ``key``."""
        return self._seen(lambda index: index.readers, key)

    def _moved_of(self, key: Key) -> Set[Key]:
        """Keys whose change has ``key`` among its former ones."""
        return self._seen(lambda index: index.moved, key)

    def _seen(self, of: Callable[[_Index], Mapping[Key, Names]], name: Key) -> Set[Key]:
        """The keys under ``name`` in the part ``of`` an index, by what is pending now."""
        keys = of(self._index).get(name, _NONE).keys()
        if self._taken is None:
            return keys
        gone = self._taken.gone.changes
        return {key for key in keys if key not in gone} | of(self._taken.new).get(
            name, _NONE
        ).keys()

    def moved_from(self, key: Key) -> list[Key]:
        """The keys that what S3 holds under ``key`` may have by now: those of renames under way, the last first."""
        found: dict[Key, None] = {}
        for moved in self._moved_of(key):
            taken, index = self._taken, self._index
            if taken is not None and moved in taken.new.changes:
                index = taken.new
            found |= dict.fromkeys((moved, *reversed(index.former[moved])))
        found.pop(key, None)
        return list(found)

    def blocker_of(self, change: Change) -> Key | None:
        """A key whose change must be done before ``change`` may be sent, if there is one."""
        for reader in self.readers_of(change.key):
            if reader != change.key:
                return reader
        if not isinstance(change, Delete):
            return None
        moved = next(iter(self._moved_of(change.key)), None)
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
    """Very many changes that come and go at once: what ``Dependencies.take`` needs of them, found out before.

    ``altered`` are the keys of which something else, or the same in another state, is pending than at some time
    since it was made.
    """

    def __init__(self, bytes_of: Callable[[Change], int]) -> None:
        self.new = _Index(bytes_of)
        self.gone = _Index(bytes_of)
        self.altered: set[Key] = set()

    def add(self, key: Key, there: Change | None, change: Change | None) -> None:
        """``change`` comes in place of ``there``; ``None``: there is, or will be, nothing."""
        self.drop(key)
        if there is not None:
            self.gone.add(there)
        if change is not None:
            self.new.add(change)

    def drop(self, key: Key) -> None:
        """As if ``key`` had not been told of. Repeatable."""
        self.gone.remove(key)
        self.new.remove(key)

    def keys(self) -> list[Key]:
        """All that it is about."""
        return list(self.gone.changes.keys() | self.new.changes.keys())

    @property
    def is_empty(self) -> bool:
        """Is it about nothing (any more)?"""
        return not self.gone.changes and not self.new.changes


class _Index:
    """Changes by key, and for each name which of them are below it, read it or had it."""

    def __init__(self, bytes_of: Callable[[Change], int]) -> None:
        self._bytes_of = bytes_of
        self.changes: dict[Key, Change] = {}
        self.below: dict[Key, Names] = {}
        self.implied: dict[Key, dict[Key, int]] = {}
        self.readers: dict[Key, Names] = {}
        self._reads: dict[Key, Key] = {}
        self.moved: dict[Key, Names] = {}
        self.former: dict[Key, tuple[Key, ...]] = {}
        self.put_bytes = 0
        self.troubled: dict[Key, Change] = {}
        self._put_sizes: dict[Key, int] = {}

    def add(self, change: Change) -> None:
        """``change`` is one of them; that of the same key is not."""
        self.changes[change.key] = change
        self.below.setdefault(parent_of(change.key), {})[change.key] = None
        if not isinstance(change, Delete):
            self._count_implied(change.key, 1)
        source = change.reads
        if source is not None:
            self.readers.setdefault(source, {})[change.key] = None
            self._reads[change.key] = source
        size_bytes = self._bytes_of(change)
        if size_bytes:
            self._put_sizes[change.key] = size_bytes
            self.put_bytes += size_bytes
        if change.error:
            self.troubled[change.key] = change
        if change.former:
            self.former[change.key] = change.former
            for former in change.former:
                self.moved.setdefault(former, {})[change.key] = None

    def remove(self, key: Key) -> Change | None:
        """The change of ``key``, which is none of them any more; ``None`` where there is none. Repeatable."""
        change = self.changes.pop(key, None)
        if change is None:
            return None
        self.put_bytes -= self._put_sizes.pop(key, 0)
        self.troubled.pop(key, None)
        _discard(self.below, parent_of(key), key)
        if not isinstance(change, Delete):
            self._count_implied(key, -1)
        source = self._reads.pop(key, None)
        if source is not None:
            _discard(self.readers, source, key)
        for former in self.former.pop(key, ()):
            _discard(self.moved, former, key)
        return change

    def _count_implied(self, key: Key, step: int) -> None:
        """Count ``key`` for every directory above it, listed under that directory's parent."""
        directory = parent_of(key)
        while directory:
            above = parent_of(directory)
            counts = self.implied.setdefault(above, {})
            counts[directory] = counts.get(directory, 0) + step
            if not counts[directory]:
                del counts[directory]
                if not counts:
                    del self.implied[above]
            directory = above

    def count_below(self, directory: Key) -> int:
        """How many of them, but for deletions, are below ``directory``, at any depth."""
        return self.implied.get(parent_of(directory), {}).get(directory, 0)


class _Changes(Mapping[Key, Change]):
    """``stored``, and above it what was ``taken`` and is not settled yet."""

    def __init__(self, stored: dict[Key, Change]) -> None:
        self._stored = stored
        self.taken: Exchange | None = None

    def __getitem__(self, key: Key) -> Change:
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    @overload
    def get(self, key: Key, /) -> Change | None: ...
    @overload
    def get(self, key: Key, /, default: Change | T) -> Change | T: ...
    def get(self, key: Key, /, default: object = None) -> object:
        """What is pending of ``key``, or ``default``."""
        if self.taken is not None:
            found = self.taken.new.changes.get(key)
            if found is not None:
                return found
            if key in self.taken.gone.changes:
                return default
        return self._stored.get(key, default)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key) is not None

    def __len__(self) -> int:
        taken = self.taken
        if taken is None:
            return len(self._stored)
        return len(self._stored) - len(taken.gone.changes) + len(taken.new.changes)

    def __iter__(self) -> Iterator[Key]:
        if self.taken is None:
            return iter(self._stored)
        gone = self.taken.gone.changes
        left = (key for key in self._stored if key not in gone)
        return chain(left, self.taken.new.changes)

    # Of very many the views of a dict are much faster.

    def keys(self) -> KeysView[Key]:
        """As a dict has them."""
        return self._stored.keys() if self.taken is None else super().keys()

    def values(self) -> ValuesView[Change]:
        """As a dict has them."""
        return self._stored.values() if self.taken is None else super().values()

    def items(self) -> ItemsView[Key, Change]:
        """As a dict has them."""
        return self._stored.items() if self.taken is None else super().items()


def _discard(index: dict[Key, Names], name: Key, member: Key) -> None:
    members = index.get(name)
    if members is not None:
        members.pop(member, None)
        if not members:
            del index[name]

"""What fsync() promised: files that must be there after a power cut, under one of the names they had since."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.sim.model import File, Tree, brief


@dataclass
class Promise:
    """One file as fsync() left it: ``states`` begin with that content, later ones may be there instead.

    ``holders`` are the file, and those that took one of its ``names`` later without fsync(): then it
    ``is_replaced``, and nothing can be said of it. In one that was written again each byte is of one
    of its states.
    """

    states: list[bytes]
    holders: list[File]
    names: set[str] = field(default_factory=set)
    is_replaced: bool = False

    def is_kept_by(self, found: dict[str, bytes | None], discarded: set[str]) -> bool:
        """Does ``found`` (content by path) have the file, under one of its names?

        When something unsynced had to be discarded, what had been moved may have its former name; and
        of what was empty at fsync() or since, or was moved and written since, nothing is left, when what was written
        then is ``discarded``: its name in S3 may be another file's by then.
        """
        there = [
            data
            for name, data in found.items()
            if data is not None and (discarded or name in self.names)
        ]
        is_moved = len(self.states) > 1 and any(holder.is_moved for holder in self.holders)
        is_given_up = (b"" in self.states or is_moved) and not self.names.isdisjoint(discarded)
        return self.is_replaced or is_given_up or any(map(self._may_be, there))

    def _may_be(self, data: bytes) -> bool:
        if data in self.states:
            return True
        sizes = [len(state) for state in self.states]
        return min(sizes) <= len(data) <= max(sizes) and all(
            any(byte == (state[at] if at < len(state) else 0) for state in self.states)
            for at, byte in enumerate(data)
        )

    def __str__(self) -> str:
        names = " or ".join(sorted(self.names))
        return f"{names} as {', '.join(map(brief, self.states))}"


class Ledger:
    """The promises of one program's tree. ``blobs`` are those that must be there as long as a row needs them."""

    def __init__(self) -> None:
        self._promises: dict[int, Promise] = {}
        self.blobs: set[str] = set()

    def synced(self, file: File, tree: Tree, blob_id: str) -> None:
        """fsync() of ``file`` returned, whose bytes are in a blob. All names are on the disk with it."""
        self.blobs.add(blob_id)
        self.follow(tree)
        self._promises[id(file)] = Promise([file.now], [file])
        for promise in self._promises.values():
            promise.names = {name for each in promise.holders for name in _names_of(each, tree)}
        self._promises = {n: each for n, each in self._promises.items() if each.names}

    def follow(self, tree: Tree) -> None:
        """The tree changed, and nothing was synced."""
        for number, promise in list(self._promises.items()):
            for holder in promise.holders:
                promise.names.update(_names_of(holder, tree))
            for name in sorted(promise.names):
                other = tree.files.get(name)
                if other is not None and all(other is not holder for holder in promise.holders):
                    promise.holders.append(other)
                    promise.is_replaced = True
            now = promise.holders[0].now
            if now != promise.states[-1]:
                promise.states.append(now)
            if not any(_names_of(holder, tree) for holder in promise.holders):
                del self._promises[number]

    def may_have_become(self, later: Tree, tree: Tree) -> None:
        """An operation that would have made ``later`` of ``tree`` was cut off."""
        fresh = set(later.files) - set(tree.files)
        for number, promise in list(self._promises.items()):
            for name in {name for each in promise.holders for name in _names_of(each, tree)}:
                other = later.files.get(name)
                if other is None and not fresh:
                    self._promises.pop(number, None)
                elif other is None:
                    promise.names |= fresh
                elif other.now != tree.files[name].now:
                    promise.is_replaced = True

    def broken(self, found: dict[str, bytes | None], discarded: set[str]) -> list[str]:
        """The promises that ``found`` does not keep, where the changes of the names ``discarded`` were given up."""
        return [
            str(each) for each in self._promises.values() if not each.is_kept_by(found, discarded)
        ]

    def __len__(self) -> int:
        return len(self._promises)

    def clear(self) -> None:
        """Everything begins anew."""
        self._promises.clear()
        self.blobs.clear()


def _names_of(file: File, tree: Tree) -> list[str]:
    return [path for path, other in tree.files.items() if other is file]

"""Read-ahead across the files of a snapshot: the next files in the catalog's order are prefetched.

The order of a walk is the catalog's: the files of a folder by name, then those of the folders behind it.
How many files ahead are asked for is a multiple of those opened in that order, and nothing in any other.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

from s3mount.cache.prefetched import PrefetchedContent
from s3mount.cache.reader import CacheReader
from s3mount.config import MIB
from s3mount.manifest.catalog import Row
from s3mount.refs import ContentRef
from s3mount.tree.snapshot import SnapshotNode, SnapshotTree

GROWTH = 4
"""The window is this many times the files opened in order: five times as many with each round trip."""
WINDOW_FILES_MAX = 128
EXPECTED_FILES = 8
"""So many files behind the last one are expected, so that a few may be left out."""
WALKS_MAX = 4
"""Programs that walk at the same time."""
HELD_BYTES_MAX = 32 * MIB
"""What was fetched ahead and waits for its reader, in memory."""
FOLDERS_PASSED_MAX = 64
"""Folders without a file that are looked through for the next one at a time."""


class _Walk:
    __slots__ = ("ended", "last", "run", "upcoming")

    def __init__(self, last: Row) -> None:
        self.last = last
        self.run = 0
        self.ended = False
        self.upcoming: OrderedDict[int, PrefetchedContent | None] = OrderedDict()


class SnapshotReadahead:
    """All walks through one past. ``is_listed`` tells whether the catalog knows all of a directory;
    ``reader_of`` is the open cache of a bucket, if it is open."""

    def __init__(
        self,
        tree: SnapshotTree,
        is_listed: Callable[[int], bool],
        reader_of: Callable[[str], CacheReader | None],
    ) -> None:
        self._tree = tree
        self._is_listed = is_listed
        self._reader_of = reader_of
        self._walks: list[_Walk] = []
        self._held_bytes = 0
        self.asked = 0

    def opened(self, node: SnapshotNode) -> PrefetchedContent | None:
        """A program opened a file; what was fetched of it ahead, to be given to ``used`` soon."""
        number = node.row.number
        for walk in self._walks:
            if number in walk.upcoming:
                break
        else:
            walk = _Walk(node.row)
            walk.upcoming[number] = None
            self._walks.append(walk)
            if len(self._walks) > WALKS_MAX:
                self._end(self._walks.pop(0))
            walk.run = -1
        left_out = -1
        prefetched: PrefetchedContent | None = None
        while walk.upcoming:
            passed, prefetched = walk.upcoming.popitem(last=False)
            left_out += 1
            if passed == number:
                break
            self.used(prefetched)
        walk.run = max(0, walk.run + 1 - left_out)
        self._expect(walk)
        return prefetched

    def used(self, prefetched: PrefetchedContent | None) -> None:
        """What was fetched ahead has its reader now, or will have none. Once for each."""
        if prefetched is not None:
            self._held_bytes -= prefetched.held_bytes
            prefetched.close()

    def close(self) -> None:
        """Let go of everything. Repeatable."""
        while self._walks:
            self._end(self._walks.pop())

    def _end(self, walk: _Walk) -> None:
        for prefetched in walk.upcoming.values():
            self.used(prefetched)
        walk.upcoming.clear()

    def _expect(self, walk: _Walk) -> None:
        """Look up the next files, and ask for as many of them as the window has room for."""
        window = min(GROWTH * walk.run, WINDOW_FILES_MAX)
        wanted = max(window, EXPECTED_FILES)
        while len(walk.upcoming) < wanted and not walk.ended:
            rows = self._following(walk.last, wanted - len(walk.upcoming))
            walk.ended = not rows
            for row in rows:
                walk.upcoming[row.number] = None
                walk.last = row
        for number in list(itertools.islice(walk.upcoming, window)):
            if walk.upcoming[number] is not None:
                continue
            node = self._tree.node(number)
            content = node.content if node is not None else None
            if node is None or content is None or not content.size:
                continue
            prefetched = self._prefetch(node.bucket, content)
            if prefetched is None:
                return
            walk.upcoming[number] = prefetched

    def _prefetch(self, bucket: str, content: ContentRef) -> PrefetchedContent | None:
        """Ask for a content; ``None`` when there is no room for it now, or its bucket is not open yet."""
        reader = self._reader_of(bucket)
        if reader is None or self._held_bytes + reader.prefetch_bytes(content) > HELD_BYTES_MAX:
            return None
        prefetched = reader.prefetch(content, lambda prefetched: None)
        if prefetched is not None:
            self._held_bytes += prefetched.held_bytes
            self.asked += prefetched.is_asked
        return prefetched

    def _following(self, row: Row, count: int) -> list[Row]:
        """The files behind ``row``: of its folder, else of the next folder that has any."""
        if not self._is_listed(row.parent):
            return []
        found = self._files(row.parent, row.name, count)
        parent = row.parent
        passed = 0
        while not found and parent != self._tree.top and passed < FOLDERS_PASSED_MAX:
            folder = self._tree.catalog.row(parent)
            if folder is None or not self._is_listed(folder.parent):
                break
            behind = self._folders(folder.parent, folder.name)
            while behind and not found and passed < FOLDERS_PASSED_MAX:
                passed += 1
                number = behind.pop(0)
                if self._is_listed(number):
                    found = self._files(number, "", count)
                    behind[:0] = self._folders(number, "")
            parent = folder.parent
        return found

    def _files(self, parent: int, after: str, count: int) -> list[Row]:
        rows = self._tree.catalog.page(parent, after, 2 * count)
        return [row for row in rows if not row.is_directory and not self._tree.is_hidden(row)][
            :count
        ]

    def _folders(self, parent: int, after: str) -> list[int]:
        rows = self._tree.catalog.page(parent, after, FOLDERS_PASSED_MAX)
        return [row.number for row in rows if row.is_directory]

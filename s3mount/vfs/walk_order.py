"""The order in which a walk comes to files: a folder's names in order, subfolders where they stand among them.

`tar`, `grep -r`, `cat *` and most others open files as readdir names them. Decisions only, no I/O.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from typing import NamedTuple

import trio

from s3mount.tree.node import Node

ORDERS_MAX = 64
"""Folders whose order is remembered; a walk needs those from its top down."""
SORT_AGAIN_S = 1.0
"""A folder that keeps changing is sorted anew no more often: 50,000 names take 20 ms."""
SORTED_MAX = 20_000
"""A folder with more names than this is not sorted for a guess: its order is known once a program read it."""
LOOK_MAX = 32
"""Names that are looked through for folders to be listed ahead."""
GROWTH = 4
"""The window is this many times the files opened in order: five times as many with each round trip."""
WINDOW_FILES_MAX = 256
"""At 20 ms, with 48 requests at a time, this much is fetched in 0.1 s, while a fast reader opens 256 files."""
SURE_FILES = 16
"""After so many files in order a walk is believed to read all of the next folder."""
NEVER = float("-inf")


class _Order:
    __slots__ = ("at_s", "count", "names", "was_read")

    def __init__(self, names: list[str], was_read: bool) -> None:
        self.names = names
        self.count = len(names)
        self.at_s = trio.current_time()
        self.was_read = was_read


class ReaddirOrders:
    """The order of names in the folders that were looked at lately."""

    def __init__(self) -> None:
        self._orders: OrderedDict[int, _Order] = OrderedDict()

    def note_read(self, directory: Node, names: list[str]) -> None:
        """A program read the folder: these are its names, in the order in which it was told them."""
        self._keep(directory, _Order(names, True))

    def was_read(self, directory: Node) -> bool:
        """Did a program read the folder's names lately?"""
        order = self._orders.get(directory.inode)
        return order is not None and order.was_read

    def names(self, directory: Node) -> list[str]:
        """The folder's names in order. Some may be gone, some new ones missing: of a huge one that was not read all."""
        assert directory.directory is not None
        children = directory.directory.children
        order = self._orders.get(directory.inode)
        if order is not None:
            is_young = trio.current_time() < order.at_s + SORT_AGAIN_S
            if is_young or order.count == len(children) or len(children) > SORTED_MAX:
                return order.names
        if len(children) > SORTED_MAX:
            return []
        was_read = order is not None and order.was_read
        return self._keep(directory, _Order(sorted(children), was_read))

    def _keep(self, directory: Node, order: _Order) -> list[str]:
        self._orders[directory.inode] = order
        self._orders.move_to_end(directory.inode)
        if len(self._orders) > ORDERS_MAX:
            self._orders.popitem(last=False)
        return order.names


class _Level(NamedTuple):
    directory: Node
    names: list[str]
    at: int
    files: bool
    folders: bool


class WalkOrder:
    """The files behind ``start``, one after another, across folders.

    Subfolders come where their names stand, as for tar and grep, or with ``files_first`` after the files
    beside them, as for rsync, cp and Python's os.walk. It goes up to a parent only where a program read
    that parent's names: a walk came from there. ``unlisted`` is the folder that stands in the way because
    nobody has listed it yet.
    """

    __slots__ = ("_orders", "_stack", "files_first", "unlisted")

    def __init__(self, orders: ReaddirOrders, start: Node, *, files_first: bool = False) -> None:
        self._orders = orders
        self._stack: list[_Level] = []
        self.files_first = files_first
        self.unlisted: Node | None = None
        if start.parent is not None and start.linked:
            self._enter(start.parent, behind=start.name)

    def _enter(self, directory: Node, behind: str | None = None) -> None:
        names = self._orders.names(directory)
        index = 0 if behind is None else bisect_right(names, behind)
        if self.files_first:
            self._stack.append(_Level(directory, names, 0, files=False, folders=True))
            self._stack.append(_Level(directory, names, index, files=True, folders=False))
        else:
            self._stack.append(_Level(directory, names, index, files=True, folders=True))

    def next_file(self) -> Node | None:
        """The next file; ``None`` at the end, or before a folder that must be listed first."""
        self.unlisted = None
        while self._stack:
            level = self._stack.pop()
            directory = level.directory.directory
            if directory is None or level.at >= len(level.names):
                if not self._stack:
                    self._climb(level.directory)
                continue
            child = directory.children.get(level.names[level.at])
            is_folder = child is not None and child.directory is not None
            if is_folder and level.folders:
                assert child is not None
                assert child.directory is not None
                if child.directory.listed_at == NEVER:
                    self._stack.append(level)
                    self.unlisted = child
                    return None
                self._stack.append(level._replace(at=level.at + 1))
                self._enter(child)
                continue
            self._stack.append(level._replace(at=level.at + 1))
            if child is not None and not is_folder and level.files:
                return child
        return None

    def folders_ahead(self, count_max: int) -> list[Node]:
        """The folder in the way and those beside it that come next and are not listed either."""
        if not self._stack:
            return []
        level = self._stack[-1]
        if level.directory.directory is None:
            return []
        found = []
        for name in level.names[level.at : level.at + LOOK_MAX]:
            child = level.directory.directory.children.get(name)
            if child is not None and child.directory is not None:
                if child.directory.listed_at == NEVER:
                    found.append(child)
                if len(found) == count_max:
                    break
        return found

    def _climb(self, directory: Node) -> None:
        parent = directory.parent
        if parent is None or not directory.linked or not self._orders.was_read(parent):
            return
        names = self._orders.names(parent)
        index = bisect_right(names, directory.name)
        is_mixed = not self.files_first
        self._stack.append(_Level(parent, names, index, files=is_mixed, folders=True))


class Walk:
    """Opens in order, from one place on.

    ``run``: files opened in order, less those left out. ``upcoming``: files expected next, by inode, and
    whether they were asked for; ``todo`` those of them that were not, in order (some are gone by now).
    """

    __slots__ = ("asked", "ended", "last", "order", "passed", "pid", "run", "todo", "upcoming")

    def __init__(self, node: Node, order: WalkOrder, pid: int, run: int) -> None:
        self.last = node
        self.pid = pid
        self.run = run
        self.passed: OrderedDict[int, None] = OrderedDict()
        self.restart(order)

    def restart(self, order: WalkOrder) -> None:
        """Go on from another place."""
        self.order = order
        self.ended = False
        self.upcoming: dict[int, Node] = {}
        self.todo: deque[Node] = deque()
        self.asked: set[int] = set()

    def is_about_to_read(self, node: Node) -> bool:
        """Is it believed to read all of the folder of ``node``?"""
        last, parent = self.last.parent, node.parent
        if self.run < SURE_FILES or last is None or parent is None:
            return False
        return last is parent or last.parent is parent.parent

    @property
    def window(self) -> int:
        """How many files ahead are asked for."""
        return min(GROWTH * self.run, WINDOW_FILES_MAX)

"""Read-ahead across files: the next files of a walk in readdir order are prefetched.

A walk is recognised by opens in the order of a ``WalkOrder``. The window, how many files ahead are asked
for, is a multiple of the files opened in order, so it grows by itself while that goes on, shrinks with
every file that is left out, and is nothing for opens in any other order.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque

from s3mount.cache.prefetched import PrefetchedContent
from s3mount.config import MIB
from s3mount.errors import S3MountError
from s3mount.refs import ObjectInfo
from s3mount.tree.node import Node
from s3mount.vfs.directories import Directories
from s3mount.vfs.state import MountState
from s3mount.vfs.walk_order import ReaddirOrders, WalkOrder

log = logging.getLogger(__name__)

GROWTH = 4
"""The window is this many times the files opened in order: five times as many with each round trip."""
WINDOW_FILES_MAX = 256
"""At 20 ms, with 48 requests at a time, this much is fetched in 0.1 s, while a fast reader opens 256 files."""
SLACK_FILES = 8
"""So many files may be left out and it is still the same walk, only a slower one."""
WALKS_MAX = 6
"""Programs that walk at the same time."""
PASSED_MAX = 64
"""Files that were left out and may still come: several readers share the work of one walk."""
HELD_BYTES_MAX = 32 * MIB
"""What was fetched ahead and waits for its reader, in memory."""
LISTS_AHEAD_MAX = 8
"""Folders that are listed ahead of a walk at a time."""
GLANCE_BYTES_MAX = 256 * 1024
"""A file up to this size is fetched whole where otherwise its headers alone would be asked for."""
SURE_FILES = 16
"""After so many files in order a walk is believed to read all of the next folder."""


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

    @property
    def window(self) -> int:
        """How many files ahead are asked for."""
        return min(GROWTH * self.run, WINDOW_FILES_MAX)


class FileReadahead:
    """All walks of one mount, and what was asked for ahead of them."""

    def __init__(self, state: MountState, directories: Directories) -> None:
        self._state = state
        self._directories = directories
        self._orders = ReaddirOrders()
        self._walks: list[Walk] = []
        self._prefetched: dict[int, tuple[Node, PrefetchedContent]] = {}
        self._glanced: OrderedDict[int, None] = OrderedDict()
        self._held_bytes = 0
        self._held_bytes_max = min(HELD_BYTES_MAX, state.config.prefetch_bytes_max)
        self._listing: set[int] = set()
        self.counters = {"asked": 0, "used": 0, "unused": 0}
        state.glance = self.glance

    def statistics(self) -> dict[str, float]:
        """How many files were asked for before they were opened, and what became of them."""
        return {f"files_ahead_{name}": count for name, count in self.counters.items()}

    # ----------------------------------------------------------------- watching

    def names_read(self, directory: Node, names: list[str]) -> None:
        """A program reads a folder and is told these names."""
        self._orders.note_read(directory, names)
        for walk in self._walks:
            if walk.order.unlisted is directory:
                self._pump(walk)

    def opened(self, node: Node, pid: int) -> None:
        """A program opened a file to read it; its handle exists."""
        if self._held_bytes_max == 0 or node.parent is None or not node.linked:
            return
        walk = self._going_on(node) or self._jumped(node, pid)
        walk.pid = pid
        self._drop(node.inode, is_used=True)
        self._pump(walk)

    def _going_on(self, node: Node) -> Walk | None:
        for walk in self._walks:
            if node.inode in walk.upcoming:
                self._advance(walk, node)
            elif node.inode in walk.passed:
                # It was counted as left out; others of the same walk were only faster.
                del walk.passed[node.inode]
                walk.run += 2
            else:
                continue
            walk.last = node
            if walk is not self._walks[0]:
                self._walks.remove(walk)
                self._walks.insert(0, walk)
            return walk
        return None

    def _advance(self, walk: Walk, node: Node) -> None:
        """What stands before ``node`` in its folder was left out."""
        left_out = []
        for inode, other in walk.upcoming.items():
            if other is node:
                break
            if other.parent is node.parent:
                left_out.append(inode)
        for inode in left_out:
            self._leave(walk, inode)
            self._drop(inode)
            walk.passed[inode] = None
        while len(walk.passed) > PASSED_MAX:
            walk.passed.popitem(last=False)
        self._leave(walk, node.inode)
        walk.run = max(0, walk.run + 1 - len(left_out))

    @staticmethod
    def _leave(walk: Walk, inode: int) -> None:
        del walk.upcoming[inode]
        walk.asked.discard(inode)

    def _jumped(self, node: Node, pid: int) -> Walk:
        """Not where anybody was expected: another place of the same walk, or a new one."""
        for walk in self._walks:
            if walk.pid == pid:
                if walk.run and self._turned(walk, node):
                    return walk
                walk.run //= 2
        order = WalkOrder(self._orders, node)
        assert node.parent is not None
        is_begun = self._orders.was_read(node.parent) and self._is_first(node)
        walk = Walk(node, order, pid, int(is_begun))
        self._walks.insert(0, walk)
        if len(self._walks) > WALKS_MAX:
            self._end(self._walks.pop())
        return walk

    def _turned(self, walk: Walk, node: Node) -> bool:
        """Would it be the next one if subfolders came in the other order? Then they do."""
        files_first = not walk.order.files_first
        other = WalkOrder(self._orders, walk.last, files_first=files_first)
        if not any(other.next_file() is node for _ in range(SLACK_FILES)):
            return False
        self._end(walk)
        walk.restart(WalkOrder(self._orders, node, files_first=files_first))
        walk.last = node
        return True

    def _is_first(self, node: Node) -> bool:
        assert node.parent is not None
        assert node.parent.directory is not None
        children = node.parent.directory.children
        for name in self._orders.names(node.parent):
            child = children.get(name)
            if child is not None and child.directory is None:
                return child is node
        return False

    def _end(self, walk: Walk) -> None:
        for inode in walk.upcoming:
            self._drop(inode)

    # ------------------------------------------------------------------- asking

    def _pump_all(self) -> None:
        for walk in list(self._walks):
            self._pump(walk)

    def _pump(self, walk: Walk) -> None:
        """Ask for what the window has room for."""
        window = walk.window
        self._fill(walk, max(window, SLACK_FILES))
        while walk.todo and len(walk.asked) < window:
            node = walk.todo[0]
            if node.inode in walk.upcoming and node.inode not in walk.asked:
                if not self._ask(node):
                    return
                walk.asked.add(node.inode)
            walk.todo.popleft()

    def _fill(self, walk: Walk, count: int) -> None:
        while len(walk.upcoming) < count and not walk.ended:
            node = walk.order.next_file()
            if node is not None:
                if node.inode not in walk.upcoming:
                    walk.upcoming[node.inode] = node
                    walk.todo.append(node)
            elif walk.order.unlisted is None:
                walk.ended = True
            else:
                if walk.run >= SLACK_FILES:
                    self._list_ahead(walk)
                return

    def _list_ahead(self, walk: Walk) -> None:
        background = self._state.background
        if background is None:
            return
        for directory in walk.order.folders_ahead(LISTS_AHEAD_MAX):
            if len(self._listing) >= LISTS_AHEAD_MAX:
                return
            if directory.inode not in self._listing:
                self._listing.add(directory.inode)
                background.start(self._list, directory)

    async def _list(self, directory: Node) -> None:
        try:
            await self._directories.refresh(directory)
        except (S3MountError, OSError) as error:
            # Nobody waits for it; whoever comes there asks again and is told.
            log.info("listing ahead failed: %s", error)
            return
        finally:
            self._listing.discard(directory.inode)
        self._pump_all()

    def _ask(self, node: Node) -> bool:
        """Ask for the file's bytes if they are of use; False when there is no room for them now."""
        content = node.content
        if content is None or not content.size or node.inode in self._prefetched:
            return True
        if self._state.change_of(node) is not None:
            return True
        reader = self._state.reader
        needed = reader.prefetch_bytes(content)
        while self._held_bytes + needed > self._held_bytes_max:
            if not self._glanced:
                return False
            self._drop(self._glanced.popitem(last=False)[0])
        prefetched = reader.prefetch(content, lambda prefetched: self._arrived(node, prefetched))
        if prefetched is None:
            return False
        self._prefetched[node.inode] = (node, prefetched)
        self._held_bytes += prefetched.held_bytes
        self.counters["asked"] += prefetched.is_asked
        return True

    def _arrived(self, node: Node, prefetched: PrefetchedContent) -> None:
        if prefetched.info is not None:
            self._directories.learned(node, prefetched.info)
        held = self._prefetched.get(node.inode)
        if prefetched.info is None and held is not None and held[1] is prefetched:
            self._drop(node.inode, is_used=True)
        self._pump_all()

    def _drop(self, inode: int, *, is_used: bool = False) -> None:
        found = self._prefetched.pop(inode, None)
        self._glanced.pop(inode, None)
        if found is not None:
            prefetched = found[1]
            self._held_bytes -= prefetched.held_bytes
            if prefetched.is_asked:
                self.counters["used" if is_used else "unused"] += 1
            prefetched.close()

    # ----------------------------------------------------- headers with the bytes

    async def glance(self, node: Node, is_alone: bool) -> ObjectInfo | None:
        """What HEAD would tell about a file, by the GET that will be wanted anyway; ``None``: ask HEAD.

        That is so for what a walk is about to open, and (``is_alone``) for a single small file.
        """
        held = self._prefetched.get(node.inode)
        if held is None and self._is_wanted(node, is_alone):
            self._ask(node)
            held = self._prefetched.get(node.inode)
            if held is not None:
                self._glanced[node.inode] = None
        if held is None:
            return None
        prefetched = held[1]
        await prefetched.arrived()
        return prefetched.info

    def _is_wanted(self, node: Node, is_alone: bool) -> bool:
        content = node.content
        if content is None or not 0 < content.size <= GLANCE_BYTES_MAX:
            return False
        if is_alone:
            return True
        return any(
            walk.run >= SURE_FILES
            and walk.last.parent is not None
            and node.parent is not None
            and (walk.last.parent is node.parent or walk.last.parent.parent is node.parent.parent)
            for walk in self._walks
        )

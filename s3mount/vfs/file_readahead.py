"""Read-ahead across files: the next files of a walk in readdir order are prefetched.

A walk is recognised by opens in the order of a ``WalkOrder``. The window, how many files ahead are asked
for, is a multiple of the files opened in order, so it grows by itself while that goes on, shrinks with
every file that is left out, and is nothing for opens in any other order.
"""

from __future__ import annotations

import logging

from s3mount.errors import S3MountError
from s3mount.refs import ObjectInfo
from s3mount.tree.node import Node
from s3mount.vfs.listing.directories import Directories
from s3mount.vfs.prefetches import Prefetches
from s3mount.vfs.state import MountState
from s3mount.vfs.walk_order import ReaddirOrders, Walk, WalkOrder

log = logging.getLogger(__name__)

SLACK_FILES = 8
"""So many files may be left out and it is still the same walk, only a slower one."""
WALKS_MAX = 6
"""Programs that walk at the same time."""
PASSED_MAX = 64
"""Files that were left out and may still come: several readers share the work of one walk."""
LISTS_AHEAD_MAX = 8
"""Folders that are listed ahead of a walk at a time."""


class FileReadahead:
    """Follows the walks of one mount, and has ``prefetches`` ask for what comes next in them."""

    def __init__(self, state: MountState, directories: Directories, prefetches: Prefetches) -> None:
        self._state = state
        self._directories = directories
        self._prefetches = prefetches
        self._walks = prefetches.walks
        self._orders = ReaddirOrders()
        self._listing: set[int] = set()

    # ----------------------------------------------------------------- watching

    def names_read(self, directory: Node, names: list[str]) -> None:
        """A program reads a folder and is told these names."""
        self._orders.note_read(directory, names)
        for walk in self._walks:
            if walk.order.unlisted is directory:
                self._pump(walk)

    def opened(self, node: Node, pid: int) -> None:
        """A program opened a file to read it; its handle exists."""
        if not self._prefetches.are_held or node.parent is None or not node.linked:
            return
        walk = self._going_on(node) or self._jumped(node, pid)
        walk.pid = pid
        self._prefetches.drop(node.inode, is_used=True)
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
            self._prefetches.drop(inode)
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
            self._prefetches.drop(inode)

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
                if not self._prefetches.ask(node, self._arrived):
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

    def _arrived(self, node: Node, info: ObjectInfo | None) -> None:
        if info is not None:
            self._directories.learned(node, info)
        self._pump_all()

"""Files whose bytes were asked for before they are opened, in memory, with the headers that come with them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

from s3mount.cache.prefetched import PrefetchedContent
from s3mount.cache.reader import CacheReader
from s3mount.config import MIB
from s3mount.refs import ObjectInfo
from s3mount.tree.node import Node
from s3mount.vfs.state import MountState
from s3mount.vfs.walk_order import Walk

HELD_BYTES_MAX = 32 * MIB
"""What was fetched ahead and waits for its reader, in memory."""
GLANCE_BYTES_MAX = 256 * 1024
"""A file up to this size is fetched whole where otherwise its headers alone would be asked for."""

OnArrived: TypeAlias = Callable[[Node, ObjectInfo | None], None]
"""Called when a file is there; ``None`` where it could not be had."""


class Prefetches:
    """What was asked for ahead in one mount, for ``walks``, or to look at it."""

    def __init__(self, state: MountState, reader: CacheReader) -> None:
        self._state = state
        self._reader = reader
        self.walks: list[Walk] = []
        self._prefetched: dict[int, tuple[Node, PrefetchedContent]] = {}
        self._glanced: OrderedDict[int, None] = OrderedDict()
        self.held_bytes = 0
        self._held_bytes_max = min(HELD_BYTES_MAX, state.config.prefetch_bytes_max)
        self.counters = {"asked": 0, "used": 0, "unused": 0}

    @property
    def are_held(self) -> bool:
        """Is there room for any at all?"""
        return self._held_bytes_max > 0

    def statistics(self) -> dict[str, float]:
        """How many files were asked for before they were opened, and what became of them."""
        return {f"files_ahead_{name}": count for name, count in self.counters.items()}

    def ask(self, node: Node, on_arrived: OnArrived) -> bool:
        """Ask for the file's bytes if they are of use; False when there is no room for them now."""
        content = node.content
        if content is None or not content.size or node.inode in self._prefetched:
            return True
        if self._state.change_of(node) is not None:
            return True
        reader = self._reader
        needed = reader.prefetch_bytes(content)
        while self.held_bytes + needed > self._held_bytes_max:
            if not self._glanced:
                return False
            self.drop(self._glanced.popitem(last=False)[0])

        def arrived(prefetched: PrefetchedContent) -> None:
            held = self._prefetched.get(node.inode)
            if prefetched.info is None and held is not None and held[1] is prefetched:
                self.drop(node.inode, is_used=True)
            on_arrived(node, prefetched.info)

        prefetched = reader.prefetch(content, arrived)
        if prefetched is None:
            return False
        self._prefetched[node.inode] = (node, prefetched)
        self.held_bytes += prefetched.held_bytes
        self.counters["asked"] += prefetched.is_asked
        return True

    def drop(self, inode: int, *, is_used: bool = False) -> None:
        """Let go of a file: it was opened, or will not be. Repeatable."""
        found = self._prefetched.pop(inode, None)
        self._glanced.pop(inode, None)
        if found is not None:
            prefetched = found[1]
            self.held_bytes -= prefetched.held_bytes
            if prefetched.is_asked:
                self.counters["used" if is_used else "unused"] += 1
            prefetched.close()

    async def glance(
        self, node: Node, on_arrived: OnArrived, *, is_alone: bool
    ) -> ObjectInfo | None:
        """What HEAD would tell about a file, by the GET that will be wanted anyway; ``None``: ask HEAD.

        That is so for what a walk is about to open, and (``is_alone``) for a single small file.
        """
        held = self._prefetched.get(node.inode)
        if held is None and self._is_wanted(node, is_alone):
            self.ask(node, on_arrived)
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
        return is_alone or any(walk.is_about_to_read(node) for walk in self.walks)

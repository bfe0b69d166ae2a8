"""Forgetting what is known of a file or a folder, so that the next look asks S3."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from s3mount.refs import Key
from s3mount.slices import Pace
from s3mount.tree.memory import HeadMemory
from s3mount.tree.node import Node, names_in
from s3mount.vfs.listing.directories import Directories
from s3mount.vfs.state import MountState
from s3mount.vfs.view import ForgetEntry

log = logging.getLogger(__name__)

AT_ONCE = 64
"""So many nodes are forgotten in one transaction of the memory of attributes."""


async def no_kernel(parent: int, name: str) -> None:
    """``ForgetEntry`` where no kernel knows anything."""
    await trio.lowlevel.checkpoint()


class Refreshing:
    """Forgets on demand. ``forget_entry`` makes the kernel drop a name below a directory's number."""

    def __init__(
        self,
        state: MountState,
        directories: Directories,
        memory: HeadMemory,
        forget_entry: ForgetEntry,
    ) -> None:
        self._state = state
        self._memory = memory
        self._directories = directories
        self._forget_entry = forget_entry

    async def refresh(self, paths: Sequence[str]) -> None:
        """Drop what is known of ``paths`` (relative to the mount; ``""``: all of it) and of all below them.

        What is not in S3 yet stays, and who has a file open goes on with its version. Repeatable; asks S3 nothing.
        """
        self._directories.forget_ahead()
        for path in paths:
            node, names = self._state.nodes.root, [part for part in path.split("/") if part]
            for number, name in enumerate(names):
                assert node.directory is not None
                child = node.directory.children.get(name)
                if child is None or (child.directory is None and number + 1 < len(names)):
                    # Nothing is known so far down, but perhaps that there is nothing.
                    self._outdate(node)
                    await self._forget_entry(node.inode, name)
                    break
                if number + 1 == len(names):
                    self._outdate(node)
                    await self._forget_below(child)
                    await self._forget_entry(node.inode, name)
                node = child
            if not names:
                await self._forget_below(node)
                assert node.directory is not None
                for name in await names_in(node.directory.children):
                    await self._forget_entry(node.inode, name)
            log.info("asked for: what is known of %r is forgotten", path or ".")

    @staticmethod
    def _outdate(directory: Node) -> None:
        """Its entries are to be listed anew."""
        assert directory.directory is not None
        directory.directory.listed_at = directory.directory.believed_until = float("-inf")
        directory.directory.listing_s = 0.0

    async def _forget_below(self, top: Node) -> None:
        waiting = [top]
        pace = Pace()
        while waiting:
            await pace.rest()
            keys: list[Key] = []
            for _ in range(min(AT_ONCE, len(waiting))):
                node = waiting.pop()
                if node.directory is not None:
                    self._outdate(node)
                    waiting.extend(node.directory.children.nodes.values())
                if self._state.change_of(node) is None and not self._state.is_written(node):
                    keys.append(self._state.change_key(node))
                    self._forget_attributes(node)
            self._memory.forget(keys)

    @staticmethod
    def _forget_attributes(node: Node) -> None:
        node.headers = None
        if node.parent is not None:
            node.attributes_known = False
        if node.directory is not None:
            node.directory.marker_etag = ""
            node.directory.stores_attributes = None
            node.directory.headed_one_by_one = 0

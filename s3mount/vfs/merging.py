"""Bringing what S3 lists into the tree, laid over by what is pending."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from operator import itemgetter

from s3mount.refs import Key, ObjectInfo
from s3mount.spool.changes import Change
from s3mount.tree.block import GONE, UNPACKED, Block
from s3mount.tree.listing import Listing
from s3mount.tree.node import Node
from s3mount.vfs.state import OWN_DATE_SLACK_NS, MountState

log = logging.getLogger(__name__)


class Merger:
    """Changes directories to what a listing of them says. ``ignored_keys`` counts keys that are no path."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self._warned: set[Key] = set()
        self.ignored_keys = 0

    def merge(
        self, directory: Node, prefix: Key, listing: Listing, finished: AbstractSet[Key]
    ) -> None:
        """Bring the entries of ``directory`` to what S3 lists and what is pending.

        Keys ``finished`` while S3 listed keep their local state.
        """
        known = directory.directory
        assert known is not None
        children = known.children
        packed = {name: (block, index) for name, block, index in children.all_listed()}
        seen: set[str] = set()
        new = self._merge_files(directory, listing, finished, packed, seen)
        new += self._merge_directories(directory, prefix, listing, finished, packed, seen)
        seen |= self.show_pending(directory, prefix)
        for name, (block, index) in packed.items():
            if name in seen or block.flags[index] & (GONE | UNPACKED):
                continue
            if not self._is_key_kept(prefix, name, block.is_directory(index), finished):
                self._state.nodes.lose(block, index)
        for name, node in list(children.nodes.items()):
            if name not in seen and not self.is_kept(node, prefix, name, finished):
                self._state.nodes.replace(node)
        new = [entry for entry in new if entry[0] not in children.nodes]
        new.sort(key=itemgetter(0))
        self._state.nodes.add_listed(directory, new)
        self._state.nodes.tidy(directory)
        known.unshown = len(listing.ignored)
        self._report_ignored(listing.ignored)

    def _merge_files(
        self,
        directory: Node,
        listing: Listing,
        finished: AbstractSet[Key],
        packed: dict[str, tuple[Block, int]],
        seen: set[str],
    ) -> list[tuple[str, ObjectInfo | None]]:
        """Bring what is there of the listed files up to date; those that are new, by name."""
        assert directory.directory is not None
        nodes = directory.directory.children.nodes
        changes = self._state.spool.changes
        new: list[tuple[str, ObjectInfo | None]] = []
        for name, info in listing.files.items():
            if info.key in changes or info.key in finished:
                continue
            seen.add(name)
            there = packed.get(name)
            if there is None and name not in nodes:
                new.append((name, info))
                continue
            if there is not None:
                block, index = there
                if not block.is_same(index, info):
                    self._state.nodes.lose(block, index)
                    new.append((name, info))
                    continue
                block.last_modified_ns[index] = info.last_modified_ns
                continue
            self.show_file(directory, name, info)
        return new

    def _merge_directories(
        self,
        directory: Node,
        prefix: Key,
        listing: Listing,
        finished: AbstractSet[Key],
        packed: dict[str, tuple[Block, int]],
        seen: set[str],
    ) -> list[tuple[str, ObjectInfo | None]]:
        """The same for directories."""
        assert directory.directory is not None
        nodes = directory.directory.children.nodes
        new: list[tuple[str, ObjectInfo | None]] = []
        for name in sorted(listing.directories):
            key = f"{prefix}{name}/"
            change = self._state.spool.changes.get(key)
            if self._state.is_hidden(directory, name) or key in finished:
                continue
            if change is not None and change.op == "delete":
                continue
            seen.add(name)
            there = packed.get(name)
            if there is not None:
                if there[0].is_directory(there[1]):
                    continue
                self._state.nodes.lose(*there)
            node = nodes.get(name)
            if (node is None or not node.is_directory) and change is not None:
                self._add_pending(directory, name, change)
            elif node is not None:
                self.show_directory(directory, name)
            else:
                new.append((name, None))
        return new

    def show_file(self, directory: Node, name: str, info: ObjectInfo) -> None:
        """Let ``name`` be what S3 has there: the node that it has if the content is the same, else a new one."""
        assert directory.directory is not None
        node = directory.directory.children.get(name)
        if node is not None:
            content = node.content
            is_same = content is not None and content.key == info.key and content.etag == info.etag
            if content is not None and is_same and content.size == info.size:
                self._note_date(node, info)
                return
            if self._state.is_written(node):
                # What the writer closes must not get lost: its upload will meet theirs.
                return
            self._state.nodes.replace(node)
        node = self._state.nodes.add(
            directory, name, self._state.file_attributes(info.last_modified_ns)
        )
        node.attributes_known = False
        node.content = info.ref
        node.size = info.size
        node.last_modified_ns = info.last_modified_ns

    def _note_date(self, node: Node, info: ObjectInfo) -> None:
        """The same bytes with another date: either our own upload, or somebody changed its metadata."""
        if node.last_modified_ns == info.last_modified_ns:
            return
        if abs(node.last_modified_ns - info.last_modified_ns) > OWN_DATE_SLACK_NS:
            node.attributes_known = False
            node.headers = None
        elif node.headers is not None:
            remembered = ObjectInfo(
                info.key, info.size, info.etag, info.last_modified_ns, headers=node.headers
            )
            self._state.memory.remember([remembered])
        node.last_modified_ns = info.last_modified_ns

    def show_directory(self, parent: Node, name: str) -> None:
        """Let ``name`` be a directory, as it is in S3."""
        assert parent.directory is not None
        node = parent.directory.children.get(name)
        if node is None:
            self._add_directory(parent, name)
        elif not node.is_directory and not self._state.is_written(node):
            self._state.nodes.replace(node)
            self._add_directory(parent, name)

    def _add_directory(self, parent: Node, name: str) -> None:
        attributes = self._state.file_attributes(self._state.mounted_ns, stat.S_IFDIR)
        self._state.nodes.add(parent, name, attributes).attributes_known = False

    def show_pending(self, directory: Node, prefix: Key) -> set[str]:
        """Add a node for every pending file or directory below that has none; all their names."""
        assert directory.directory is not None
        names = set()
        for change in list(self._state.spool.relations.below(prefix)):
            name = change.key[len(prefix) :].rstrip("/")
            if change.op == "delete" or self._state.is_hidden(directory, name) or not name:
                continue
            names.add(name)
            if name not in directory.directory.children:
                self._add_pending(directory, name, change)
        for key in self._state.spool.relations.directories_in(prefix):
            name = key[len(prefix) : -1]
            if not self._state.is_hidden(directory, name):
                names.add(name)
                if name not in directory.directory.children:
                    self._add_directory(directory, name)
        return names

    def _add_pending(self, directory: Node, name: str, change: Change) -> None:
        assert change.attributes is not None
        node = self._state.nodes.add(directory, name, change.attributes)
        node.size = change.size
        node.content = change.source if change.op == "copy" else None
        node.headers = change.headers

    def is_kept(self, node: Node, prefix: Key, name: str, finished: AbstractSet[Key]) -> bool:
        """Does an entry stay though S3 does not list it?"""
        if not node.is_directory and self._state.is_written(node):
            return True
        return self._is_key_kept(prefix, name, node.is_directory, finished)

    def _is_key_kept(
        self, prefix: Key, name: str, is_directory: bool, finished: AbstractSet[Key]
    ) -> bool:
        if not is_directory:
            return f"{prefix}{name}" in finished
        key = f"{prefix}{name}/"
        if key in self._state.local_folders:
            return True
        return self._state.spool.relations.implies(key) or any(
            each.startswith(key) for each in finished
        )

    def _report_ignored(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if key not in self._warned and len(self._warned) < 10_000:
                self._warned.add(key)
                self.ignored_keys += 1
                log.warning("the key %r is no path that can be shown; it is left alone", key)

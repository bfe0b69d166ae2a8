"""Bringing what S3 lists into the tree, laid over by what is pending."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from s3mount.refs import Key, ObjectInfo
from s3mount.slices import in_order, sliced
from s3mount.spool.journal.changes import Copy, Delete, PutOrCopy
from s3mount.tree.listing import Listing
from s3mount.tree.memory import HeadMemory
from s3mount.tree.node import GONE, UNPACKED, Block, Node
from s3mount.vfs.finished import Watch
from s3mount.vfs.state import OWN_DATE_SLACK_NS, MountState

log = logging.getLogger(__name__)


BLOCK_ENTRIES = 4096
BLOCKS = 64
"""New entries are packed so many at a time (10 ms), but into no more blocks than this: each costs every look-up."""


class _Merge:
    """A directory on its way to what a listing says. ``finished`` grows meanwhile.

    ``packed`` are the entries that had no node when it began, ``seen`` those that S3 lists as well, ``new`` what it
    lists and was not there (``None``: a directory).
    """

    def __init__(self, directory: Node, prefix: Key, listing: Listing, watch: Watch) -> None:
        assert directory.directory is not None
        self.directory = directory
        self.children = directory.directory.children
        self.prefix = prefix
        self.listing = listing
        self.finished = watch.keys
        self.packed: dict[str, tuple[Block, int]] = {}
        self.seen: set[str] = set()
        self.new: dict[str, ObjectInfo | None] = {}

    def packed_entry(self, name: str) -> tuple[Block, int] | None:
        """The entry ``name``, if it has no node still."""
        there = self.packed.get(name)
        if there is None or there[0].flags[there[1]] & (GONE | UNPACKED):
            return None
        return there


class Merger:
    """Changes directories to what a listing of them says. ``ignored_keys`` counts keys that are no path."""

    def __init__(self, state: MountState, memory: HeadMemory) -> None:
        self._state = state
        self._memory = memory
        self._warned: set[Key] = set()
        self.ignored_keys = 0

    async def merge(self, directory: Node, prefix: Key, listing: Listing, watch: Watch) -> bool:
        """Bring the entries of ``directory`` to what S3 lists and what is pending, in slices.

        Keys that were finished since S3 listed (``watch``) keep their local state. False where the directory
        moved or went away meanwhile: what was brought up to date by then is right all the same. One at a time
        for a directory.
        """
        known = directory.directory
        assert known is not None
        merge = _Merge(directory, prefix, listing, watch)
        self.show_pending(directory, prefix)
        for block in known.children.blocks:
            async for places in sliced(range(len(block))):
                for index in places:
                    if not block.flags[index] & (GONE | UNPACKED):
                        merge.packed[block.name(index)] = block, index
        for step in (self._merge_files, self._merge_directories, self._leave_out, self._add_new):
            if not await step(merge):
                return False
        self.show_pending(directory, prefix)
        self._state.nodes.tidy(directory)
        known.unshown = len(listing.ignored)
        self._report_ignored(listing.ignored)
        return True

    def _is_in_place(self, merge: _Merge) -> bool:
        directory = merge.directory
        return directory.linked and self._state.nodes.key_of(directory) == merge.prefix

    async def _merge_files(self, merge: _Merge) -> bool:
        """Bring what is there of the listed files up to date."""
        async for names in sliced(list(merge.listing.files)):
            if not self._is_in_place(merge):
                return False
            for name in names:
                self._merge_file(merge, name, merge.listing.files[name])
        return True

    def _merge_file(self, merge: _Merge, name: str, info: ObjectInfo) -> None:
        if info.key in self._state.spool.changes or info.key in merge.finished:
            return
        merge.seen.add(name)
        there = merge.packed_entry(name)
        if there is not None:
            block, index = there
            if block.is_same(index, info):
                block.last_modified_ns[index] = info.last_modified_ns
            else:
                self._state.nodes.lose(block, index)
                merge.new[name] = info
        elif name in merge.children.nodes:
            self.show_file(merge.directory, name, info)
        else:
            merge.new[name] = info

    async def _merge_directories(self, merge: _Merge) -> bool:
        """The same for directories."""
        async for names in sliced(list(merge.listing.directories)):
            if not self._is_in_place(merge):
                return False
            for name in names:
                self._merge_directory(merge, name)
        return True

    def _merge_directory(self, merge: _Merge, name: str) -> None:
        key = f"{merge.prefix}{name}/"
        change = self._state.spool.changes.get(key)
        if self._state.is_hidden(merge.directory, name) or key in merge.finished:
            return
        if isinstance(change, Delete):
            return
        merge.seen.add(name)
        there = merge.packed_entry(name)
        if there is not None:
            if there[0].is_directory(there[1]):
                return
            self._state.nodes.lose(*there)
        node = merge.children.nodes.get(name)
        if (node is None or not node.is_directory) and change is not None:
            self._add_pending(merge.directory, name, change)
        elif node is not None:
            self.show_directory(merge.directory, name)
        else:
            merge.new[name] = None

    async def _leave_out(self, merge: _Merge) -> bool:
        """Let go of entries that S3 does not list and that nothing keeps."""
        prefix, finished, nodes = merge.prefix, merge.finished, merge.children.nodes
        async for names in sliced(list(merge.packed)):
            if not self._is_in_place(merge):
                return False
            for name in names:
                there = None if name in merge.seen else merge.packed_entry(name)
                if there is None or self._is_pending(prefix, name):
                    continue
                if not self._is_key_kept(prefix, name, there[0].is_directory(there[1]), finished):
                    self._state.nodes.lose(*there)
        async for names in sliced(list(nodes)):
            if not self._is_in_place(merge):
                return False
            for name in names:
                node = None if name in merge.seen else nodes.get(name)
                if node is None or self._is_pending(prefix, name):
                    continue
                if not self.is_kept(node, prefix, name, finished):
                    self._state.nodes.replace(node)
        return True

    def _is_pending(self, prefix: Key, name: str) -> bool:
        """Is a file or directory pending under the name, or anything below it?"""
        key = f"{prefix}{name}"
        changes = self._state.spool.changes
        for change in (changes.get(key), changes.get(f"{key}/")):
            if change is not None and not isinstance(change, Delete):
                return True
        return self._state.spool.dependencies.implies(f"{key}/")

    async def _add_new(self, merge: _Merge) -> bool:
        """Add what S3 lists and was not there, unless it came or went here meanwhile."""
        changes, finished = self._state.spool.changes, merge.finished
        names = await in_order(list(merge.new))
        async for part in sliced(names, max(BLOCK_ENTRIES, len(names) // BLOCKS)):
            if not self._is_in_place(merge):
                return False
            entries = []
            for name in part:
                info = merge.new[name]
                key = f"{merge.prefix}{name}/" if info is None else info.key
                if key not in changes and key not in finished and name not in merge.children:
                    entries.append((name, info))
            self._state.nodes.add_listed(merge.directory, entries)
        return True

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
            self._memory.remember([remembered])
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

    def show_pending(self, directory: Node, prefix: Key) -> None:
        """Add a node for every pending file or directory below that has none."""
        assert directory.directory is not None
        nodes = directory.directory.children.nodes
        start, dependencies = len(prefix), self._state.spool.dependencies
        # At once, as what is finished from now on must have a node: 50,000 that have one take 6 ms.
        missing = [key for key in dependencies.keys_below(prefix) if key[start:] not in nodes]
        self._show_files(directory, prefix, missing)
        for key in list(dependencies.directories_in(prefix)):
            name = key[start:-1]
            is_shown = name in nodes or name in directory.directory.children
            if not is_shown and not self._state.is_hidden(directory, name):
                self._add_directory(directory, name)

    async def show_pending_ahead(self, directory: Node, prefix: Key) -> None:
        """Add such nodes for files in slices, so that ``show_pending`` has little left to do.

        What comes or goes meanwhile is left to that.
        """
        async for keys in sliced(list(self._state.spool.dependencies.keys_below(prefix))):
            if not directory.linked or self._state.nodes.key_of(directory) != prefix:
                return
            self._show_files(directory, prefix, keys)

    def _show_files(self, directory: Node, prefix: Key, keys: Sequence[Key]) -> None:
        """Add a node for each of ``keys`` that is pending, no deletion, and has none."""
        assert directory.directory is not None
        changes = self._state.spool.changes
        for key in keys:
            change, name = changes.get(key), key[len(prefix) :].rstrip("/")
            if change is None or isinstance(change, Delete) or not name:
                continue
            is_hidden = self._state.is_hidden(directory, name)
            if not is_hidden and name not in directory.directory.children:
                self._add_pending(directory, name, change)

    def _add_pending(self, directory: Node, name: str, change: PutOrCopy) -> None:
        assert change.attributes is not None
        node = self._state.nodes.add(directory, name, change.attributes)
        node.size = change.size
        node.content = change.source if isinstance(change, Copy) else None
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
        return self._state.spool.dependencies.implies(key) or any(
            each.startswith(key) for each in finished
        )

    def _report_ignored(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if key not in self._warned and len(self._warned) < 10_000:
                self._warned.add(key)
                self.ignored_keys += 1
                log.warning("the key %r is no path that can be shown; it is left alone", key)

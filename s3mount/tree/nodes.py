"""The table of inodes: numbers, places, what the kernel holds, and what may be dropped.

A node is one inode number for the life of a mount. When a name gets other content from elsewhere it
gets a new node; the old one lives on, without a place in the tree, as long as somebody holds it.
"""

from __future__ import annotations

import stat
import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from s3mount.refs import Attributes, Key, ObjectInfo
from s3mount.slices import sliced
from s3mount.tree.dropped import DroppedDirectories, Place
from s3mount.tree.node import GONE, HELD_MAX, UNPACKED, Block, Node

ROOT_INODE = 1
NODE_BYTES = 800
"""About what a node takes, with its place in the tables, its content and its attributes."""
BLOCK_ENTRIES_MIN = 4
"""Fewer entries are not worth a block."""
BYTES_MAX = 160 << 20
"""With more than this in nodes and listings, those of directories that were not used for longest are dropped."""


def _references(node: Node) -> int:
    return sys.getrefcount(node)


def _references_of_argument(node: Node) -> int:
    return _references(node)


def _unused_references() -> tuple[int, int]:
    """What is counted of a node that two tables and one variable hold, and when that one is passed on.

    Python 3.14 counts no reference for an argument that its caller holds; earlier versions do.
    """
    node = Node(0, None, "", Attributes(stat.S_IFREG, 0, 0, 0, 0, 0))
    tables = [node], [node]
    counted = _references(node), _references_of_argument(node)
    del tables
    return counted


UNUSED_REFERENCES, UNUSED_REFERENCES_OF_ARGUMENT = _unused_references()
"""References to a node that nobody holds but the tables and who counts them: in a variable, as an argument.

Whoever works with a node has it in a variable, a handle or a change, so that more are counted."""


class Nodes:
    """The table of all nodes, and of blocks of entries that may become some.

    Inode numbers are never used twice within a mount. ``attributes_of`` gives a file that carries none its
    attributes, by its time of modification; directories get those that the root began with. ``is_needed`` tells
    of nodes that must stay though nobody holds them.
    """

    def __init__(
        self,
        prefix: Key,
        root_attributes: Attributes,
        attributes_of: Callable[[int], Attributes] | None = None,
        is_needed: Callable[[Node], bool] = lambda node: False,
    ) -> None:
        self.prefix = prefix
        self.root = Node(ROOT_INODE, None, "", root_attributes)
        self.root.lookups = 1
        self.bytes_max = BYTES_MAX
        self._is_needed = is_needed
        self.dropped = 0
        self.dropped_directories = DroppedDirectories()
        self._directory_attributes = root_attributes
        self._attributes_of = attributes_of or (lambda last_modified_ns: root_attributes)
        self._by_inode: dict[int, Node] = {ROOT_INODE: self.root}
        self._next = ROOT_INODE + 1
        self._blocks: dict[int, Block] = {}
        self._bases: list[int] = []
        self._packed = 0
        self._packed_bytes = 0
        self._trim_from = 0.0
        self._used: OrderedDict[int, Node] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_inode) + self._packed

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._by_inode.values()))

    @property
    def size_bytes(self) -> int:
        """About how much memory all of it takes."""
        return NODE_BYTES * len(self._by_inode) + self._packed_bytes

    @property
    def unpacked(self) -> int:
        """How many have a node, and are not only an entry of a listing."""
        return len(self._by_inode)

    def get(self, inode: int) -> Node:
        """The node with this number. Raises KeyError."""
        node = self._by_inode.get(inode)
        if node is not None:
            return node
        trail = []
        at = inode
        while at not in self._by_inode and (place := self.dropped_directories.take(at)) is not None:
            trail.append((at, place))
            at = place.parent
        node = self._by_inode.get(at) or self._unpack(*self._locate(at))
        for returning, place in reversed(trail):
            known = node.directory
            # A listing since then would have brought it back by name.
            is_listed = known is None or known.listed_at > float("-inf")
            if known is None or is_listed or not node.linked or place.name in known.children:
                raise KeyError(inode)
            node = self._return(node, place.name, returning, place.lookups)
        return node

    def _return(self, parent: Node, name: str, inode: int, lookups: int) -> Node:
        """A directory that was dropped, at its place again."""
        assert parent.directory is not None
        node = Node(inode, parent, name, self._directory_attributes)
        node.attributes_known = False
        node.lookups = lookups
        self._by_inode[inode] = parent.directory.children.nodes[name] = node
        return node

    def peek(self, inode: int) -> tuple[Block, int] | None:
        """The entry with this number, if there is no node for it."""
        if inode in self._by_inode:
            return None
        try:
            return self._locate(inode)
        except KeyError:
            return None

    def _locate(self, inode: int) -> tuple[Block, int]:
        place = bisect_right(self._bases, inode) - 1
        if place < 0:
            raise KeyError(inode)
        block = self._blocks[self._bases[place]]
        index = inode - block.base
        if index >= len(block) or block.flags[index] & (GONE | UNPACKED):
            raise KeyError(inode)
        return block, index

    # ------------------------------------------------------------------ packing

    def add_listed(self, parent: Node, entries: Sequence[tuple[str, ObjectInfo | None]]) -> None:
        """New entries under ``parent`` as LIST told of them, in the order of names; ``None``: a directory.

        None of the names may be there.
        """
        assert parent.directory is not None
        children = parent.directory.children
        if self.dropped_directories:
            entries = [entry for entry in entries if not self._return_listed(parent, *entry)]
        if len(entries) < BLOCK_ENTRIES_MIN:
            for name, info in entries:
                node = self.add(parent, name, self._attributes(info))
                _describe(node, info)
            return
        block = Block(parent, self._next, entries)
        self._next += len(entries)
        self._blocks[block.base] = block
        self._bases.append(block.base)
        self._packed += len(block)
        self._packed_bytes += block.size_bytes
        children.add_block(block, self._unpack)

    def _return_listed(self, parent: Node, name: str, info: ObjectInfo | None) -> bool:
        """Was the listed entry a directory before, that keeps its number?"""
        if info is not None:
            return False
        earlier = self.dropped_directories.take_at(parent.inode, name)
        if earlier is None:
            return False
        self._return(parent, name, *earlier)
        return True

    def _attributes(self, info: ObjectInfo | None) -> Attributes:
        if info is None:
            return self._directory_attributes
        return self._attributes_of(info.last_modified_ns)

    def _unpack(self, block: Block, index: int) -> Node:
        """A node for an entry."""
        parent = block.directory
        assert parent.directory is not None
        name = block.name(index)
        is_directory = block.is_directory(index)
        info = (
            None
            if is_directory
            else ObjectInfo(
                self.key_of(parent) + name,
                block.sizes[index],
                block.etag(index),
                block.last_modified_ns[index],
            )
        )
        node = Node(block.base + index, parent, name, self._attributes(info))
        _describe(node, info)
        node.tell(block.held[index])
        block.flags[index] |= UNPACKED
        block.left -= 1
        self._packed -= 1
        self._by_inode[node.inode] = node
        parent.directory.children.nodes[name] = node
        return node

    def _pack(self, node: Node) -> bool:
        """Let a node that nobody holds be an entry again, if it is still as its listing told."""
        place = bisect_right(self._bases, node.inode) - 1
        block = self._blocks[self._bases[place]] if place >= 0 else None
        if block is None or block.directory is not node.parent or node.parent is None:
            return False
        index = node.inode - block.base
        if index >= len(block) or block.flags[index] & (GONE | UNPACKED) != UNPACKED:
            return False
        if block.name(index) != node.name or not node.linked:
            return False
        if node.is_directory:
            if not block.is_directory(index):
                return False
        elif node.content is None or node.content != block.content(index, self.key_of(node.parent)):
            return False
        block.flags[index] &= ~UNPACKED
        block.held[index] = min(HELD_MAX, node.lookups)
        block.left += 1
        self._packed += 1
        self._remove(node)
        return True

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        assert node.parent.directory is not None
        node.parent.directory.children.nodes.pop(node.name, None)
        self._by_inode.pop(node.inode, None)
        self._used.pop(node.inode, None)

    def lose(self, block: Block, index: int) -> None:
        """An entry that has no node is not there any more, or has got another content."""
        block.flags[index] |= GONE
        block.left -= 1
        self._packed -= 1

    def unpack_below(self, directory: Node) -> None:
        """Give every entry below ``directory`` a node, as its key is about to be another."""
        todo = [directory]
        while todo:
            at = todo.pop()
            assert at.directory is not None
            children = at.directory.children
            for block in children.blocks:
                for index in block.present():
                    self._unpack(block, index)
            self._drop_blocks(at)
            todo += [child for child in children.nodes.values() if child.directory is not None]

    async def unpack_most_below(self, directory: Node) -> None:
        """The same in slices; what comes meanwhile may be left out."""
        todo = [directory]
        while todo:
            at = todo.pop()
            assert at.directory is not None
            children = at.directory.children
            for block in children.blocks:
                async for places in sliced(range(len(block)), 64):
                    for index in places:
                        if not block.flags[index] & (GONE | UNPACKED) and block in children.blocks:
                            self._unpack(block, index)
            todo += [child for child in children.nodes.values() if child.directory is not None]

    def _drop_blocks(self, directory: Node) -> None:
        assert directory.directory is not None
        children = directory.directory.children
        for block in children.blocks:
            self._free(block)
        children.blocks = ()

    def _free(self, block: Block) -> None:
        self._packed -= block.left
        self._packed_bytes -= block.size_bytes
        del self._blocks[block.base]
        del self._bases[bisect_right(self._bases, block.base) - 1]

    def tidy(self, directory: Node) -> None:
        """Free the blocks of ``directory`` that have nothing left to tell."""
        assert directory.directory is not None
        children = directory.directory.children
        for block in children.blocks:
            if not block.left and all(flag & GONE for flag in block.flags):
                self._free(block)
                children.blocks = tuple(each for each in children.blocks if each is not block)

    # ----------------------------------------------------------------- dropping

    def use(self, directory: Node) -> None:
        """The entries of ``directory`` are asked for: those of others are dropped before."""
        at: Node | None = directory
        while at is not None and at.linked:
            self._used[at.inode] = at
            self._used.move_to_end(at.inode)
            at = at.parent

    def trim(self) -> None:
        """Drop what was listed of directories that were not used for longest, until there is room.

        A file that the kernel asks for by a number that was dropped is ESTALE, and it looks the name up again;
        a directory comes back to its place, as a process may stand in it.
        """
        if self.size_bytes <= max(self.bytes_max, self._trim_from):
            return
        for _ in range(len(self._used)):
            if self.size_bytes <= self.bytes_max:
                self._trim_from = 0.0
                return
            directory = self._used.popitem(last=False)[1]
            if not self.drop_listing(directory):
                self._used[directory.inode] = directory
        # All the rest is in use: to look through it again is of use only once there is more.
        self._trim_from = 1.1 * self.size_bytes

    def drop_listing(self, directory: Node) -> bool:
        """Forget what is known of a directory's entries unless somebody holds it; are all of them forgotten?"""
        known = directory.directory
        if known is None or not directory.linked:
            return True
        nodes = known.children.nodes
        holders = UNUSED_REFERENCES_OF_ARGUMENT + len(nodes) + len(known.children.blocks)
        if _references(directory) > holders:
            return False
        for name in list(nodes):
            node = nodes[name]
            if node.directory is not None and not node.directory.children.is_bare:
                continue
            if _references(node) > UNUSED_REFERENCES or self._is_needed(node):
                continue
            self._remove(node)
            if node.is_directory:
                self._remember(directory, node.inode, name, node.lookups)
            self.dropped += 1
        self.dropped += sum(block.left for block in known.children.blocks)
        self._remember_listed(directory)
        self._drop_blocks(directory)
        known.listed_at = known.believed_until = float("-inf")
        if nodes or directory.parent is None:
            return not nodes
        unused = _references(directory) <= UNUSED_REFERENCES_OF_ARGUMENT
        if unused and not self._is_needed(directory):
            self._pack(directory)
        return True

    def _remember(self, directory: Node, inode: int, name: str, lookups: int) -> None:
        if lookups:
            self.dropped_directories.remember(inode, Place(directory.inode, name, lookups))

    def _remember_listed(self, directory: Node) -> None:
        assert directory.directory is not None
        for block in directory.directory.children.blocks:
            for index in block.held_directories():
                self._remember(directory, block.base + index, block.name(index), block.held[index])

    # -------------------------------------------------------------------- names

    def add(self, parent: Node, name: str, attributes: Attributes) -> Node:
        """A new node under ``parent``; one that had the name before loses its place."""
        assert parent.directory is not None
        earlier = parent.directory.children.get(name)
        if earlier is not None:
            self.unlink(earlier)
        dropped = self.dropped_directories.take_at(parent.inode, name)
        if dropped is not None and stat.S_ISDIR(attributes.mode):
            node = self._return(parent, name, *dropped)
            node.attributes, node.attributes_known = attributes, True
            return node
        node = Node(self._next, parent, name, attributes)
        self._next += 1
        self._by_inode[node.inode] = node
        parent.directory.children.nodes[name] = node
        return node

    def unlink(self, node: Node) -> None:
        """Take the node out of the tree; it stays as long as the kernel or a handle holds it."""
        if node.parent is not None and node.linked:
            self._take_out(node)
        node.linked = False
        self.drop_if_unused(node)

    @staticmethod
    def _take_out(node: Node) -> None:
        assert node.parent is not None
        if node.parent.directory is None:
            return
        children = node.parent.directory.children
        if children.nodes.get(node.name) is node:
            del children.nodes[node.name]
            for block in children.blocks:
                index = node.inode - block.base
                if 0 <= index < len(block):
                    block.flags[index] |= GONE

    def replace(self, node: Node) -> None:
        """Take the node out of the tree, as somebody else deleted or replaced what it stands for."""
        node.is_replaced = True
        self.unlink(node)

    def move(self, node: Node, parent: Node, name: str) -> None:
        """Give the node another place; what had the place before must be gone already."""
        assert node.parent is not None
        assert parent.directory is not None
        if node.is_directory:
            self.unpack_below(node)
        self._take_out(node)
        node.parent = parent
        node.name = name
        parent.directory.children.nodes[name] = node

    def forget(self, inode: int, count: int) -> Node | None:
        """The kernel dropped ``count`` of its references: all that it had taken in.

        Returns a file in its place of which answers on their way may tell what is not so any more.
        """
        node = self._by_inode.get(inode)
        if node is None:
            found = self.peek(inode)
            if found is not None:
                found[0].forget(found[1], count)
            self.dropped_directories.forget(inode, count)
            return None
        is_told_otherwise = node.forget(count)
        if not node.lookups:
            self.drop_if_unused(node)
        return node if is_told_otherwise and node.linked else None

    def renumber(self, node: Node) -> None:
        """Give a file in its place another number; nothing is found by the one it had."""
        assert node.parent is not None
        assert node.parent.directory is not None
        del self._by_inode[node.inode]
        self._take_out(node)
        node.inode = self._next
        node.lookups = 0
        self._next += 1
        self._by_inode[node.inode] = node
        node.parent.directory.children.nodes[node.name] = node

    def drop_if_unused(self, node: Node) -> None:
        """Free a node that has no place in the tree and that the kernel does not know."""
        if not node.linked and node.lookups == 0:
            self._by_inode.pop(node.inode, None)
            self._used.pop(node.inode, None)
            if node.directory is not None:
                for child in list(node.directory.children.nodes.values()):
                    self.unlink(child)
                self._drop_blocks(node)

    def key_of(self, node: Node) -> Key:
        """The key of a linked node; a directory's ends with ``/``, the root's is the prefix."""
        names = []
        at: Node = node
        while at.parent is not None:
            names.append(at.name)
            at = at.parent
        names.reverse()
        key = self.prefix + "/".join(names)
        return key + "/" if node.is_directory and names else key

    def path_of(self, node: Node) -> str:
        """The path below the mount point, for people."""
        return self.key_of(node)[len(self.prefix) :] or "."


def _describe(node: Node, info: ObjectInfo | None) -> None:
    """What a listing told of a new node."""
    node.attributes_known = False
    if info is not None:
        node.content = info.ref
        node.size = info.size
        node.last_modified_ns = info.last_modified_ns

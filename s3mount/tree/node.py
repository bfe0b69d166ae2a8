"""A directory's entries: inodes that somebody has looked at, and what only LIST told of, packed.

``Node`` is an inode, ``Block`` packs what LIST told of many entries in about 60 bytes each, where an inode takes
700, and ``Children`` is a directory's entries by name, of both kinds. An entry is unpacked, so that it gets a
node, when somebody does more than look at it. Its inode number is its block's first number and its place in the
block, so nothing has to be kept for it by number.
"""

from __future__ import annotations

import re
import stat
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from s3mount.refs import Attributes, ContentRef, ETag, Key, ObjectHeaders, ObjectInfo
from s3mount.slices import sliced

DIRECTORY = 1
GONE = 2
"""It is not there any more, or has got another content."""
UNPACKED = 4
"""There is a node for it, which is what counts."""
HELD_MAX = 255
"""From so many references of the kernel on they are not counted any more."""
_MD5 = re.compile("[0-9a-f]{32}").fullmatch
_OVERHEAD_BYTES = 700
"""About what the objects of one block take, however few entries it has."""


class Block:
    """Entries in the order of their names; ``None`` in place of an object stands for a directory.

    ``left`` counts those that are there and have no node. All names lie from ``first`` to ``last``.
    """

    __slots__ = (
        "_etags",
        "_hint",
        "_names",
        "_offsets",
        "base",
        "directory",
        "first",
        "flags",
        "held",
        "last",
        "last_modified_ns",
        "left",
        "sizes",
    )

    def __init__(
        self, directory: Node, base: int, entries: Sequence[tuple[str, ObjectInfo | None]]
    ) -> None:
        self.directory = directory
        self.base = base
        encoded = [name.encode("utf-8", "surrogatepass") for name, _ in entries]
        self._names = b"".join(encoded)
        self.first, self.last = (encoded[0], encoded[-1]) if encoded else (b"", b"")
        self._offsets = array("I", [0])
        end = 0
        for name in encoded:
            end += len(name)
            self._offsets.append(end)
        self.sizes = array("Q", [0 if info is None else info.size for _, info in entries])
        self.last_modified_ns = array(
            "q", [0 if info is None else info.last_modified_ns for _, info in entries]
        )
        self.flags = bytearray(DIRECTORY if info is None else 0 for _, info in entries)
        self.held = bytearray(len(entries))
        self.left = len(entries)
        self._etags = _packed_etags([None if info is None else info.etag for _, info in entries])
        self._hint = -1

    def __len__(self) -> int:
        return len(self.flags)

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        etags = len(self._etags)
        if isinstance(self._etags, tuple):
            etags = sum(map(sys.getsizeof, self._etags)) + 8 * etags
        return _OVERHEAD_BYTES + len(self._names) + 22 * len(self) + etags

    def _raw(self, index: int) -> bytes:
        return self._names[self._offsets[index] : self._offsets[index + 1]]

    def name(self, index: int) -> str:
        """The name of an entry."""
        return self._raw(index).decode("utf-8", "surrogatepass")

    def find(self, name: str) -> int:
        """The place of ``name``, gone or not; -1 where it never was. Quickest for one after the other."""
        raw = name.encode("utf-8", "surrogatepass")
        low, high = 0, len(self.flags)
        guess = self._hint + 1
        if guess < high and self._raw(guess) == raw:
            self._hint = guess
            return guess
        while low < high:
            middle = (low + high) // 2
            if self._raw(middle) < raw:
                low = middle + 1
            else:
                high = middle
        if low == len(self.flags) or self._raw(low) != raw:
            return -1
        self._hint = low
        return low

    def present(self) -> Iterator[int]:
        """The places of entries that are there and have no node."""
        return (index for index, flag in enumerate(self.flags) if not flag & (GONE | UNPACKED))

    def held_directories(self) -> Iterator[int]:
        """The places of directories without a node that the kernel has references to."""
        return (
            index for index in self.present() if self.held[index] and self.flags[index] & DIRECTORY
        )

    def is_directory(self, index: int) -> bool:
        """Is the entry a directory?"""
        return bool(self.flags[index] & DIRECTORY)

    def etag(self, index: int) -> ETag:
        """The ETag of a file."""
        if isinstance(self._etags, tuple):
            return self._etags[index]
        return self._etags[16 * index : 16 * index + 16].hex()

    def content(self, index: int, prefix: Key) -> ContentRef:
        """The bytes of a file in the directory whose key is ``prefix``."""
        return ContentRef(prefix + self.name(index), self.etag(index), self.sizes[index])

    def is_same(self, index: int, info: ObjectInfo) -> bool:
        """Has the file the content that ``info`` tells of?"""
        return (
            not self.flags[index] & DIRECTORY
            and self.sizes[index] == info.size
            and self.etag(index) == info.etag
        )

    def hold(self, index: int) -> None:
        """The kernel got one more reference to it."""
        if self.held[index] < HELD_MAX:
            self.held[index] += 1

    def forget(self, index: int, count: int) -> None:
        """The kernel dropped ``count`` references."""
        if self.held[index] < HELD_MAX:
            self.held[index] = max(0, self.held[index] - count)


def _packed_etags(etags: list[ETag | None]) -> bytes | tuple[ETag, ...]:
    """16 bytes each where all are MD5s (or ``None``: a directory's), else as they are."""
    if all(etag is None or _MD5(etag) for etag in etags):
        return b"".join(bytes(16) if etag is None else bytes.fromhex(etag) for etag in etags)
    return tuple(etag or "" for etag in etags)


Unpack: TypeAlias = "Callable[[Block, int], Node]"


class Children(Mapping[str, "Node"]):
    """Asking for an entry makes a node of it; ``names``, ``in`` and ``len`` do not, nor does ``listed``.

    ``nodes`` are the entries that have one, changed by ``Nodes`` alone.
    """

    __slots__ = ("_unpack", "blocks", "nodes")

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.blocks: tuple[Block, ...] = ()
        self._unpack: Unpack | None = None

    def add_block(self, block: Block, unpack: Unpack) -> None:
        """More entries; ``unpack`` makes a node of one of them."""
        self.blocks = (*self.blocks, block)
        self._unpack = unpack

    @property
    def is_bare(self) -> bool:
        """Is nothing known of any entry?"""
        return not self.nodes and not self.blocks

    def listed(self, name: str) -> tuple[Block, int] | None:
        """The entry ``name`` if it has no node."""
        raw = name.encode("utf-8", "surrogatepass")
        for block in self.blocks:
            if block.first <= raw <= block.last:
                index = block.find(name)
                if index >= 0 and not block.flags[index] & (GONE | UNPACKED):
                    return block, index
        return None

    def all_listed(self) -> Iterator[tuple[str, Block, int]]:
        """All entries that have no node."""
        for block in self.blocks:
            for index in block.present():
                yield block.name(index), block, index

    def __getitem__(self, name: str) -> Node:
        node = self.nodes.get(name)
        if node is not None:
            return node
        found = self.listed(name)
        if found is None or self._unpack is None:
            raise KeyError(name)
        return self._unpack(*found)

    def __contains__(self, name: object) -> bool:
        return name in self.nodes or (isinstance(name, str) and self.listed(name) is not None)

    def __iter__(self) -> Iterator[str]:
        yield from list(self.nodes)
        for name, _, _ in self.all_listed():
            yield name

    def __len__(self) -> int:
        return len(self.nodes) + sum(block.left for block in self.blocks)

    def __bool__(self) -> bool:
        return bool(self.nodes) or any(block.left for block in self.blocks)

    def directories(self) -> Iterator[str]:
        """The names of subdirectories."""
        for name, node in self.nodes.items():
            if node.is_directory:
                yield name
        for name, block, index in self.all_listed():
            if block.is_directory(index):
                yield name


async def names_in(children: Children) -> list[str]:
    """All names, in slices and in no order: each that is there all the while, and some that come or go."""
    nodes = children.nodes.copy()
    listed: list[str] = []
    for block in children.blocks:
        flags = block.flags
        async for places in sliced(range(len(block))):
            names = (block.name(at) for at in places if not flags[at] & (GONE | UNPACKED))
            listed += [name for name in names if name not in nodes]
    found: list[str] = []
    async for part in sliced(listed):
        # What got a node meanwhile is among those.
        found += [name for name in part if name not in children.nodes]
    found += children.nodes
    found += [name for name in nodes if name not in children.nodes]
    return found


class Node:
    """One inode. A directory has ``directory`` set, everything else has ``content`` or local bytes.

    ``content`` is what S3 holds for it (``None``: nothing yet). ``attributes_known`` tells whether
    ``attributes`` include what is stored with the object, or only what a listing said. ``headers``
    are the object's headers, once read. ``parent`` is ``None`` for the root and for what was unlinked
    or replaced (then ``linked`` is false). ``is_replaced``: not this mount took the node from its place,
    but what S3 listed there.
    """

    __slots__ = (
        "attributes",
        "attributes_known",
        "content",
        "directory",
        "headers",
        "inode",
        "is_replaced",
        "last_modified_ns",
        "linked",
        "lookups",
        "name",
        "parent",
        "size",
        "told",
    )

    def __init__(self, inode: int, parent: Node | None, name: str, attributes: Attributes) -> None:
        self.inode = inode
        self.parent = parent
        self.name = name
        self.attributes = attributes
        self.attributes_known = True
        self.content: ContentRef | None = None
        self.last_modified_ns = 0
        self.headers: ObjectHeaders | None = None
        self.size = 0
        self.lookups = 0
        self.told: tuple[int, int] | None = None
        self.linked = True
        self.is_replaced = False
        self.directory: DirectoryState | None = None
        if stat.S_ISDIR(attributes.mode):
            self.directory = DirectoryState()

    @property
    def is_directory(self) -> bool:
        """Is it a directory?"""
        return self.directory is not None

    def tell(self, lookups: int = 1) -> None:
        """An answer tells the kernel what the file is like now, and gives it references."""
        told = self._kept_by_kernel
        if not self.lookups:
            self.told = told
        elif self.told != told:
            self.told = None
        self.lookups += lookups

    def forget(self, count: int) -> bool:
        """The kernel dropped ``count`` references: all that it had taken in.

        May an answer that it has not taken in yet tell something else of a file than it is like now?
        """
        left = self.lookups - count
        self.lookups = max(0, left)
        # More than were counted: of an entry of a block not all are.
        return left != 0 and self.directory is None and self.told != self._kept_by_kernel

    @property
    def _kept_by_kernel(self) -> tuple[int, int]:
        """What the kernel takes from the answer that makes an inode, and keeps by itself from then on."""
        return self.size, self.attributes.mtime_ns

    def is_inside(self, other: Node) -> bool:
        """Is it ``other`` or somewhere below it?"""
        node: Node | None = self
        while node is not None:
            if node is other:
                return True
            node = node.parent
        return False


class DirectoryState:
    """What is known of a directory's entries.

    ``listed_at`` is trio time of the beginning of the last listing, minus infinity before the first;
    ``listing_s`` how long it took. ``stores_attributes`` tells whether objects below carry attributes
    (``None``: not looked yet). ``believed_until`` is set while S3 cannot be asked. ``marker_etag`` is
    the ETag of its marker object, empty without one, ``marker_bytes`` that object's size,
    ``is_marker_closed`` tells that these credentials may not read it. ``unshown`` counts keys below that are no
    path.
    """

    __slots__ = (
        "believed_until",
        "children",
        "headed_one_by_one",
        "is_marker_closed",
        "listed_at",
        "listing_s",
        "marker_bytes",
        "marker_etag",
        "stores_attributes",
        "unshown",
    )

    def __init__(self) -> None:
        self.children: Children = Children()
        self.listed_at = float("-inf")
        self.listing_s = 0.0
        self.believed_until = float("-inf")
        self.stores_attributes: bool | None = None
        self.marker_etag = ""
        self.marker_bytes = 0
        self.is_marker_closed = False
        self.headed_one_by_one = 0
        self.unshown = 0

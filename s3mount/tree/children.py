"""A directory's entries by name: nodes, and what only a listing told of, which become nodes when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from s3mount.slices import sliced
from s3mount.tree.block import GONE, UNPACKED, Block

if TYPE_CHECKING:
    from s3mount.tree.node import Node

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

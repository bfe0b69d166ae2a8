"""Inodes: what the mount knows of every file and directory that somebody has looked at.

A node is one inode number for the life of a mount. When a name gets other content from elsewhere it
gets a new node; the old one lives on, without a place in the tree, as long as somebody holds it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from s3mount.refs import Attributes, ContentRef, Key, ObjectHeaders

ROOT_INODE = 1


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
        "storage_class",
    )

    def __init__(self, inode: int, parent: Node | None, name: str, attributes: Attributes) -> None:
        self.inode = inode
        self.parent = parent
        self.name = name
        self.attributes = attributes
        self.attributes_known = True
        self.content: ContentRef | None = None
        self.last_modified_ns = 0
        self.storage_class: str | None = None
        self.headers: ObjectHeaders | None = None
        self.size = 0
        self.lookups = 0
        self.linked = True
        self.is_replaced = False
        self.directory: DirectoryState | None = None
        if stat.S_ISDIR(attributes.mode):
            self.directory = DirectoryState()

    @property
    def is_directory(self) -> bool:
        """Is it a directory?"""
        return self.directory is not None

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
    the ETag of its marker object, empty without one. ``unshown`` counts keys below that are no path.
    """

    __slots__ = (
        "believed_until",
        "children",
        "headed_one_by_one",
        "listed_at",
        "listing_s",
        "marker_etag",
        "stores_attributes",
        "unshown",
    )

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.listed_at = float("-inf")
        self.listing_s = 0.0
        self.believed_until = float("-inf")
        self.stores_attributes: bool | None = None
        self.marker_etag = ""
        self.headed_one_by_one = 0
        self.unshown = 0


class Nodes:
    """The table of all nodes. Inode numbers are never used twice within a mount."""

    def __init__(self, prefix: Key, root_attributes: Attributes) -> None:
        self.prefix = prefix
        self.root = Node(ROOT_INODE, None, "", root_attributes)
        self.root.lookups = 1
        self._by_inode: dict[int, Node] = {ROOT_INODE: self.root}
        self._next = ROOT_INODE + 1

    def __len__(self) -> int:
        return len(self._by_inode)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._by_inode.values())

    def get(self, inode: int) -> Node:
        """The node with this number. Raises KeyError."""
        return self._by_inode[inode]

    def add(self, parent: Node, name: str, attributes: Attributes) -> Node:
        """A new node under ``parent``; one that had the name before loses its place."""
        assert parent.directory is not None
        node = Node(self._next, parent, name, attributes)
        self._next += 1
        self._by_inode[node.inode] = node
        earlier = parent.directory.children.get(name)
        if earlier is not None:
            self.unlink(earlier)
        parent.directory.children[name] = node
        return node

    def unlink(self, node: Node) -> None:
        """Take the node out of the tree; it stays as long as the kernel or a handle holds it."""
        if node.parent is not None and node.linked:
            children = node.parent.directory.children if node.parent.directory else {}
            if children.get(node.name) is node:
                del children[node.name]
        node.linked = False
        self.drop_if_unused(node)

    def replace(self, node: Node) -> None:
        """Take the node out of the tree, as somebody else deleted or replaced what it stands for."""
        node.is_replaced = True
        self.unlink(node)

    def move(self, node: Node, parent: Node, name: str) -> None:
        """Give the node another place; what had the place before must be gone already."""
        assert node.parent is not None
        assert parent.directory is not None
        assert node.parent.directory is not None
        if node.parent.directory.children.get(node.name) is node:
            del node.parent.directory.children[node.name]
        node.parent = parent
        node.name = name
        parent.directory.children[name] = node

    def forget(self, inode: int, count: int) -> Node | None:
        """The kernel dropped ``count`` of its references; the node when it has none left."""
        node = self._by_inode.get(inode)
        if node is None:
            return None
        node.lookups = max(0, node.lookups - count)
        if node.lookups:
            return None
        self.drop_if_unused(node)
        return node

    def drop_if_unused(self, node: Node) -> None:
        """Free a node that has no place in the tree and that the kernel does not know."""
        if not node.linked and node.lookups == 0:
            self._by_inode.pop(node.inode, None)
            if node.directory is not None:
                for child in list(node.directory.children.values()):
                    self.unlink(child)

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

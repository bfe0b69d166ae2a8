"""One inode: what the mount knows of a file or directory that somebody has looked at."""

from __future__ import annotations

import stat

from s3mount.refs import Attributes, ContentRef, ObjectHeaders
from s3mount.tree.children import Children


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

"""What the parts of vfs share: the tree of one mount, over it what is pending, and who has files open."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

import msgspec

from s3mount.background import Background
from s3mount.clock import WallClock
from s3mount.config import MountConfig
from s3mount.names import OWN_NAME
from s3mount.refs import Attributes, Key
from s3mount.spool.journal.changes import Delete, PutOrCopy
from s3mount.spool.spool import Spool
from s3mount.tree.node import Node
from s3mount.tree.nodes import Nodes
from s3mount.vfs.finished import FinishedKeys
from s3mount.vfs.open_files import OpenFiles

LISTING_SHARE = 4.0
"""A listing that took t seconds is believed for at least 4 t, so that a large directory in use does
not spend more than a fifth of its time being listed."""

OWN_DATE_SLACK_NS = 2_000_000_000
"""LastModified may differ from the Date of the PUT's answer by this much and still be ours."""


@dataclass
class MountState:
    """The nouns of one mount; behaviour lives in the classes that are given it."""

    config: MountConfig
    spool: Spool
    clock: WallClock
    mounted_ns: int
    nodes: Nodes = field(init=False)
    kernel_keeps_mtime: bool = False
    """Does the kernel tell the mtime of files that are written, as with its writeback cache?"""
    background: Background | None = None
    files: OpenFiles = field(default_factory=OpenFiles)
    finished: FinishedKeys = field(default_factory=FinishedKeys)
    local_folders: set[Key] = field(default_factory=set)
    """Folders that were made here and that the store cannot hold without a file below."""

    def __post_init__(self) -> None:
        top = self.file_attributes(self.mounted_ns, stat.S_IFDIR)
        self.nodes = Nodes(self.config.prefix, top, self.file_attributes, self._is_needed)

    def _is_needed(self, node: Node) -> bool:
        """Must it stay in memory though nobody holds it?"""
        return self.change_of(node) is not None or self.is_written(node)

    def now_ns(self) -> int:
        """Wall time."""
        return self.clock.now_ns()

    def believed_s(self, listing_s: float) -> float:
        """How long, from its beginning on, a listing that took ``listing_s`` is believed, in seconds."""
        ttl_s = self.config.metadata_ttl_s
        return max(ttl_s, LISTING_SHARE * listing_s) if ttl_s else 0.0

    def is_written(self, node: Node) -> bool:
        """Has somebody opened the file for writing?"""
        return self.files.is_written(node)

    def change_of(self, node: Node) -> PutOrCopy | None:
        """What is pending for a node, if anything."""
        if not node.linked:
            return None
        change = self.spool.changes.get(self.change_key(node))
        return None if isinstance(change, Delete) else change

    def change_key(self, node: Node) -> Key:
        """The key under which a node's own state is stored: its object, or a directory's marker."""
        if node.parent is None and node.linked:
            return self.root_marker_key
        return self.nodes.key_of(node)

    @property
    def root_marker_key(self) -> Key:
        """The marker of the mounted top."""
        return self.nodes.prefix or f"{OWN_NAME}/"

    def is_hidden(self, parent: Node, name: str) -> bool:
        """Is this a name at the top that is our own, or that of the past?"""
        is_top = parent.parent is None and parent.linked
        return is_top and name in (OWN_NAME, self.config.snapshots)

    def file_attributes(self, mtime_ns: int, kind: int = stat.S_IFREG) -> Attributes:
        """Attributes of an object that carries none."""
        is_dir = kind == stat.S_IFDIR
        return Attributes(
            mode=kind | (self.config.dir_mode if is_dir else self.config.file_mode),
            uid=self.config.uid,
            gid=self.config.gid,
            mtime_ns=mtime_ns,
            ctime_ns=mtime_ns,
            atime_ns=mtime_ns,
        )

    def find(self, key: Key) -> Node | None:
        """The linked node of ``key`` (a directory's with its ``/``), if it is in memory."""
        if key == self.root_marker_key:
            return self.nodes.root
        if not key.startswith(self.nodes.prefix):
            return None
        path = key[len(self.nodes.prefix) :]
        wants_directory = path.endswith("/")
        node = self.nodes.root
        for name in path.rstrip("/").split("/"):
            if node.directory is None or name not in node.directory.children:
                return None
            node = node.directory.children[name]
        return node if node.is_directory == wants_directory else None


def changed(attributes: Attributes, **fields: object) -> Attributes:
    """``attributes`` with some fields replaced."""
    return msgspec.structs.replace(attributes, **fields)

"""The view of a snapshot: a tree that cannot change, each file read by its version.

A version that S3 does not hand out any more is an error for that file (EIO), never other data. Sizes and
attributes that the catalog lacks are asked of S3 in batches, and remembered there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import trio

from s3mount.background import contained
from s3mount.cache.reader import ReadHandle
from s3mount.errors import PreconditionFailedError, S3MountError, StoreError
from s3mount.names import NAME_BYTES_MAX, is_name
from s3mount.refs import ObjectInfo
from s3mount.slices import Pace
from s3mount.tasks import first_error
from s3mount.tree import attributes as codec
from s3mount.tree.snapshot import SnapshotNode, SnapshotTree
from s3mount.vfs.buckets import Buckets
from s3mount.vfs.missing_versions import MissingVersions, why
from s3mount.vfs.snapshots.snapshot_readahead import SnapshotReadahead
from s3mount.vfs.view import FOREVER_S, Entry

PAGE_ROWS = 256
"""Entries that are looked up, and asked for in S3 where that is needed, at a time."""
HEADS_MAX = 64
"""HEAD requests on their way at once: 64 at 20 ms are 3,200/s."""
HEADED_ONE_BY_ONE_MAX = 2
"""After so many single HEADs in a directory, those behind the one asked for come along."""
FOLDERS_COUNTED_MAX = 10_000
LINK_BYTES_MAX = 4096
OWN_XATTR_PREFIX = "s3mount."


class Lister(Protocol):
    """Fills a catalog while it is used."""

    async def list(self, number: int) -> None:
        """Make all entries of the directory known. Raises StoreError."""
        ...

    async def find(self, number: int, name: str) -> None:
        """Make one entry known, if there is one. Raises StoreError."""
        ...


class SnapshotView:
    """One snapshot, by inode numbers: ``numbers`` of the catalog plus ``base``; the top is ``top_inode``.

    ``references`` counts what the kernel knows of it; nothing is held for them.
    """

    def __init__(
        self,
        tree: SnapshotTree,
        buckets: Buckets,
        *,
        top_inode: int,
        base: int = 0,
        lister: Lister | None = None,
        missing: MissingVersions | None = None,
        place: str = "",
    ) -> None:
        self.tree = tree
        self.missing_versions = missing or MissingVersions()
        self.top_inode = top_inode
        self._buckets = buckets
        self._base = base
        self._lister = lister
        self._place = place
        self._headed: OrderedDict[int, int] = OrderedDict()
        self._slots = trio.CapacityLimiter(HEADS_MAX)
        self._handles: dict[int, OpenFile] = {}
        self._next_handle = base + 1
        self.references = 0
        self.readahead = SnapshotReadahead(tree, self._is_listed, buckets.open_reader)

    def close(self) -> None:
        """Let go of what was read ahead. Repeatable."""
        self.readahead.close()

    def _is_listed(self, number: int) -> bool:
        return self._lister is None or self.tree.catalog.is_listed(number)

    # ------------------------------------------------------------- translation

    def _inode(self, number: int) -> int:
        return self.top_inode if number == self.tree.top else self._base + number

    def _number(self, inode: int) -> int:
        return self.tree.top if inode == self.top_inode else inode - self._base

    def node(self, inode: int) -> SnapshotNode:
        """The node of an inode. Raises OSError (ESTALE), LocalDiskError."""
        node = self.tree.node(self._number(inode))
        if node is None:
            raise OSError(errno.ESTALE, "there is no such inode")
        return node

    def _directory(self, inode: int) -> SnapshotNode:
        node = self.node(inode)
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        return node

    def path_of(self, node: SnapshotNode) -> str:
        """How people are told of a node."""
        return f"{self._place}s3://{node.bucket}/{node.key}"

    def _entry(self, node: SnapshotNode) -> Entry:
        is_known = node.size is not None and not self._wants(node)
        valid_s = FOREVER_S if is_known else 0.0
        inode = self._inode(node.row.number)
        return Entry(inode, node.attributes, node.size or 0, valid_s, valid_s)

    # ------------------------------------------------------------------ looking

    async def lookup(self, parent_inode: int, name: str) -> Entry | None:
        """See ``View.lookup``."""
        found = await self.find(parent_inode, name)
        self.references += found is not None
        return found

    def absent_for_s(self, parent_inode: int) -> float:
        """See ``View.absent_for_s``: for ever."""
        return FOREVER_S

    async def find(self, parent_inode: int, name: str) -> Entry | None:
        """The entry ``name``, or ``None``. Raises OSError, S3MountError."""
        parent = self._directory(parent_inode)
        if len(name.encode("utf-8", "replace")) > NAME_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, "name is longer than 255 bytes")
        if not is_name(name):
            return None
        row = self.tree.catalog.child(parent.row.number, name)
        if row is None and self._lister is not None:
            await self._lister.find(parent.row.number, name)
            row = self.tree.catalog.child(parent.row.number, name)
        if row is None or self.tree.is_hidden(row):
            return None
        return await self._known(self.tree.node_of(row))

    async def getattr(self, inode: int) -> Entry:
        """What an inode is like. Raises OSError (ESTALE, EIO), S3MountError."""
        return await self._known(self.node(inode))

    async def _known(self, node: SnapshotNode) -> Entry:
        """The node once everything is known of it; a missing version is EIO."""
        inode = self._inode(node.row.number)
        if await self._know_storing(node):
            node = self.node(inode)
        if self._wants(node):
            await self._know_around(node)
            node = self.node(inode)
            if node.size is None:
                raise OSError(errno.EIO, "its version cannot be read")
        return self._entry(node)

    async def page(self, inode: int, after: str) -> list[tuple[str, Entry | None]]:
        """The next entries of a directory behind the name ``after``; empty at its end.

        ``None`` stands for one that is not shown. Raises OSError, S3MountError.
        """
        directory = self._directory(inode)
        number = directory.row.number
        if self._lister is not None:
            await self._lister.list(number)
        rows = self.tree.catalog.page(number, after, PAGE_ROWS)
        nodes = [self.tree.node_of(row) for row in rows]
        files = [node for node in nodes if not node.is_directory]
        if files:
            await self._know_storing(files[0])
        wanting = [node for node in nodes if self._wants(node)]
        if wanting:
            await self.know(wanting)
            nodes = [
                self.tree.node_of(row) for row in self.tree.catalog.page(number, after, PAGE_ROWS)
            ]
        return [
            (node.row.name, None if self.tree.is_hidden(node.row) else self._entry(node))
            for node in nodes
        ]

    def name_at(self, inode: int, place: int) -> str:
        """The name at ``place`` (from 0) of a directory; empty behind its end."""
        return self.tree.catalog.name_at(self._number(inode), place)

    def open_directory(self, inode: int) -> OpenSnapshotDirectory:
        """See ``View.open_directory``."""
        self._directory(inode)
        return OpenSnapshotDirectory(self, inode)

    def forget(self, inode: int, count: int) -> None:
        """See ``View.forget``."""
        self.references = max(0, self.references - count)

    # ------------------------------------------------------------- what S3 knows

    def _wants(self, node: SnapshotNode) -> bool:
        """Is there something to be asked of S3 about it?"""
        if node.info is not None:
            return False
        if node.is_directory:
            return self.tree.has_attributes(node.row)
        if node.row.size is None:
            return True
        if node.row.mode is not None:
            return False
        return bool(self.tree.is_storing(node.row.parent))

    async def _know_storing(self, node: SnapshotNode) -> bool:
        """Learn from a directory's marker whether the objects in it carry attributes; was it asked?

        Of a file the directory that it lies in. Raises S3MountError.
        """
        number = node.row.number if node.is_directory else node.row.parent
        if self.tree.is_storing(number) is not None:
            return False
        directory = self.tree.catalog.row(number)
        marker = self.tree.marker_of(directory) if directory is not None else None
        if marker is None:
            return False
        told = await self._head(self.tree.node_of(marker))
        if told is None:
            self.tree.note_storing(number, False)
        else:
            self.tree.catalog.learn([(marker.number, told, marker.version_id is not None)])
        return True

    async def _know_around(self, node: SnapshotNode) -> None:
        """Ask S3 about a node; after a few in one directory, about those behind it as well."""
        parent = node.row.parent
        asked = self._headed[parent] = self._headed.pop(parent, 0) + 1
        if len(self._headed) > FOLDERS_COUNTED_MAX:
            self._headed.popitem(last=False)
        nodes = [node]
        if asked > HEADED_ONE_BY_ONE_MAX:
            rows = self.tree.catalog.page(parent, node.row.name, PAGE_ROWS)
            nodes += [each for each in map(self.tree.node_of, rows) if self._wants(each)]
        await self.know(nodes)

    async def know(self, nodes: list[SnapshotNode]) -> None:
        """Ask S3 about these nodes, in parallel, and remember what it told.

        A version that cannot be had is noted as a trouble. Raises S3MountError where S3 does not answer.
        """
        told: list[tuple[int, ObjectInfo, bool]] = []

        async def ask(node: SnapshotNode) -> None:
            async with self._slots:
                found = await self._head(node)
                if found is not None:
                    told.append((node.row.number, found, node.row.version_id is not None))

        try:
            with first_error():
                async with trio.open_nursery() as nursery:
                    for node in nodes:
                        nursery.start_soon(ask, node)
        finally:
            self.tree.catalog.learn(told)

    async def _head(self, node: SnapshotNode) -> ObjectInfo | None:
        """What S3 tells of a node's version; ``None`` when it cannot be had, which is noted."""
        path, row = self.path_of(node), node.row
        if self.missing_versions.is_fresh(path):
            await trio.lowlevel.checkpoint()
            return None
        try:
            access = await self._buckets.access(node.bucket)
            found = await access.store.head(node.key, version_id=row.version_id)
        except StoreError as error:
            if error.retryable:
                raise
            self.missing_versions.note(path, row.version_id, why(error))
            return None
        other = _difference(node, found)
        if other:
            self.missing_versions.note(path, row.version_id, other)
            return None
        self.missing_versions.passed(path)
        return found

    # ------------------------------------------------------------------ reading

    async def open(self, inode: int, flags: int = os.O_RDONLY, pid: int = 0) -> int:
        """A handle to read a file by. Raises OSError (EIO: its version is missing), S3MountError."""
        return await self._open(inode, is_read_by_program=True)

    async def _open(self, inode: int, *, is_read_by_program: bool) -> int:
        node = self.node(inode)
        if node.is_directory:
            raise OSError(errno.EISDIR, "is a directory")
        if node.content is None:
            await self.know([node])
            node = self.node(inode)
            if node.content is None:
                raise OSError(errno.EIO, "its version cannot be read")
        else:
            await trio.lowlevel.checkpoint()
        number = self._next_handle
        self._next_handle += 1
        opened = self._handles[number] = OpenFile(node)
        prefetched = None
        if is_read_by_program:
            with contained("reading ahead"):
                prefetched = self.readahead.opened(node)
        reader = self._buckets.open_reader(node.bucket)
        if prefetched is not None and reader is not None and node.content is not None:
            opened.reader = reader.open(node.content)
        self.readahead.used(prefetched)
        return number

    async def read(self, number: int, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes of exactly the version that is shown. Raises OSError, S3MountError."""
        opened = self._handle(number)
        node = opened.node
        if node.content is None or offset >= node.content.size:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            if opened.reader is None:
                access = await self._buckets.access(node.bucket)
                opened.reader = opened.reader or access.reader.open(node.content)
            data = opened.reader.read_now(offset, length)
            if data is None:
                data = await opened.reader.read(offset, length)
                self.missing_versions.passed(self.path_of(node))
            return data
        except StoreError as error:
            if error.retryable:
                raise
            said = why(error)
            if isinstance(error, PreconditionFailedError):
                said = "S3 has other bytes in its place"
            self.missing_versions.note(self.path_of(node), node.version_id, said)
            raise OSError(errno.EIO, "its version cannot be read") from None

    def _handle(self, number: int) -> OpenFile:
        try:
            return self._handles[number]
        except KeyError:
            raise OSError(errno.EBADF, "no such handle") from None

    def release(self, number: int) -> None:
        """Close a handle. Repeatable."""
        opened = self._handles.pop(number, None)
        if opened is not None and opened.reader is not None:
            opened.reader.close()

    @property
    def open_files(self) -> int:
        """How many handles are open."""
        return len(self._handles)

    async def flush(self, handle: int) -> None:
        """See ``View.flush``: nothing was written."""

    async def fsync(self, handle: int) -> None:
        """See ``View.fsync``: nothing was written."""

    async def readlink(self, inode: int) -> bytes:
        """Where a symbolic link leads. Raises OSError (EINVAL: it is none; EIO), S3MountError."""
        await self.getattr(inode)
        node = self.node(inode)
        if not stat.S_ISLNK(node.attributes.mode):
            raise OSError(errno.EINVAL, "not a symbolic link")
        target = codec.symlink_target_of(node.headers)
        if target is not None:
            return target
        if node.size is not None and node.size > LINK_BYTES_MAX:
            raise OSError(errno.EIO, "the link's target is too long")
        number = await self._open(inode, is_read_by_program=False)
        try:
            return await self.read(number, 0, LINK_BYTES_MAX)
        finally:
            self.release(number)

    # -------------------------------------------------------------------- telling

    def describe(self, node: SnapshotNode) -> dict[str, str | None]:
        """Which version it is, as text."""
        content = node.content
        return {
            "bucket": node.bucket or None,
            "key": node.key or None,
            "etag": content.etag if content is not None else node.row.etag or None,
            "version_id": node.version_id,
        }

    async def getxattr(self, inode: int, name: str) -> bytes:
        """One extended attribute. Raises OSError (ENODATA), S3MountError."""
        await self.getattr(inode)
        node = self.node(inode)
        if name.startswith(OWN_XATTR_PREFIX):
            value = self.describe(node).get(name[len(OWN_XATTR_PREFIX) :])
            if value is not None:
                return value.encode()
        elif name in node.attributes.xattrs:
            return node.attributes.xattrs[name]
        raise OSError(errno.ENODATA, "no such attribute")

    async def listxattr(self, inode: int) -> list[str]:
        """Names of those that can be copied, which ours cannot. Raises OSError, S3MountError."""
        await self.getattr(inode)
        return list(self.node(inode).attributes.xattrs)

    async def status_of(self, path: str) -> dict[str, Any]:
        """One file, by its path below the top. Raises S3MountError, OSError."""
        inode = self.top_inode
        for name in [part for part in path.split("/") if part]:
            found = await self.find(inode, name)
            if found is None:
                raise S3MountError(f"{path}: no such file in the mount")
            inode = found.inode
        node = self.node(inode)
        return {
            **self.describe(node),
            "path": path,
            "size": node.size,
            "mode": oct(node.attributes.mode),
            "mtime_ns": node.attributes.mtime_ns,
        }


class OpenSnapshotDirectory:
    """An opened directory, and how far it was read: ``_place`` entries, up to the name ``_after``."""

    __slots__ = ("_after", "_inode", "_place", "_rows", "_view")

    def __init__(self, view: SnapshotView, inode: int) -> None:
        self._view = view
        self._inode = inode
        self._place = 0
        self._after = ""
        self._rows: list[tuple[str, Entry | None]] = []

    async def rewind(self) -> None:
        """See ``OpenDirectory.rewind``: names never change."""

    async def dots(self) -> tuple[Entry, Entry]:
        """See ``OpenDirectory.dots``; a snapshot's directory does not know the one above it."""
        own = await self._view.getattr(self._inode)
        return own, own

    async def entries(self, place: int) -> AsyncGenerator[tuple[str, Entry | None]]:
        """See ``OpenDirectory.entries``."""
        if place != self._place:
            # Somebody went back, or jumped by seekdir().
            self._after = self._view.name_at(self._inode, place - 1) if place else ""
            self._place = place
            self._rows = []
        pace = Pace()
        while True:
            if not self._rows:
                await pace.rest()
                self._rows = (await self._view.page(self._inode, self._after))[::-1]
                if not self._rows:
                    return
            name, entry = self._rows[-1]
            yield name, entry
            self._view.references += entry is not None
            self._rows.pop()
            self._after = name
            self._place += 1


class OpenFile:
    """One open(): the node as it is, and the cache's handle once something was read."""

    __slots__ = ("node", "reader")

    def __init__(self, node: SnapshotNode) -> None:
        self.node = node
        self.reader: ReadHandle | None = None


def _difference(node: SnapshotNode, found: ObjectInfo) -> str:
    """What shows that S3 told of another version than was asked for; empty: nothing."""
    row = node.row
    if row.size is not None and found.size != row.size:
        return f"S3 tells of {found.size} bytes, the manifest of {row.size}"
    if row.etag and found.etag and found.etag != row.etag:
        return f"S3 tells of the ETag {found.etag}, the manifest of {row.etag}"
    asked, told = row.version_id, found.version_id
    if asked not in (None, "null") and told != asked and (told is not None or not row.etag):
        return f"S3 tells of the version {told}"
    return ""

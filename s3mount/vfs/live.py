"""The view of the live bucket: inode numbers become nodes, and what is asked of them goes to the parts of vfs."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import AsyncGenerator

from s3mount.background import contained
from s3mount.slices import Pace
from s3mount.tree.node import Block, Node
from s3mount.vfs.filesystem import Filesystem
from s3mount.vfs.namespace.naming import Creator
from s3mount.vfs.view import Entry

FILE_VALID_S = 60.0
"""How long the kernel may believe a file's attributes. An inode is one version; what somebody else changes
of its attributes alone comes with the next look-up of its name. Of a file that it believes no longer the
kernel asks at every read(): with the metadata TTL it asked 755 times while 1 GiB was read in 1,024
pieces, each time behind the reads being answered."""
ENTRIES_PER_LOOK = 64
"""After so many names readdir looks whether others are to be answered. Linux asks for up to 1 MiB of them at once
(since 6.17), which is 6,000 and took 50 ms."""


class LiveView:
    """One mounted bucket. The only view that can be changed, unless it is mounted read-only."""

    def __init__(self, filesystem: Filesystem) -> None:
        self.filesystem = filesystem
        self.is_writable = not filesystem.config.read_only
        self._nodes = filesystem.state.nodes
        self._directories = filesystem.directories
        self._contents = filesystem.contents

    # --------------------------------------------------------------- translation

    def _node(self, inode: int) -> Node:
        try:
            return self._nodes.get(inode)
        except KeyError:
            raise OSError(errno.ESTALE, "inode is forgotten") from None

    def entry(self, node: Node, valid_s: float | None = None) -> Entry:
        """What a node is like. ``valid_s``: not all of its attributes may be known, they are believed no longer."""
        name_valid_s = self._valid_s(node) if valid_s is None else valid_s
        is_settled = valid_s is None and node.directory is None
        return Entry(
            node.inode,
            node.attributes,
            node.size,
            name_valid_s,
            FILE_VALID_S if is_settled else name_valid_s,
            1 if node.linked else 0,
        )

    def listed_entry(self, block: Block, index: int, valid_s: float, *, is_settled: bool) -> Entry:
        """The same for an entry that only a listing told of."""
        state = self.filesystem.state
        is_directory = block.is_directory(index)
        if is_directory:
            attributes = state.file_attributes(state.mounted_ns, stat.S_IFDIR)
        else:
            attributes = state.file_attributes(block.last_modified_ns[index])
        attributes_valid_s = FILE_VALID_S if is_settled and not is_directory else valid_s
        return Entry(
            block.base + index, attributes, block.sizes[index], valid_s, attributes_valid_s
        )

    def _valid_s(self, node: Node) -> float:
        """How long the kernel may believe it: until the listing it came from is too old."""
        if node.parent is None:
            return self.filesystem.config.metadata_ttl_s
        return max(0.0, self._directories.fresh_for_s(node.parent))

    def _looked_up(self, node: Node) -> Entry:
        self._contents.fold(node)
        node.tell()
        return self.entry(node)

    async def _made(self, node: Node) -> Entry:
        await self._directories.know_attributes_of(node)
        return self._looked_up(node)

    # ------------------------------------------------------------------- looking

    async def lookup(self, parent_inode: int, name: str) -> Entry | None:
        """See ``View.lookup``."""
        parent = self._node(parent_inode)
        directories = self._directories
        await directories.look(parent, name)
        assert parent.directory is not None
        children = parent.directory.children
        if directories.is_shown(parent, name):
            found = children.listed(name) if name not in children.nodes else None
            if found is not None and directories.is_enough(found):
                found[0].hold(found[1])
                valid_s = max(0.0, directories.fresh_for_s(parent))
                return self.listed_entry(*found, valid_s, is_settled=True)
        node = await directories.lookup_known(parent, name)
        return None if node is None else self._looked_up(node)

    def absent_for_s(self, parent_inode: int) -> float:
        """See ``View.absent_for_s``."""
        return max(0.0, self._directories.fresh_for_s(self._node(parent_inode)))

    def forget(self, inode: int, count: int) -> None:
        """See ``View.forget``.

        Under the writeback cache Linux trusts its own size of a file, but for an inode that it has just made: that
        gets the size in the answer which made it. When it drops an inode while such answers are still on their way,
        each would bring back the file as it was when they were given, and the next append would overwrite what was
        written since. Then they name a number that is not the file's any more: who opens it by that is told ESTALE,
        upon which Linux looks the name up again.
        """
        told_otherwise = self._nodes.forget(inode, count)
        if told_otherwise is not None and self.filesystem.state.files.of(told_otherwise) is None:
            self._nodes.renumber(told_otherwise)

    async def getattr(self, inode: int) -> Entry:
        """See ``View.getattr``."""
        found = self._nodes.peek(inode)
        if found is not None and self._directories.is_enough(found):
            valid_s = max(0.0, self._directories.fresh_for_s(found[0].directory))
            return self.listed_entry(*found, valid_s, is_settled=True)
        node = self._node(inode)
        await self._directories.know_attributes_of(node)
        self._contents.fold(node)
        return self.entry(node)

    def open_directory(self, inode: int) -> OpenLiveDirectory:
        """See ``View.open_directory``."""
        node = self._node(inode)
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        return OpenLiveDirectory(self, node)

    async def readlink(self, inode: int) -> bytes:
        """See ``View.readlink``."""
        return await self.filesystem.metadata.link_target(self._node(inode))

    async def getxattr(self, inode: int, name: str) -> bytes:
        """See ``View.getxattr``."""
        return await self.filesystem.metadata.get_xattr(self._node(inode), name)

    async def listxattr(self, inode: int) -> list[str]:
        """See ``View.listxattr``."""
        return await self.filesystem.metadata.list_xattrs(self._node(inode))

    # --------------------------------------------------------------------- files

    async def open(self, inode: int, flags: int, pid: int) -> int:
        """See ``View.open``."""
        node = self._node(inode)
        number = await self._open(node, flags, pid)
        if node.inode != inode:
            self._contents.release(number)
            raise OSError(errno.ESTALE, "the inode was forgotten meanwhile")
        return number

    async def _open(self, node: Node, flags: int, pid: int) -> int:
        if flags & os.O_TRUNC:
            await self._contents.truncate(node, 0)
            return self._contents.open(node, flags, pid)
        if (flags & os.O_ACCMODE) == os.O_RDONLY:
            return await self._contents.open_to_read(node, flags, pid)
        return await self._contents.open_to_write(node, flags, pid)

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        """See ``View.read``."""
        return await self._contents.read(self._contents.handle(handle), offset, length)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """See ``Contents.write``."""
        return await self._contents.write(self._contents.handle(handle), offset, data)

    async def flush(self, handle: int) -> None:
        """See ``View.flush``."""
        opened = self._contents.handle(handle)
        await self._contents.flush(opened)
        await self._contents.wait_closed(opened)

    async def fsync(self, handle: int) -> None:
        """See ``View.fsync``."""
        await self._contents.fsync(self._contents.handle(handle))

    def release(self, handle: int) -> None:
        """See ``View.release``."""
        self._contents.release(handle)

    # ------------------------------------------------------------------- changes

    async def setattr(self, inode: int, size: int | None, wanted: dict[str, int]) -> Entry:
        """Truncate to ``size``, unless that is ``None``, and set the attributes ``wanted`` (``Metadata.set``)."""
        node = self._node(inode)
        if size is not None:
            if node.is_directory:
                raise OSError(errno.EISDIR, "is a directory")
            await self._contents.truncate(node, size)
        if wanted:
            await self.filesystem.metadata.set(node, **wanted)
        self._contents.fold(node)
        return self.entry(node)

    def gid_of(self, inode: int) -> int:
        """The group of an inode. Raises OSError (ESTALE)."""
        return self._node(inode).attributes.gid

    async def create(
        self, parent_inode: int, name: str, mode: int, creator: Creator, flags: int, pid: int
    ) -> tuple[int, Entry]:
        """Make a file and open it: the handle's number, and what it is."""
        node = await self.filesystem.naming.create(self._node(parent_inode), name, mode, creator)
        number = self._contents.open(node, flags, pid)
        node.tell()
        return number, self.entry(node)

    async def mknod(
        self, parent_inode: int, name: str, mode: int, rdev: int, creator: Creator
    ) -> Entry:
        """See ``Naming.make_node``."""
        naming = self.filesystem.naming
        return await self._made(
            await naming.make_node(self._node(parent_inode), name, mode, rdev, creator)
        )

    async def mkdir(self, parent_inode: int, name: str, mode: int, creator: Creator) -> Entry:
        """See ``Naming.make_directory``."""
        naming = self.filesystem.naming
        return await self._made(
            await naming.make_directory(self._node(parent_inode), name, mode, creator)
        )

    async def symlink(self, parent_inode: int, name: str, target: bytes, creator: Creator) -> Entry:
        """See ``Naming.make_symlink``."""
        naming = self.filesystem.naming
        return await self._made(
            await naming.make_symlink(self._node(parent_inode), name, target, creator)
        )

    async def unlink(self, parent_inode: int, name: str) -> None:
        """See ``Naming.unlink``."""
        await self.filesystem.naming.unlink(self._node(parent_inode), name)

    async def rmdir(self, parent_inode: int, name: str) -> None:
        """See ``Naming.remove_directory``."""
        await self.filesystem.naming.remove_directory(self._node(parent_inode), name)

    async def rename(
        self, old_parent: int, old_name: str, new_parent: int, new_name: str, flags: int
    ) -> None:
        """See ``Renaming.rename``."""
        await self.filesystem.renaming.rename(
            self._node(old_parent), old_name, self._node(new_parent), new_name, flags
        )

    async def fsyncdir(self) -> None:
        """Make all names durable."""
        await self.filesystem.state.spool.force(None)

    async def setxattr(self, inode: int, name: str, value: bytes) -> None:
        """See ``Metadata.set_xattr``."""
        await self.filesystem.metadata.set_xattr(self._node(inode), name, value)

    async def removexattr(self, inode: int, name: str) -> None:
        """See ``Metadata.remove_xattr``."""
        await self.filesystem.metadata.remove_xattr(self._node(inode), name)


class OpenLiveDirectory:
    """An opened directory: the names as they were when reading began."""

    __slots__ = ("_names", "_node", "_view")

    def __init__(self, view: LiveView, node: Node) -> None:
        self._view = view
        self._node = node
        self._names: list[str] = []

    async def rewind(self) -> None:
        """See ``OpenDirectory.rewind``."""
        filesystem = self._view.filesystem
        self._names = await filesystem.directories.names(self._node)
        with contained("reading ahead"):
            filesystem.contents.readahead.names_read(self._node, self._names)

    def _valid_s(self) -> float:
        return max(0.0, self._view.filesystem.directories.fresh_for_s(self._node))

    async def dots(self) -> tuple[Entry, Entry]:
        """See ``OpenDirectory.dots``."""
        view, node = self._view, self._node
        return view.entry(node, self._valid_s()), view.entry(node.parent or node)

    async def entries(self, place: int) -> AsyncGenerator[tuple[str, Entry | None]]:
        """See ``OpenDirectory.entries``."""
        view = self._view
        valid_s = self._valid_s()
        pace = Pace()
        for number, name in enumerate(itertools.islice(self._names, place, None)):
            if not number % ENTRIES_PER_LOOK:
                await pace.rest()
            assert self._node.directory is not None
            children = self._node.directory.children
            found = children.listed(name) if name not in children.nodes else None
            child = children.get(name) if found is None else None
            if found is not None:
                yield name, view.listed_entry(*found, valid_s, is_settled=False)
                found[0].hold(found[1])
            elif child is not None:
                view.filesystem.contents.fold(child)
                yield name, view.entry(child, valid_s)
                child.tell()
            else:
                yield name, None

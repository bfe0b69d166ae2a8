"""pyfuse3's handlers: translation between the kernel's requests and vfs, and nothing else.

pyfuse3's main loop dies of any exception but FUSEError, and the kernel remembers an ENOSYS for the
whole mount; so every handler exists and every one is wrapped.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from s3mount.background import contained
from s3mount.config import MountConfig
from s3mount.errors import S3MountError, StoreError
from s3mount.fuse.entries import (
    CAPACITY_BYTES,
    DOTS,
    PREFERRED_IO_BYTES,
    entry_of,
    reply_dots,
)
from s3mount.tree.block import Block
from s3mount.tree.names import name_of
from s3mount.tree.node import Node
from s3mount.vfs.errnos import errno_of
from s3mount.vfs.filesystem import Filesystem
from s3mount.vfs.naming import Creator

log = logging.getLogger(__name__)

FILE_VALID_S = 60.0
"""How long the kernel may believe a file's attributes. An inode is one version; what somebody else changes
of its attributes alone comes with the next look-up of its name. Of a file that it believes no longer the
kernel asks at every read(): with the metadata TTL it asked 755 times while 1 GiB was read in 1,024
pieces, each time behind the reads being answered."""

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=pyfuse3.Operations)


def answered(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Wrap a handler: what it raises becomes an errno, and what it should not raise a log entry too.

    ``readdir`` never answers ENOENT, which the C library takes for the directory's end: what could not be
    listed would be an empty folder.
    """
    is_readdir = handler.__name__ == "readdir"

    def number_of(error: Exception) -> int:
        number = errno_of(error)
        return errno.EIO if is_readdir and number == errno.ENOENT else number

    async def wrapped(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(number_of(error)) from None
        except S3MountError as error:
            what = error.describe() if isinstance(error, StoreError) else str(error)
            log.warning("%s failed: %s", handler.__name__, what)
            raise FUSEError(number_of(error)) from None
        except Exception:
            log.exception("internal error in %s", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return functools.update_wrapper(wrapped, handler)


async def _forget_entry(parent: int, name: str) -> None:
    """Make the kernel drop what it knows of a name, and of all below it."""

    def forget() -> None:
        # Whatever the kernel says: there was nothing to drop, or it is in use and will be asked for anew.
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name.encode()))

    await trio.to_thread.run_sync(forget, abandon_on_cancel=True)


class OpenDirectory:
    """An opened directory: the names as they were when reading began."""

    __slots__ = ("names", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.names: list[str] = []


class Operations(pyfuse3.Operations):
    """One mount's handlers."""

    supports_dot_lookup = False
    enable_acl = False

    def __init__(self, filesystem: Filesystem, config: MountConfig) -> None:
        super().__init__()
        self._fs = filesystem
        self._config = config
        self._nodes = filesystem.state.nodes
        self._directories: dict[int, OpenDirectory] = {}
        self._next_directory = 1
        filesystem.refreshing.forget_entry = _forget_entry
        self.enable_writeback_cache = not config.read_only
        filesystem.state.kernel_keeps_mtime = self.enable_writeback_cache
        self.on_init: Callable[[], None] = lambda: None

    def init(self) -> None:
        """The kernel shook hands."""
        self.on_init()

    # --------------------------------------------------------------- translation

    def _node(self, inode: int) -> Node:
        try:
            return self._nodes.get(inode)
        except KeyError:
            raise OSError(errno.ESTALE, "inode is forgotten") from None

    def _entry(self, node: Node, valid_s: float | None = None) -> EntryAttributes:
        valid_s = self._valid_s(node) if valid_s is None else valid_s
        links = 1 if node.linked else 0
        return entry_of(node.inode, node.attributes, node.size, valid_s, links=links)

    def _listed_entry(self, block: Block, index: int, valid_s: float) -> EntryAttributes:
        """The same for an entry that only a listing told of."""
        state = self._fs.state
        if block.is_directory(index):
            attributes = state.file_attributes(state.mounted_ns, stat.S_IFDIR)
        else:
            attributes = state.file_attributes(block.last_modified_ns[index])
        return entry_of(block.base + index, attributes, block.sizes[index], valid_s)

    @staticmethod
    def _settled(entry: EntryAttributes) -> EntryAttributes:
        """The entry, all of whose attributes are known: a file's may be believed for longer than its name."""
        if not stat.S_ISDIR(entry.st_mode):
            entry.attr_timeout = FILE_VALID_S
        return entry

    def _valid_s(self, node: Node) -> float:
        """How long the kernel may believe it: until the listing it came from is too old."""
        if node.parent is None:
            return self._config.metadata_ttl_s
        return max(0.0, self._fs.directories.fresh_for_s(node.parent))

    def _looked_up(self, node: Node) -> EntryAttributes:
        self._fs.contents.fold(node)
        node.lookups += 1
        return self._settled(self._entry(node))

    async def _made(self, node: Node) -> EntryAttributes:
        await self._fs.directories.know_attributes_of(node)
        return self._looked_up(node)

    @staticmethod
    def _creator(ctx: RequestContext) -> Creator:
        return Creator(ctx.uid, ctx.gid)

    def _must_be_writable(self) -> None:
        if self._config.read_only:
            raise OSError(errno.EROFS, "mounted read-only")

    # ---------------------------------------------------------------- attributes

    @answered
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._node(parent_inode)
        directories = self._fs.directories
        text = name_of(name)
        await directories.look(parent, text)
        assert parent.directory is not None
        children = parent.directory.children
        if directories.is_shown(parent, text):
            found = children.listed(text) if text not in children.nodes else None
            if found is not None and directories.is_enough(found):
                found[0].hold(found[1])
                valid_s = max(0.0, directories.fresh_for_s(parent))
                return self._settled(self._listed_entry(*found, valid_s))
        node = await directories.lookup_known(parent, text)
        if node is None:
            entry = EntryAttributes()
            entry.st_ino = pyfuse3.InodeT(0)
            entry.entry_timeout = max(0.0, directories.fresh_for_s(parent))
            return entry
        return self._looked_up(node)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for inode, count in inode_list:
            self._nodes.forget(inode, count)

    @answered
    async def getattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> EntryAttributes:
        found = self._nodes.peek(inode)
        if found is not None and self._fs.directories.is_enough(found):
            valid_s = self._fs.directories.fresh_for_s(found[0].directory)
            return self._settled(self._listed_entry(*found, max(0.0, valid_s)))
        node = self._node(inode)
        await self._fs.directories.know_attributes_of(node)
        self._fs.contents.fold(node)
        return self._settled(self._entry(node))

    @answered
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        self._must_be_writable()
        node = self._node(inode)
        if fields.update_size:
            if node.is_directory:
                raise OSError(errno.EISDIR, "is a directory")
            await self._fs.contents.truncate(node, attr.st_size)
        wanted: dict[str, int] = {}
        if fields.update_mode:
            wanted["mode"] = self._allowed_mode(node, attr.st_mode, ctx)
        if fields.update_uid:
            wanted["uid"] = attr.st_uid
        if fields.update_gid:
            wanted["gid"] = attr.st_gid
        if fields.update_mtime:
            wanted["mtime_ns"] = attr.st_mtime_ns
        if fields.update_atime:
            wanted["atime_ns"] = attr.st_atime_ns
        if wanted:
            await self._fs.metadata.set(node, **wanted)
        self._fs.contents.fold(node)
        return self._settled(self._entry(node))

    @staticmethod
    def _allowed_mode(node: Node, mode: int, ctx: RequestContext) -> int:
        """POSIX: who is not in a file's group cannot give it the set-group-id bit."""
        if not mode & stat.S_ISGID or ctx.uid == 0 or node.attributes.gid == ctx.gid:
            return mode
        if node.attributes.gid in pyfuse3.get_sup_groups(ctx.pid):
            return mode
        return mode & ~stat.S_ISGID

    @answered
    async def access(self, inode: pyfuse3.InodeT, mode: int, ctx: RequestContext) -> bool:
        # default_permissions: the kernel has checked already.
        self._node(inode)
        return True

    @answered
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = PREFERRED_IO_BYTES
        data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = CAPACITY_BYTES // 4096
        data.f_files = data.f_ffree = data.f_favail = 1 << 40
        data.f_namemax = 255
        return data

    # --------------------------------------------------------------------- names

    @answered
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: bytes,
        mode: int,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        self._must_be_writable()
        node = await self._fs.naming.make_node(
            self._node(parent_inode), name_of(name), mode, rdev, self._creator(ctx)
        )
        return await self._made(node)

    @answered
    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        self._must_be_writable()
        node = await self._fs.naming.make_directory(
            self._node(parent_inode), name_of(name), mode, self._creator(ctx)
        )
        return await self._made(node)

    @answered
    async def symlink(
        self, parent_inode: pyfuse3.InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._must_be_writable()
        node = await self._fs.naming.make_symlink(
            self._node(parent_inode), name_of(name), target, self._creator(ctx)
        )
        return await self._made(node)

    @answered
    async def readlink(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> bytes:
        return await self._fs.metadata.link_target(self._node(inode))

    @answered
    async def unlink(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        self._must_be_writable()
        await self._fs.naming.unlink(self._node(parent_inode), name_of(name))

    @answered
    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        self._must_be_writable()
        await self._fs.naming.remove_directory(self._node(parent_inode), name_of(name))

    @answered
    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: bytes,
        parent_inode_new: pyfuse3.InodeT,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self._must_be_writable()
        await self._fs.renaming.rename(
            self._node(parent_inode_old),
            name_of(name_old),
            self._node(parent_inode_new),
            name_of(name_new),
            flags,
        )

    @answered
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: bytes,
        ctx: RequestContext,
    ) -> EntryAttributes:
        raise OSError(errno.EPERM, "an object has one key")

    # --------------------------------------------------------------------- files

    @answered
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: bytes,
        mode: int,
        flags: int,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        self._must_be_writable()
        node = await self._fs.naming.create(
            self._node(parent_inode), name_of(name), mode, self._creator(ctx)
        )
        number = self._fs.contents.open(node, flags, ctx.pid)
        node.lookups += 1
        return self._file_info(number), self._settled(self._entry(node))

    @staticmethod
    def _file_info(number: int) -> FileInfo:
        # A node is one version, so what the kernel keeps of it never goes stale.
        return FileInfo(fh=pyfuse3.FileHandleT(number), keep_cache=True)

    @answered
    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        node = self._node(inode)
        contents = self._fs.contents
        if (flags & os.O_ACCMODE) == os.O_RDONLY and not flags & os.O_TRUNC:
            return self._file_info(await contents.open_to_read(node, flags, ctx.pid))
        self._must_be_writable()
        if flags & os.O_TRUNC:
            await contents.truncate(node, 0)
        return self._file_info(contents.open(node, flags, ctx.pid))

    @answered
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        contents = self._fs.contents
        return await contents.read(contents.handle(fh), off, size)

    @answered
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        contents = self._fs.contents
        return await contents.write(contents.handle(fh), off, buf)

    @answered
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        handle = self._fs.contents.handle(fh)
        self._fs.contents.flush(handle)
        await self._fs.contents.wait_closed(handle)

    @answered
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._fs.contents.release(fh)

    @answered
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await self._fs.contents.fsync(self._fs.contents.handle(fh))

    # --------------------------------------------------------------- directories

    @answered
    async def opendir(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> pyfuse3.FileHandleT:
        node = self._node(inode)
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        number = self._next_directory
        self._next_directory += 1
        self._directories[number] = OpenDirectory(node)
        return pyfuse3.FileHandleT(number)

    @answered
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        opened = self._directories[fh]
        node = opened.node
        if start_id == 0:
            opened.names = await self._fs.directories.names(node)
            with contained("reading ahead"):
                self._fs.contents.walks.names_read(node, opened.names)
        assert node.directory is not None
        children = node.directory.children
        valid_s = max(0.0, self._fs.directories.fresh_for_s(node))
        names = opened.names
        above = self._entry(node.parent or node)
        if not reply_dots(token, start_id, self._entry(node, valid_s), above):
            return
        for number in range(max(start_id, DOTS), DOTS + len(names)):
            name = names[number - DOTS]
            found = children.listed(name) if name not in children.nodes else None
            if found is not None:
                entry = self._listed_entry(*found, valid_s)
                if not pyfuse3.readdir_reply(token, name.encode(), entry, number + 1):
                    return
                found[0].hold(found[1])
                continue
            child = children.get(name)
            if child is None:
                continue
            self._fs.contents.fold(child)
            entry = self._entry(child, valid_s)
            if not pyfuse3.readdir_reply(token, name.encode(), entry, number + 1):
                return
            child.lookups += 1

    @answered
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._directories.pop(fh, None)

    @answered
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await self._fs.state.spool.force(None)

    # ------------------------------------------------------- extended attributes

    def _must_have_xattrs(self) -> None:
        """Without --xattr the first answer switches them off in the kernel for the whole mount."""
        if not self._config.xattr:
            raise OSError(errno.ENOSYS, "mounted without --xattr")

    @answered
    async def getxattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> bytes:
        self._must_have_xattrs()
        return await self._fs.metadata.get_xattr(self._node(inode), os.fsdecode(name))

    @answered
    async def listxattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> Sequence[bytes]:
        self._must_have_xattrs()
        names = await self._fs.metadata.list_xattrs(self._node(inode))
        return [os.fsencode(name) for name in names]

    @answered
    async def setxattr(
        self, inode: pyfuse3.InodeT, name: bytes, value: bytes, ctx: RequestContext
    ) -> None:
        self._must_have_xattrs()
        self._must_be_writable()
        await self._fs.metadata.set_xattr(self._node(inode), name_of(name), value)

    @answered
    async def removexattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        self._must_have_xattrs()
        self._must_be_writable()
        await self._fs.metadata.remove_xattr(self._node(inode), name_of(name))

    def stacktrace(self) -> None:
        """Asked for by nobody: SIGUSR1 dumps the stacks instead."""
        log.info("%d tasks", trio.lowlevel.current_statistics().tasks_living)

"""Two sets of handlers as one: those of the live mount, and those of the folder of the past below it.

Inodes and handles of the past lie above all others, so each request tells by itself whose it is.
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from s3mount.fuse.operations import Operations
from s3mount.fuse.snapshot import SnapshotOperations
from s3mount.vfs.hall import FIRST_INODE, HALL_INODE

FIRST_HANDLE = 1 << 62
"""Handles of the past; below them the slot of the past has its place as in an inode."""


class OperationsWithPast(pyfuse3.Operations):
    """Hands each request on. ``live`` and ``past``, below ``name`` at the top, answer; here only is decided who."""

    supports_dot_lookup = False
    enable_acl = False

    def __init__(self, live: Operations, past: SnapshotOperations, name: str) -> None:
        super().__init__()
        self._name = name.encode()
        self._live = live
        self._past = past
        self.enable_writeback_cache = live.enable_writeback_cache

    def init(self) -> None:
        self._live.init()

    def _of(self, inode: int) -> Operations | SnapshotOperations:
        return self._past if inode >= FIRST_INODE else self._live

    def _of_handle(self, fh: int) -> Operations | SnapshotOperations:
        return self._past if fh >= FIRST_HANDLE else self._live

    def _must_not_be_hall(self, parent_inode: int, name: bytes) -> None:
        if parent_inode == pyfuse3.ROOT_INODE and name == self._name:
            raise FUSEError(errno.EROFS)

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        if parent_inode == pyfuse3.ROOT_INODE and name == self._name:
            return await self._past.getattr(pyfuse3.InodeT(HALL_INODE), ctx)
        return await self._of(parent_inode).lookup(parent_inode, name, ctx)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        shares: dict[Operations | SnapshotOperations, list[tuple[pyfuse3.InodeT, int]]] = (
            defaultdict(list)
        )
        for inode, count in inode_list:
            shares[self._of(inode)].append((inode, count))
        for operations, share in shares.items():
            await operations.forget(share)

    async def getattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> EntryAttributes:
        return await self._of(inode).getattr(inode, ctx)

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        return await self._of(inode).setattr(inode, attr, fields, fh, ctx)

    async def access(self, inode: pyfuse3.InodeT, mode: int, ctx: RequestContext) -> bool:
        return await self._of(inode).access(inode, mode, ctx)

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        return await self._live.statfs(ctx)

    async def readlink(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> bytes:
        return await self._of(inode).readlink(inode, ctx)

    # -------------------------------------------------------------------- names

    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: bytes,
        mode: int,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        self._must_not_be_hall(parent_inode, name)
        return await self._of(parent_inode).mknod(parent_inode, name, mode, rdev, ctx)

    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        self._must_not_be_hall(parent_inode, name)
        return await self._of(parent_inode).mkdir(parent_inode, name, mode, ctx)

    async def symlink(
        self, parent_inode: pyfuse3.InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        self._must_not_be_hall(parent_inode, name)
        return await self._of(parent_inode).symlink(parent_inode, name, target, ctx)

    async def unlink(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        self._must_not_be_hall(parent_inode, name)
        await self._of(parent_inode).unlink(parent_inode, name, ctx)

    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        self._must_not_be_hall(parent_inode, name)
        await self._of(parent_inode).rmdir(parent_inode, name, ctx)

    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: bytes,
        parent_inode_new: pyfuse3.InodeT,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self._must_not_be_hall(parent_inode_old, name_old)
        self._must_not_be_hall(parent_inode_new, name_new)
        whose = self._of(max(parent_inode_old, parent_inode_new))
        await whose.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: bytes,
        ctx: RequestContext,
    ) -> EntryAttributes:
        whose = self._of(max(inode, new_parent_inode))
        return await whose.link(inode, new_parent_inode, new_name, ctx)

    # -------------------------------------------------------------------- files

    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: bytes,
        mode: int,
        flags: int,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        self._must_not_be_hall(parent_inode, name)
        return await self._of(parent_inode).create(parent_inode, name, mode, flags, ctx)

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        return await self._of(inode).open(inode, flags, ctx)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return await self._of_handle(fh).read(fh, off, size)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return await self._of_handle(fh).write(fh, off, buf)

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        await self._of_handle(fh).flush(fh)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        await self._of_handle(fh).release(fh)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await self._of_handle(fh).fsync(fh, datasync)

    # -------------------------------------------------------------- directories

    async def opendir(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> pyfuse3.FileHandleT:
        return await self._of(inode).opendir(inode, ctx)

    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        await self._of_handle(fh).readdir(fh, start_id, token)

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        await self._of_handle(fh).releasedir(fh)

    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await self._of_handle(fh).fsyncdir(fh, datasync)

    # ------------------------------------------------------- extended attributes

    async def getxattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> bytes:
        return await self._of(inode).getxattr(inode, name, ctx)

    async def listxattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> Sequence[bytes]:
        return await self._of(inode).listxattr(inode, ctx)

    async def setxattr(
        self, inode: pyfuse3.InodeT, name: bytes, value: bytes, ctx: RequestContext
    ) -> None:
        await self._of(inode).setxattr(inode, name, value, ctx)

    async def removexattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        await self._of(inode).removexattr(inode, name, ctx)

    def stacktrace(self) -> None:
        """Asked for by nobody: SIGUSR1 dumps the stacks instead."""
        self._live.stacktrace()

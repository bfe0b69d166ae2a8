"""pyfuse3's handlers for what cannot change: lookups, directories and reads; every change is EROFS."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NoReturn, Protocol

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, RequestContext

from s3mount.fuse.entries import CAPACITY_BYTES, DOTS, PREFERRED_IO_BYTES, entry_of, reply_dots
from s3mount.fuse.operations import answered
from s3mount.tree.names import name_of
from s3mount.vfs.snapshot import FOREVER_S, Shown


class PastFiles(Protocol):
    """What is shown: one past, or all pasts of a bucket. See ``vfs.snapshot.SnapshotFiles``."""

    async def lookup(self, parent_inode: int, name: str) -> Shown | None: ...
    async def shown(self, inode: int) -> Shown: ...
    async def entries(self, inode: int, after: str) -> list[tuple[str, Shown | None]]: ...
    def name_at(self, inode: int, place: int) -> str: ...
    def refer(self, inode: int) -> None: ...
    def forget(self, inode: int, count: int) -> None: ...
    async def open(self, inode: int) -> int: ...
    async def read(self, number: int, offset: int, length: int) -> bytes: ...
    def release(self, number: int) -> None: ...
    async def link_target(self, inode: int) -> bytes: ...
    async def xattr(self, inode: int, name: str) -> bytes: ...
    async def xattr_names(self, inode: int) -> list[str]: ...


class OpenPastDirectory:
    """An opened directory, and how far it was read: ``place`` entries, up to the name ``after``."""

    __slots__ = ("after", "inode", "place", "rows")

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.place = 0
        self.after = ""
        self.rows: list[tuple[str, Shown | None]] = []


class SnapshotOperations(pyfuse3.Operations):
    """The handlers of a mount, or of the part of one, that only can be read."""

    supports_dot_lookup = False
    enable_acl = False
    enable_writeback_cache = False

    def __init__(self, files: PastFiles, *, xattr: bool, first_handle: int = 1) -> None:
        super().__init__()
        self._files = files
        self._xattr = xattr
        self._first_handle = first_handle
        self._directories: dict[int, OpenPastDirectory] = {}
        self._next_directory = first_handle

    def init(self) -> None:
        """The kernel shook hands."""

    @staticmethod
    def _entry(shown: Shown) -> EntryAttributes:
        return entry_of(shown.inode, shown.attributes, shown.size, shown.valid_s)

    # ---------------------------------------------------------------- looking

    @answered
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        shown = await self._files.lookup(parent_inode, name_of(name))
        if shown is None:
            entry = EntryAttributes()
            entry.st_ino = pyfuse3.InodeT(0)
            entry.entry_timeout = FOREVER_S
            return entry
        self._files.refer(shown.inode)
        return self._entry(shown)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for inode, count in inode_list:
            self._files.forget(inode, count)

    @answered
    async def getattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._files.shown(inode))

    @answered
    async def access(self, inode: pyfuse3.InodeT, mode: int, ctx: RequestContext) -> bool:
        # default_permissions: the kernel has checked the modes already.
        if mode & os.W_OK:
            _refuse()
        return True

    @answered
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = PREFERRED_IO_BYTES
        data.f_frsize = 4096
        data.f_blocks = CAPACITY_BYTES // 4096
        data.f_namemax = 255
        return data

    @answered
    async def readlink(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> bytes:
        return await self._files.link_target(inode)

    # ------------------------------------------------------------- directories

    @answered
    async def opendir(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> pyfuse3.FileHandleT:
        number = self._next_directory
        self._next_directory += 1
        self._directories[number] = OpenPastDirectory(inode)
        return pyfuse3.FileHandleT(number)

    @answered
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        opened = self._directories[fh]
        if start_id < DOTS:
            own = self._entry(await self._files.shown(opened.inode))
            if not reply_dots(token, start_id, own, own):
                return
        place = max(start_id - DOTS, 0)
        if place != opened.place:
            # Somebody went back, or jumped by seekdir().
            opened.after = self._files.name_at(opened.inode, place - 1) if place else ""
            opened.place = place
            opened.rows = []
        while True:
            if not opened.rows:
                opened.rows = (await self._files.entries(opened.inode, opened.after))[::-1]
                if not opened.rows:
                    return
            name, shown = opened.rows[-1]
            if shown is not None:
                entry = self._entry(shown)
                number = DOTS + opened.place + 1
                if not pyfuse3.readdir_reply(token, name.encode(), entry, number):
                    return
                self._files.refer(shown.inode)
            opened.rows.pop()
            opened.after = name
            opened.place += 1

    @answered
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._directories.pop(fh, None)

    @answered
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        return

    # ------------------------------------------------------------------- files

    @answered
    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        if (flags & os.O_ACCMODE) != os.O_RDONLY or flags & os.O_TRUNC:
            _refuse()
        number = self._first_handle + await self._files.open(inode)
        # A version never changes, and so does what the kernel keeps of it.
        return FileInfo(fh=pyfuse3.FileHandleT(number), keep_cache=True)

    @answered
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return await self._files.read(fh - self._first_handle, off, size)

    @answered
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        return

    @answered
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._files.release(fh - self._first_handle)

    @answered
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        return

    # ----------------------------------------------------- extended attributes

    @answered
    async def getxattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> bytes:
        if not self._xattr:
            raise OSError(errno.ENOSYS, "mounted without --xattr")
        return await self._files.xattr(inode, os.fsdecode(name))

    @answered
    async def listxattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> Sequence[bytes]:
        if not self._xattr:
            raise OSError(errno.ENOSYS, "mounted without --xattr")
        return [os.fsencode(name) for name in await self._files.xattr_names(inode)]

    # ----------------------------------------------------------------- changes

    @answered
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        _refuse()

    @answered
    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: bytes,
        mode: int,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        _refuse()

    @answered
    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        _refuse()

    @answered
    async def symlink(
        self, parent_inode: pyfuse3.InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        _refuse()

    @answered
    async def unlink(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        _refuse()

    @answered
    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        _refuse()

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
        _refuse()

    @answered
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: bytes,
        ctx: RequestContext,
    ) -> EntryAttributes:
        _refuse()

    @answered
    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: bytes,
        mode: int,
        flags: int,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        _refuse()

    @answered
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        _refuse()

    @answered
    async def setxattr(
        self, inode: pyfuse3.InodeT, name: bytes, value: bytes, ctx: RequestContext
    ) -> None:
        _refuse()

    @answered
    async def removexattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        _refuse()


def _refuse() -> NoReturn:
    raise OSError(errno.EROFS, "the past cannot be changed")

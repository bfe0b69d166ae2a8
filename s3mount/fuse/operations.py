"""pyfuse3's handlers: translation between the kernel's requests and the views of vfs, and nothing else.

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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from s3mount.errors import S3MountError, StoreError
from s3mount.fuse.entries import CAPACITY_BYTES, DOTS, PREFERRED_IO_BYTES, entry_of, reply_dots
from s3mount.fuse.errnos import errno_of
from s3mount.tree.names import name_of
from s3mount.vfs.live import LiveView
from s3mount.vfs.namespace.naming import Creator
from s3mount.vfs.snapshots.snapshots_dir import SNAPSHOTS_INODE
from s3mount.vfs.view import SLOT_BITS, OpenDirectory, View

log = logging.getLogger(__name__)

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


async def forget_entry(parent: int, name: str) -> None:
    """Make the kernel drop what it knows of a name, and of all below it."""

    def forget() -> None:
        # Whatever the kernel says: there was nothing to drop, or it is in use and will be asked for anew.
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name.encode()))

    await trio.to_thread.run_sync(forget, abandon_on_cancel=True)


class Operations(pyfuse3.Operations):
    """One mount's handlers.

    ``views`` by their slots, the root's in slot 0; others may come and go. ``snapshots`` is the name at the
    root of the folder of snapshots, whose view has the slot of ``SNAPSHOTS_INODE``; empty: there is none.
    """

    supports_dot_lookup = False
    enable_acl = False

    def __init__(self, views: Mapping[int, View], *, xattr: bool, snapshots: str = "") -> None:
        super().__init__()
        self._views = views
        self._xattr = xattr
        self._snapshots = snapshots
        self._directories: dict[int, OpenDirectory] = {}
        self._next_directory = 1
        self._live = root if isinstance(root := views[0], LiveView) and root.is_writable else None
        self.enable_writeback_cache = self._live is not None

    # --------------------------------------------------------------- translation

    def _view(self, number: int) -> View:
        """The view of an inode or a handle."""
        try:
            return self._views[number >> SLOT_BITS]
        except KeyError:
            raise OSError(errno.ESTALE, "the snapshot is closed") from None

    def _writable(self, number: int, name: str = "") -> LiveView:
        """The view that an inode or a handle is of, to change it (or ``name`` in it). Raises OSError (EROFS)."""
        is_snapshots = number == pyfuse3.ROOT_INODE and name == self._snapshots != ""
        if self._live is None or number >> SLOT_BITS or is_snapshots:
            raise OSError(errno.EROFS, "it cannot be changed")
        return self._live

    @staticmethod
    def _creator(ctx: RequestContext) -> Creator:
        return Creator(ctx.uid, ctx.gid)

    # ---------------------------------------------------------------- attributes

    @answered
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        text = name_of(name)
        if parent_inode == pyfuse3.ROOT_INODE and text == self._snapshots != "":
            return entry_of(await self._view(SNAPSHOTS_INODE).getattr(SNAPSHOTS_INODE))
        view = self._view(parent_inode)
        found = await view.lookup(parent_inode, text)
        if found is not None:
            return entry_of(found)
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(0)
        entry.entry_timeout = view.absent_for_s(parent_inode)
        return entry

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        for inode, count in inode_list:
            view = self._views.get(inode >> SLOT_BITS)
            if view is not None:
                view.forget(inode, count)

    @answered
    async def getattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> EntryAttributes:
        return entry_of(await self._view(inode).getattr(inode))

    @answered
    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        view = self._writable(inode)
        wanted: dict[str, int] = {}
        if fields.update_mode:
            wanted["mode"] = _allowed_mode(view.gid_of(inode), attr.st_mode, ctx)
        if fields.update_uid:
            wanted["uid"] = attr.st_uid
        if fields.update_gid:
            wanted["gid"] = attr.st_gid
        if fields.update_mtime:
            wanted["mtime_ns"] = attr.st_mtime_ns
        if fields.update_atime:
            wanted["atime_ns"] = attr.st_atime_ns
        size = attr.st_size if fields.update_size else None
        return entry_of(await view.setattr(inode, size, wanted))

    @answered
    async def access(self, inode: pyfuse3.InodeT, mode: int, ctx: RequestContext) -> bool:
        # default_permissions: the kernel has checked the modes already.
        if mode & os.W_OK:
            self._writable(inode)
        return True

    @answered
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = PREFERRED_IO_BYTES
        data.f_frsize = 4096
        data.f_blocks = CAPACITY_BYTES // 4096
        data.f_namemax = 255
        if self._live is not None:
            data.f_bfree = data.f_bavail = data.f_blocks
            data.f_files = data.f_ffree = data.f_favail = 1 << 40
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
        text = name_of(name)
        view = self._writable(parent_inode, text)
        return entry_of(await view.mknod(parent_inode, text, mode, rdev, self._creator(ctx)))

    @answered
    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        text = name_of(name)
        view = self._writable(parent_inode, text)
        return entry_of(await view.mkdir(parent_inode, text, mode, self._creator(ctx)))

    @answered
    async def symlink(
        self, parent_inode: pyfuse3.InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        text = name_of(name)
        view = self._writable(parent_inode, text)
        return entry_of(await view.symlink(parent_inode, text, target, self._creator(ctx)))

    @answered
    async def readlink(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> bytes:
        return await self._view(inode).readlink(inode)

    @answered
    async def unlink(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        text = name_of(name)
        await self._writable(parent_inode, text).unlink(parent_inode, text)

    @answered
    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        text = name_of(name)
        await self._writable(parent_inode, text).rmdir(parent_inode, text)

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
        old, new = name_of(name_old), name_of(name_new)
        self._writable(parent_inode_new, new)
        view = self._writable(parent_inode_old, old)
        await view.rename(parent_inode_old, old, parent_inode_new, new, flags)

    @answered
    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: bytes,
        ctx: RequestContext,
    ) -> EntryAttributes:
        self._writable(new_parent_inode, name_of(new_name))
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
        text = name_of(name)
        view = self._writable(parent_inode, text)
        number, entry = await view.create(
            parent_inode, text, mode, self._creator(ctx), flags, ctx.pid
        )
        return self._file_info(number), entry_of(entry)

    @staticmethod
    def _file_info(number: int) -> FileInfo:
        # An inode is one version, so what the kernel keeps of it never goes stale.
        return FileInfo(fh=pyfuse3.FileHandleT(number), keep_cache=True)

    @answered
    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        if (flags & os.O_ACCMODE) != os.O_RDONLY or flags & os.O_TRUNC:
            self._writable(inode)
        return self._file_info(await self._view(inode).open(inode, flags, ctx.pid))

    @answered
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return await self._view(fh).read(fh, off, size)

    @answered
    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return await self._writable(fh).write(fh, off, buf)

    @answered
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        await self._view(fh).flush(fh)

    @answered
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._view(fh).release(fh)

    @answered
    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        await self._view(fh).fsync(fh)

    # --------------------------------------------------------------- directories

    @answered
    async def opendir(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> pyfuse3.FileHandleT:
        number = self._next_directory
        self._directories[number] = self._view(inode).open_directory(inode)
        self._next_directory += 1
        return pyfuse3.FileHandleT(number)

    @answered
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        opened = self._directories[fh]
        if start_id == 0:
            await opened.rewind()
        if start_id < DOTS:
            own, above = await opened.dots()
            if not reply_dots(token, start_id, entry_of(own), entry_of(above)):
                return
        number = max(start_id, DOTS)
        async with aclosing(opened.entries(number - DOTS)) as entries:
            async for name, entry in entries:
                number += 1
                if entry is not None and not pyfuse3.readdir_reply(
                    token, name.encode(), entry_of(entry), number
                ):
                    return

    @answered
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._directories.pop(fh, None)

    @answered
    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        if self._live is not None:
            await self._live.fsyncdir()

    # ------------------------------------------------------- extended attributes

    def _must_have_xattrs(self) -> None:
        """Without --xattr the first answer switches them off in the kernel for the whole mount."""
        if not self._xattr:
            raise OSError(errno.ENOSYS, "mounted without --xattr")

    @answered
    async def getxattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> bytes:
        self._must_have_xattrs()
        return await self._view(inode).getxattr(inode, os.fsdecode(name))

    @answered
    async def listxattr(self, inode: pyfuse3.InodeT, ctx: RequestContext) -> Sequence[bytes]:
        self._must_have_xattrs()
        return [os.fsencode(name) for name in await self._view(inode).listxattr(inode)]

    @answered
    async def setxattr(
        self, inode: pyfuse3.InodeT, name: bytes, value: bytes, ctx: RequestContext
    ) -> None:
        self._must_have_xattrs()
        await self._writable(inode).setxattr(inode, name_of(name), value)

    @answered
    async def removexattr(self, inode: pyfuse3.InodeT, name: bytes, ctx: RequestContext) -> None:
        self._must_have_xattrs()
        await self._writable(inode).removexattr(inode, name_of(name))

    def stacktrace(self) -> None:
        """Asked for by nobody: SIGUSR1 dumps the stacks instead."""
        log.info("%d tasks", trio.lowlevel.current_statistics().tasks_living)


def _allowed_mode(gid: int, mode: int, ctx: RequestContext) -> int:
    """POSIX: who is not in a file's group cannot give it the set-group-id bit."""
    if not mode & stat.S_ISGID or ctx.uid == 0 or gid == ctx.gid:
        return mode
    return mode if gid in pyfuse3.get_sup_groups(ctx.pid) else mode & ~stat.S_ISGID

"""The file system as the simulated programs use it: by paths and descriptors, without FUSE."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import trio

from s3mount.spool.spool import Spool
from s3mount.tree.names import name_of
from s3mount.tree.node import Node
from s3mount.vfs.filesystem import Filesystem
from s3mount.vfs.namespace.naming import Creator

if TYPE_CHECKING:
    from tests.sim.world import LifeStore, World

PIECE_BYTES = 3 << 10
"""Files are read and written in such pieces."""

P = ParamSpec("P")
T = TypeVar("T")


def walked(operation: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """An operation on a path: as Linux does, it walks the path once more where it is told ESTALE."""

    @functools.wraps(operation)
    async def walk(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await operation(*args, **kwargs)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        return await operation(*args, **kwargs)

    return walk


class Mount:
    """The file system as programs use it: by paths and descriptors. Errors are OSError and S3MountError."""

    def __init__(
        self, world: World, fs: Filesystem, store: LifeStore, scope: trio.CancelScope
    ) -> None:
        self.world = world
        self.fs = fs
        self.store = store
        self._scope = scope
        self.creator = Creator(7, 7)
        self.is_dead = False

    @property
    def spool(self) -> Spool:
        return self.fs.state.spool

    def kill(self, *, is_power_cut: bool = False) -> None:
        """SIGKILL: what the state folder holds at this moment is all that the next mount finds.

        After a power cut it finds only what was flushed, and of the rest what chance left.
        """
        if self.is_dead:
            return
        self.is_dead = self.store.is_dead = True
        self.world.die(is_power_cut=is_power_cut)
        self._scope.cancel()

    # ------------------------------------------------------------------ paths

    async def find(self, path: str) -> Node | None:
        node: Node | None = self.fs.state.nodes.root
        for name in [name for name in path.split("/") if name]:
            assert node is not None
            if not node.is_directory:
                raise OSError(errno.ENOTDIR, path)
            text = name_of(name.encode())
            await self.fs.directories.look(node, text)
            node = await self.fs.directories.lookup_known(node, text)
            if node is None:
                return None
        return node

    async def node(self, path: str) -> Node:
        found = await self.find(path)
        if found is None:
            raise OSError(errno.ENOENT, path)
        return found

    async def _place(self, path: str) -> tuple[Node, str]:
        parent, _, name = path.rpartition("/")
        node = await self.node(parent)
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, parent)
        return node, name

    async def exists(self, path: str) -> bool:
        return await self.find(path) is not None

    async def stat(self, path: str) -> os.stat_result:
        node = await self.node(path)
        self.fs.contents.fold(node)
        a = node.attributes
        values = (a.mode, node.inode, 0, 1, a.uid, a.gid, node.size)
        times = (a.atime_ns // 10**9, a.mtime_ns // 10**9, a.ctime_ns // 10**9)
        return os.stat_result(
            (*values, *times), {"st_mtime_ns": a.mtime_ns, "st_ctime_ns": a.ctime_ns}
        )

    async def listdir(self, path: str = "") -> list[str]:
        node = await self.node(path)
        names = await self.fs.directories.names(node)
        self.fs.contents.readahead.names_read(node, names)
        return names

    async def tree(self, path: str = "") -> dict[str, bytes | None]:
        """Every path below ``path`` with its content, ``None`` for a directory."""
        found: dict[str, bytes | None] = {}
        for name in await self.listdir(path):
            below = f"{path}/{name}".lstrip("/")
            node = await self.node(below)
            if node.is_directory:
                found[below] = None
                found.update(await self.tree(below))
            else:
                found[below] = await self.read(below)
        return found

    # --------------------------------------------------------------- names

    @walked
    async def mkdir(self, path: str, mode: int = 0o755) -> Node:
        parent, name = await self._place(path)
        return await self.fs.naming.make_directory(parent, name, mode, self.creator)

    async def makedirs(self, path: str) -> None:
        at = ""
        for name in path.split("/"):
            at = f"{at}/{name}".lstrip("/")
            if not await self.exists(at):
                await self.mkdir(at)

    @walked
    async def rmdir(self, path: str) -> None:
        parent, name = await self._place(path)
        await self.fs.naming.remove_directory(parent, name)

    @walked
    async def unlink(self, path: str) -> None:
        parent, name = await self._place(path)
        await self.fs.naming.unlink(parent, name)

    async def rmtree(self, path: str) -> None:
        for name in await self.listdir(path):
            below = f"{path}/{name}"
            if (await self.node(below)).is_directory:
                await self.rmtree(below)
            else:
                await self.unlink(below)
        await self.rmdir(path)

    @walked
    async def rename(self, path: str, new_path: str, flags: int = 0) -> None:
        parent, name = await self._place(path)
        new_parent, new_name = await self._place(new_path)
        await self.fs.renaming.rename(parent, name, new_parent, new_name, flags)

    @walked
    async def symlink(self, target: str, path: str) -> None:
        parent, name = await self._place(path)
        await self.fs.naming.make_symlink(parent, name, target.encode(), self.creator)

    @walked
    async def readlink(self, path: str) -> str:
        return (await self.fs.metadata.link_target(await self.node(path))).decode()

    # ----------------------------------------------------------- attributes

    @walked
    async def chmod(self, path: str, mode: int) -> None:
        await self.fs.metadata.set(await self.node(path), mode=mode)

    @walked
    async def utime(self, path: str, mtime_ns: int) -> None:
        await self.fs.metadata.set(await self.node(path), mtime_ns=mtime_ns, atime_ns=mtime_ns)

    @walked
    async def truncate(self, path: str, size: int) -> None:
        await self.fs.contents.truncate(await self.node(path), size)

    # -------------------------------------------------------------- content

    @walked
    async def create(self, path: str, mode: int = 0o644) -> int:
        """open(O_CREAT | O_EXCL | O_RDWR); a descriptor."""
        parent, name = await self._place(path)
        node = await self.fs.naming.create(parent, name, mode, self.creator)
        return self._hold(node, os.O_RDWR)

    @walked
    async def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        node = await self.node(path)
        contents = self.fs.contents
        if not flags & os.O_TRUNC:
            is_read_only = not flags & os.O_ACCMODE
            bring = contents.open_to_read if is_read_only else contents.open_to_write
            fd = await bring(node, flags)
            node.lookups += 1
            return fd
        fd = self._hold(node, flags & ~os.O_TRUNC)
        # The kernel opens first and truncates then.
        try:
            await contents.truncate(node, 0)
        except BaseException:
            await self.close(fd)
            raise
        return fd

    def _hold(self, node: Node, flags: int) -> int:
        fd = self.fs.contents.open(node, flags)
        # The kernel knows the inode of what is open.
        node.lookups += 1
        return fd

    async def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        await self.fs.contents.write(self.fs.contents.handle(fd), offset, data)

    async def pread(self, fd: int, length: int, offset: int) -> bytes:
        return await self.fs.contents.read(self.fs.contents.handle(fd), offset, length)

    async def read_all(self, fd: int) -> bytes:
        """All bytes of an open file, in pieces as the kernel asks for them."""
        size = self.fs.contents.handle(fd).file.node.size
        pieces = [await self.pread(fd, PIECE_BYTES, at) for at in range(0, size, PIECE_BYTES)]
        return b"".join(pieces)

    def size(self, fd: int) -> int:
        return self.fs.contents.handle(fd).file.node.size

    def blob_of(self, fd: int) -> str:
        """The blob that holds what is written to an open file; empty where it was not written."""
        blob = self.fs.contents.handle(fd).file.blob
        return "" if blob is None else blob.id

    async def ftruncate(self, fd: int, size: int) -> None:
        await self.fs.contents.truncate(self.fs.contents.handle(fd).file.node, size)

    async def fsync(self, fd: int) -> None:
        await self.fs.contents.fsync(self.fs.contents.handle(fd))

    async def close(self, fd: int) -> None:
        """close() of a program: flush, then release and forget by the kernel."""
        handle = self.fs.contents.handle(fd)
        inode = handle.file.node.inode
        try:
            await self.fs.contents.flush(handle)
            await self.fs.contents.wait_closed(handle)
        finally:
            self.fs.contents.release(fd)
            self.fs.state.nodes.forget(inode, 1)
        await trio.lowlevel.checkpoint()

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """What ``cp`` does: create or truncate, write in pieces, close."""
        if await self.exists(path):
            fd = await self.open(path, os.O_RDWR | os.O_TRUNC)
        else:
            fd = await self.create(path, mode)
        try:
            for at in range(0, len(data), PIECE_BYTES):
                await self.pwrite(fd, data[at : at + PIECE_BYTES], at)
        finally:
            await self.close(fd)

    async def change(self, path: str, data: bytes, offset: int) -> None:
        """open(O_RDWR), one pwrite, close."""
        fd = await self.open(path, os.O_RDWR)
        await self.pwrite(fd, data, offset)
        await self.close(fd)

    async def read(self, path: str) -> bytes:
        node = await self.node(path)
        if stat.S_ISLNK(node.attributes.mode):
            return await self.fs.metadata.link_target(node)
        fd = await self.open(path)
        try:
            return await self.read_all(fd)
        finally:
            await self.close(fd)

    # --------------------------------------------------------------- sending

    async def sync(self) -> None:
        """Wait until S3 has everything."""
        await self.fs.wait_uploaded()

    def pending(self) -> dict[str, str]:
        """What S3 does not have: operation and state by key."""
        return {
            key: f"{change.op} {change.state}"
            for key, change in self.spool.changes.items()
            if key != ".s3mount/"
        }

    def leftovers(self) -> list[str]:
        """What a mount with nothing open and nothing pending should not have."""
        spool = self.spool
        found = [f"pending {key}: {change}" for key, change in spool.changes.items()]
        found += [f"blob {blob_id} in memory" for blob_id in spool.live_blobs]
        found += [f"blob {blob_id} on disk" for blob_id in spool.blobs.ids()]
        found += [f"journalled upload {upload}" for upload in spool.journal.uploads()]
        if spool.used_bytes:
            found.append(f"{spool.used_bytes} bytes of the spool are accounted as used")
        queue = self.fs.uploader.queue
        if queue.sending_count:
            found.append(f"{queue.sending_count} changes count as being sent")
        found += [f"open file {file.node.name}" for file in self.fs.state.files.all()]
        return found

"""One bucket in memory, one state folder on disk, and the real file system between them, under virtual time.

No FUSE and no threads: operations are called as ``fuse.operations`` calls them, files are real,
S3 is ``MemoryStore``. ``Mount.kill`` ends a mount as SIGKILL does, at whatever point it is called.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import msgspec
import trio
import trio.testing

from s3mount.cache.reader import CacheReader
from s3mount.config import MountConfig, StoreConfig
from s3mount.errors import NetworkError, StoreError
from s3mount.refs import FileSlice, ObjectHeaders
from s3mount.s3.memory import Faults, MemoryStore
from s3mount.spool.spool import Spool
from s3mount.tree.names import name_of
from s3mount.tree.nodes import Node
from s3mount.vfs.filesystem import Filesystem
from s3mount.vfs.naming import Creator
from tests.sim.disk import Disk

KIB = 1 << 10
PART_BYTES = 4 * KIB
INLINE_BYTES_MAX = 2 * KIB
"""Larger bodies travel as slices of the spool's file; smaller ones are read at once."""
START_NS = 1_700_000_000_000_000_000

P = ParamSpec("P")
T = TypeVar("T")


def simulated(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test under a virtual clock that jumps when everybody sleeps."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        with small_requests():
            trio.run(functools.partial(test, *args, **kwargs), clock=clock)

    return run


@contextmanager
def small_requests() -> Iterator[None]:
    """Allow parts of a few KiB, so that a file of 20 KiB goes the way of one of 40 MiB."""
    with (
        mock.patch("s3mount.config.PART_BYTES_MIN", 1),
        mock.patch("s3mount.flow.parts.PART_BYTES_MIN", 1),
        mock.patch("s3mount.spool.sender.INLINE_BODY_BYTES_MAX", INLINE_BYTES_MAX),
    ):
        yield


@contextmanager
def small_blocks() -> Iterator[None]:
    """Checksums of blocks of a KiB, and contents known from the first byte on: files of 20 KiB have many."""
    with ExitStack() as stack:
        for module in ("spool.sums", "dedupe.reading", "vfs.known"):
            stack.enter_context(mock.patch(f"s3mount.{module}.BLOCK_SHIFT", 10))
            stack.enter_context(mock.patch(f"s3mount.{module}.BLOCK_BYTES", KIB))
        stack.enter_context(mock.patch("s3mount.spool.sums.CHUNK_BLOCKS", 4))
        stack.enter_context(mock.patch("s3mount.vfs.known.KNOWN_BYTES_MIN", 1))
        yield


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


async def inline(function: Callable[[], T], /) -> T:
    """A worker without threads, so that virtual time stands still while it works."""
    await trio.lowlevel.checkpoint()
    return function()


class VirtualClock:
    """Wall time that follows trio's clock; no two looks at it give the same."""

    def __init__(self) -> None:
        self._last_ns = 0

    def now_ns(self) -> int:
        self._last_ns = max(self._last_ns + 1000, START_NS + int(trio.current_time() * 1e9))
        return self._last_ns


class World:
    """What outlives a mount: the bucket (``s3`` looks at it without counting) and the folders.

    ``faults`` are those of S3 and may be exchanged at any time. ``requests`` counts what mounts asked of S3.
    With a ``disk`` the power may be cut. ``log_pages_max``: the journal's log is checkpointed so often.
    """

    def __init__(
        self,
        folder: Path,
        *,
        versioning: Any = "off",
        faults: Faults | None = None,
        opaque_etags: bool = False,
    ) -> None:
        self.folder = folder
        self.clock = VirtualClock()
        self.bucket = MemoryStore(
            clock=self.clock,
            versioning=versioning,
            part_bytes_min=1,
            opaque_etags=opaque_etags,
        )
        self.s3 = self.bucket.observer()
        self.faults = faults
        self.on_request: Callable[[str], None] = lambda text: None
        self.requests: Counter[str] = Counter()
        self.state = folder / "state-0"
        self.cache = folder / "cache"
        self.disk: Disk | None = None
        self.log_pages_max = 2000
        self.boot = 1
        self._lives = 0

    def next_state(self) -> Path:
        """A folder for the state that a killed mount leaves."""
        self._lives += 1
        return self.folder / f"state-{self._lives}"

    def die(self, *, is_power_cut: bool = False) -> None:
        """From now on the state folder is what a kill, or a power cut, leaves of it at this moment."""
        left = self.next_state()
        if self.disk is not None and is_power_cut:
            self.disk.cut_into(left)
            self.disk.begin(left, is_new=False)
            self.boot += 1
            self.cache = self.folder / f"cache-{self._lives}"
        else:
            shutil.copytree(self.state, left)
            if self.disk is not None:
                self.disk.follow(left)
        self.state = left

    async def foreign_put(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> str:
        """Somebody else writes; the ETag."""
        result = await self.s3.put(key, data, ObjectHeaders(metadata=dict(metadata or {})))
        return result.etag

    def put_now(self, key: str, data: bytes) -> bytes | None:
        """Somebody else writes, in no time; what was there before."""
        there = self.bucket.contents().get(key)
        bucket = self.bucket._bucket
        bucket.store(key, data, bucket.etag_of(data), ObjectHeaders())
        return there

    def contents(self) -> dict[str, bytes]:
        """All objects but the marker that keeps the top's own attributes."""
        return {key: data for key, data in self.bucket.contents().items() if key != ".s3mount/"}

    def files(self) -> dict[str, bytes]:
        """All objects but the markers of directories."""
        return {key: data for key, data in self.contents().items() if not key.endswith("/")}

    async def metadata(self, key: str) -> Mapping[str, str]:
        """User metadata of an object."""
        headers = (await self.s3.head(key)).headers
        assert headers is not None
        return headers.metadata

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """What was asked of S3 meanwhile, by operation; complete when the block ends."""
        before = Counter(self.requests)
        counted: Counter[str] = Counter()
        yield counted
        counted.update(Counter(self.requests) - before)

    @asynccontextmanager
    async def mounted(
        self,
        *,
        spool_bytes_max: int = 1 << 30,
        is_settled: bool = True,
        on_made: Callable[[Mount], None] = lambda mount: None,
        **settings: Any,
    ) -> AsyncIterator[Mount]:
        """A mount; at its end it stops at once, without sending what is pending.

        With ``is_settled`` the background tasks have all begun; ``on_made`` is told before any begins.
        """
        # State made by an earlier life must be readable by this one alone.
        config = MountConfig(
            store=StoreConfig(bucket="memory"),
            mountpoint="/mnt",
            state_dir=str(self.state),
            cache_dir=str(self.cache),
            **{"part_bytes": PART_BYTES, "uploads_max": 4, "uid": 7, "gid": 7, **settings},
        )
        is_new = not self.state.exists()
        self.state.mkdir(exist_ok=True)
        if self.disk is not None and is_new:
            self.disk.begin(self.state, is_new=True)
        self.cache.mkdir(exist_ok=True)
        store = _LifeStore(self)
        with mock.patch("s3mount.spool.forcing.boot_id", return_value=f"boot {self.boot}"):
            spool = Spool.open(self.state, size_bytes_max=spool_bytes_max, offload=inline)
        spool.journal._database.execute(f"PRAGMA wal_autocheckpoint={self.log_pages_max}")
        try:
            async with trio.open_nursery() as nursery:
                reader = CacheReader(
                    store,
                    self.cache,
                    namespace="memory",
                    size_bytes_max=1 << 30,
                    prefetch_bytes_max=1 << 20,
                    clock=self.clock,
                    worker=inline,
                )
                await nursery.start(reader.run)
                fs = Filesystem(
                    config=config,
                    store=store,
                    spool=spool,
                    reader=reader,
                    clock=self.clock,
                    memory_path=self.cache / "attributes.sqlite",
                )
                keeps_deleted = self.bucket._bucket.versioning == "enabled"
                fs.uploader.sender.deletions.keeps_deleted = keeps_deleted
                mount = Mount(self, fs, store, nursery.cancel_scope)
                on_made(mount)
                await nursery.start(fs.run)
                if is_settled:
                    await trio.testing.wait_all_tasks_blocked()
                yield mount
                nursery.cancel_scope.cancel()
        finally:
            spool.close()


class _LifeStore(MemoryStore):
    """The bucket as one mount sees it: with the world's faults, and dead when the mount is."""

    def __init__(self, world: World) -> None:
        super().__init__("memory", part_bytes_min=1, faults=_LifeFaults(self, world))
        self._bucket = world.bucket._bucket
        self.is_dead = False


class _LifeFaults:
    def __init__(self, store: _LifeStore, world: World) -> None:
        self._store = store
        self._world = world

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        self._world.requests[operation] += 1
        self._world.on_request(f"{operation} {_brief(arguments)}")
        if self._world.faults is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._world.faults.before(operation, arguments)
        self._stop_the_dead()

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        try:
            if self._world.faults is not None:
                await self._world.faults.after(operation, arguments)
        except StoreError:
            self._world.on_request(f"{operation} {_brief(arguments)}: done, answer lost")
            raise
        self._world.on_request(f"{operation} {_brief(arguments)}: done")
        self._stop_the_dead()

    def _stop_the_dead(self) -> None:
        if self._store.is_dead:
            raise NetworkError("this mount was killed")


def _brief(arguments: Mapping[str, object]) -> str:
    """The arguments of a request in one short line."""
    shown = []
    for name in (
        "key",
        "prefix",
        "number",
        "byte_range",
        "condition",
        "if_match",
        "source",
        "body",
    ):
        value = arguments.get(name)
        if isinstance(value, bytes):
            value = f"{len(value)} bytes"
        elif isinstance(value, FileSlice):
            value = f"{value.length} bytes at {value.offset} of {Path(value.path).name}"
        if value is not None:
            shown.append(f"{name}={value}")
    return " ".join(shown)


class Mount:
    """The file system as programs use it: by paths and descriptors. Errors are OSError and S3MountError."""

    def __init__(
        self, world: World, fs: Filesystem, store: _LifeStore, scope: trio.CancelScope
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
            node = await self.fs.directories.lookup(node, name_of(name.encode()))
            if node is None:
                return None
            await self.fs.directories.know_attributes_of(node)
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
        self.fs.contents.walks.names_read(node, names)
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
        fd = self._hold(node, flags & ~os.O_TRUNC)
        if flags & os.O_TRUNC:
            # The kernel opens first and truncates then.
            try:
                await self.fs.contents.truncate(node, 0)
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
        pieces = [await self.pread(fd, 3 * KIB, at) for at in range(0, size, 3 * KIB)]
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
            self.fs.contents.flush(handle)
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
            for at in range(0, len(data), 3 * KIB):
                await self.pwrite(fd, data[at : at + 3 * KIB], at)
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
        found += [f"open file {file.node.name}" for file in self.fs.contents.open_files()]
        return found


def describe(value: msgspec.Struct) -> dict[str, object]:
    """A struct as a dictionary, for messages of failed tests."""
    return msgspec.structs.asdict(value)

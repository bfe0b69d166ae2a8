"""One bucket in memory, one state folder on disk, and the real file system between them, under virtual time.

No FUSE and no threads: operations are called as ``fuse.operations`` calls them, files are real,
S3 is ``MemoryStore``. ``Mount.kill`` ends a mount as SIGKILL does, at whatever point it is called.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import trio
import trio.testing

from s3mount.cache.reader import CacheReader
from s3mount.config import MountConfig, StoreConfig
from s3mount.errors import NetworkError, StoreError
from s3mount.pack import index
from s3mount.pack.entry import INDEX_NAME, Entry
from s3mount.pack.finding import Loaded, Pack, alive
from s3mount.pack.store import PackedStore
from s3mount.refs import FileSlice, Key, ObjectHeaders, ObjectInfo
from s3mount.s3.store import Store
from s3mount.spool.journal.recover_blob import data_ranges
from s3mount.spool.spool import Spool
from s3mount.spool.step import Step
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.testing.memory_store import Faults, MemoryStore
from s3mount.vfs.filesystem import Filesystem
from s3mount.vfs.listing.refreshing import no_kernel
from s3mount.vfs.view import ForgetEntry
from tests.sim.disk import Disk
from tests.sim.mount import Mount

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
        mock.patch("s3mount.spool.upload.sender.INLINE_BODY_BYTES_MAX", INLINE_BYTES_MAX),
    ):
        yield


@contextmanager
def small_steps() -> Iterator[None]:
    """A folder of any size is moved in slices, of two files each, and others go on after each."""
    subtree = "s3mount.vfs.namespace.subtree"
    with ExitStack() as stack:
        stack.enter_context(mock.patch(f"{subtree}.AHEAD_MIN", 0))
        stack.enter_context(mock.patch(f"{subtree}.PLANNED_AT_ONCE", 2))
        stack.enter_context(mock.patch(f"{subtree}.LATE_MAX", 1))
        stack.enter_context(mock.patch("s3mount.spool.journal.journal.SETTLED_AT_ONCE", 2))
        stack.enter_context(mock.patch("s3mount.spool.step.SETTLED_AT_ONCE", 2))
        stack.enter_context(mock.patch("s3mount.slices.SLICE_S", 0.0))
        stack.enter_context(mock.patch.object(Step, "outdated", _outdated_of_all))
        yield


def _outdated_of_all(step: Step) -> list[Key]:
    """``Step.outdated`` as looking at every key tells it: it must have been told of each."""
    told = [key for key in step._ahead.altered if key in step._there and step._is_outdated(key)]
    assert set(told) == {key for key in step._there if step._is_outdated(key)}
    return told


@contextmanager
def small_blocks() -> Iterator[None]:
    """Checksums of blocks of a KiB, and contents known from the first byte on: files of 20 KiB have many."""
    with ExitStack() as stack:
        for module in (
            "spool.blobs.block_checksums",
            "dedupe.read_checksums",
            "vfs.uploads.dedupe",
        ):
            stack.enter_context(mock.patch(f"s3mount.{module}.BLOCK_SHIFT", 10))
            stack.enter_context(mock.patch(f"s3mount.{module}.BLOCK_BYTES", KIB))
        stack.enter_context(mock.patch("s3mount.spool.blobs.block_checksums.CHUNK_BLOCKS", 4))
        stack.enter_context(mock.patch("s3mount.vfs.uploads.dedupe.KNOWN_BYTES_MIN", 1))
        yield


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


def copy_with_holes(source: str, target: str) -> None:
    """As ``shutil.copy2``; what is a hole stays one."""
    with open(source, "rb") as old, open(target, "wb") as new:
        for start, stop in data_ranges(old.fileno()):
            os.pwrite(new.fileno(), os.pread(old.fileno(), stop - start, start), start)
        new.truncate(os.fstat(old.fileno()).st_size)
    shutil.copystat(source, target)


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
        copy_gap_s: float = 0.0,
        loses_tags: bool = False,
        pack_below: int = 0,
    ) -> None:
        self.folder = folder
        self.pack_below = pack_below
        self.clock = VirtualClock()
        self.bucket = MemoryStore(
            clock=self.clock,
            versioning=versioning,
            part_bytes_min=1,
            opaque_etags=opaque_etags,
            copy_gap_s=copy_gap_s,
            loses_tags=loses_tags,
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
        self._supervisor = 0

    def next_state(self) -> Path:
        """A folder for the state that a killed mount leaves."""
        self._supervisor += 1
        return self.folder / f"state-{self._supervisor}"

    def die(self, *, is_power_cut: bool = False) -> None:
        """From now on the state folder is what a kill, or a power cut, leaves of it at this moment."""
        left = self.next_state()
        if self.disk is not None and is_power_cut:
            self.disk.cut_into(left)
            self.disk.begin(left, is_new=False)
            self.boot += 1
            self.cache = self.folder / f"cache-{self._supervisor}"
        else:
            shutil.copytree(self.state, left, copy_function=copy_with_holes)
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
        there = self.contents().get(key)
        bucket = self.bucket._bucket
        bucket.store(key, data, bucket.etag_of(data), ObjectHeaders())
        return there

    def contents(self) -> dict[str, bytes]:
        """All objects but the marker that keeps the top's own attributes; of packs what is in them."""
        there = self.bucket.contents()
        if self.pack_below:
            there = {key: body for key, (body, _) in packed(there).items()} | there
        return {key: data for key, data in there.items() if key != ".s3mount/" and not is_pack(key)}

    def files(self) -> dict[str, bytes]:
        """All objects but the markers of directories."""
        return {key: data for key, data in self.contents().items() if not key.endswith("/")}

    async def metadata(self, key: str) -> Mapping[str, str]:
        """User metadata of an object, or of a member of a pack."""
        if self.pack_below and key not in self.bucket.contents():
            return packed(self.bucket.contents())[key][1].metadata or {}
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
        forget_entry: ForgetEntry = no_kernel,
        kernel_keeps_mtime: bool = False,
        **settings: Any,
    ) -> AsyncIterator[Mount]:
        """A mount; at its end it stops at once, without sending what is pending.

        With ``is_settled`` the background tasks have all begun; ``on_made`` is told before any begins.
        """
        # State made by an earlier life must be readable by this one alone.
        config = MountConfig(
            mountpoint="/mnt",
            state_dir=str(self.state),
            cache_dir=str(self.cache),
            **{
                "store": StoreConfig(bucket="memory"),
                "part_bytes": PART_BYTES,
                "uploads_max": 4,
                "uid": 7,
                "gid": 7,
                **settings,
            },
        )
        is_there = False
        is_new = not self.state.exists()
        self.state.mkdir(exist_ok=True)
        if self.disk is not None and is_new:
            self.disk.begin(self.state, is_new=True)
        self.cache.mkdir(exist_ok=True)
        life = LifeStore(self)
        store: Store = life
        packs = None
        if self.pack_below:
            store = packs = PackedStore(
                life, "memory", "", ttl_s=1.0, below=self.pack_below, clock=self.clock
            )
        with mock.patch(
            "s3mount.spool.journal.durability.boot_id", return_value=f"boot {self.boot}"
        ):
            spool = Spool.open(self.state, size_bytes_max=spool_bytes_max, offload=inline)
        spool.journal._database.execute(f"PRAGMA wal_autocheckpoint={self.log_pages_max}")
        try:
            async with trio.open_nursery() as nursery:
                if packs is not None:
                    await nursery.start(packs.run)
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
                    capabilities=KnownCapabilities(
                        keeps_deleted=self.bucket._bucket.versioning == "enabled"
                    ),
                    forget_entry=forget_entry,
                    kernel_keeps_mtime=kernel_keeps_mtime,
                    clock=self.clock,
                    memory_path=self.cache / "attributes.sqlite",
                )
                mount = Mount(self, fs, life, nursery.cancel_scope)
                on_made(mount)
                await nursery.start(fs.run)
                if is_settled:
                    await trio.testing.wait_all_tasks_blocked()
                is_there = True
                yield mount
                nursery.cancel_scope.cancel()
        finally:
            spool.close()
        if not is_there:
            raise Killed


def is_pack(key: str) -> bool:
    """Is it a pack, or the index of one?"""
    return key.endswith((".tar", ".tar.idx"))


def packed(objects: Mapping[str, bytes]) -> dict[str, tuple[bytes, Entry]]:
    """What the packs among ``objects`` say: of each key that is alive its bytes and its entry.

    Where there is no index yet that in the tar file counts, as any reader of tar files finds it.
    """
    packs = []
    for key, data in objects.items():
        if not key.endswith(".tar"):
            continue
        beside = objects.get(f"{key}.idx")
        if beside is None:
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                member = tar.extractfile(INDEX_NAME)
                assert member is not None
                beside = member.read()
        info = ObjectInfo(key, len(data), "", 0)
        packs.append(Loaded(Pack(info, None), index.decode(beside, key, len(data))))
    found = {}
    for each in alive(packs):
        data = objects[each.loaded.pack.tar.key]
        body = data[each.entry.body : each.entry.body + each.entry.size]
        assert hashlib.sha256(body).hexdigest() == each.entry.sha256
        found[each.key] = (body, each.entry)
    return found


class Killed(BaseException):
    """The mount was killed before it was there."""


class LifeStore(MemoryStore):
    """The bucket as one mount sees it: with the world's faults, and dead when the mount is."""

    def __init__(self, world: World) -> None:
        super().__init__("memory", part_bytes_min=1, faults=_LifeFaults(self, world))
        self._bucket = world.bucket._bucket
        self.copy_gap_s = world.bucket.copy_gap_s
        self.loses_tags = world.bucket.loses_tags
        self.is_dead = False


class _LifeFaults:
    def __init__(self, store: LifeStore, world: World) -> None:
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

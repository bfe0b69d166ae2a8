"""A bucket whose requests are recorded, take (virtual) time and can go wrong, for the cache's tests."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import trio
import trio.testing

from s3mount.cache.blocks import page_rounded
from s3mount.cache.maintenance import Worker
from s3mount.cache.reader import CacheReader, ReadHandle
from s3mount.errors import StoreError
from s3mount.refs import (
    ByteRange,
    ContentRef,
    ETag,
    FileSlice,
    Key,
    ObjectHeaders,
    ObjectInfo,
    VersionId,
)
from s3mount.testing.memory_bodies import write_slice
from s3mount.testing.memory_store import MemoryStore

KIB = 1 << 10
MIB = 1 << 20
PIECE_BYTES = 256 * KIB
METADATA_BYTES = 64 * KIB
"""What a file system may add to the bytes of a file with holes."""
T = TypeVar("T")
P = ParamSpec("P")


def simulated(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test under a virtual clock that jumps when everybody sleeps."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(functools.partial(test, *args, **kwargs), clock=clock)

    return run


async def inline(function: Callable[[], T], /) -> T:
    """A worker without threads, so that virtual time stands still while it works."""
    await trio.lowlevel.checkpoint()
    return function()


async def unhurried(function: Callable[[], T], /) -> T:
    """A worker as slow as a thread on a busy machine: much happens before and after the work."""
    await trio.sleep(0.02)
    result = function()
    await trio.sleep(0.01)
    return result


class Request(NamedTuple):
    """A GET that was sent; ``length`` is 0 for a whole object."""

    operation: str
    key: Key
    start: int
    length: int
    if_match: ETag | None
    version_id: VersionId | None


class SlowStore(MemoryStore):
    """Answers after ``latency_s`` and then at ``bytes_per_s`` per request; ``fail`` may raise."""

    def __init__(self, *, latency_s: float = 0.02, bytes_per_s: float = 100e6) -> None:
        super().__init__()
        self.latency_s = latency_s
        self.bytes_per_s = bytes_per_s
        self.report_delay_s = 0.0
        self.log: list[Request] = []
        self.fail: Callable[[Request], StoreError | None] = lambda request: None
        self.running = 0
        self.running_max = 0

    def add(self, key: Key, size: int, seed: int = 0) -> tuple[ContentRef, bytes]:
        """Put an object of random bytes (which repeat, but never at a distance of whole blocks)."""
        some = random.Random(f"{key}{seed}").randbytes(min(size, 1_000_003))
        return self.put_now(key, (some * (size // 1_000_003 + 1))[:size])

    def put_now(self, key: Key, data: bytes) -> tuple[ContentRef, bytes]:
        """Put an object at once."""
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        result = self._bucket.store(key, data, etag, ObjectHeaders())
        return ContentRef(key, result.etag, len(data), result.version_id), data

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Start and length of all requests so far."""
        return [(request.start, request.length) for request in self.log]

    async def get(
        self,
        key: Key,
        *,
        byte_range: ByteRange | None = None,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
    ) -> tuple[ObjectInfo, bytes]:
        start, length = (byte_range.start, byte_range.length) if byte_range else (0, 0)
        request = Request("get", key, start, length, if_match, version_id)
        await self._travel(request)
        return await super().get(
            key, byte_range=byte_range, version_id=version_id, if_match=if_match
        )

    async def fetch(
        self,
        key: Key,
        byte_range: ByteRange,
        sink: FileSlice,
        *,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> ObjectInfo:
        request = Request("fetch", key, byte_range.start, byte_range.length, if_match, version_id)
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            await self._travel(request)
            info, data = self._read(key, byte_range, version_id, if_match)
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                await trio.sleep(len(piece) / self.bytes_per_s)
                write_slice(sink, start, piece)
                await trio.sleep(self.report_delay_s)
                if on_progress is not None:
                    on_progress(start + len(piece))
        finally:
            self.running -= 1
        return info

    async def _travel(self, request: Request) -> None:
        self.log.append(request)
        await trio.sleep(self.latency_s)
        error = self.fail(request)
        if error is not None:
            raise error


class running:
    """A reader that runs: ``async with running(store, folder) as reader``."""

    def __init__(
        self,
        store: MemoryStore,
        folder: Path,
        *,
        size_bytes_max: int = 256 * MIB,
        prefetch_bytes_max: int = 256 * MIB,
        free_bytes_min: int = 0,
        worker: Worker = inline,
    ) -> None:
        self.reader = CacheReader(
            store,
            folder,
            namespace="bucket",
            size_bytes_max=size_bytes_max,
            prefetch_bytes_max=prefetch_bytes_max,
            free_bytes_min=free_bytes_min,
            worker=worker,
        )
        self._scope = trio.CancelScope()
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> CacheReader:
        nursery = await self._manager.__aenter__()
        self._scope = nursery.cancel_scope
        await nursery.start(self.reader.run)
        return self.reader

    def kill(self) -> None:
        """What the reader has not saved by now never will be, as after SIGKILL."""
        maintenance = self.reader._maintenance
        for catalog in (maintenance._writer, maintenance.disk_cache.catalog):
            if catalog is not None:
                catalog.close()
        maintenance._writer = maintenance.disk_cache.catalog = None

    async def __aexit__(self, *exc_info: object) -> None:
        self._scope.cancel()
        await self._manager.__aexit__(None, None, None)


async def read_all(handle: ReadHandle, step: int = 128 * KIB) -> bytes:
    """Read from the start to the end, as ``cat`` does."""
    pieces = []
    offset = 0
    while piece := await handle.read(offset, step):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def disk_bytes(folder: Path) -> int:
    """What the cache's data files and the contents in its catalog take on disk."""
    in_rows = sum(page_rounded(len(body)) for body in bodies(folder).values())
    return in_rows + sum(path.stat().st_blocks * 512 for path in data_files(folder))


def bodies(folder: Path) -> dict[str, bytes]:
    """The contents that lie in the catalog, by the names of their rows."""
    with database_of(folder) as database:
        found = database.execute("SELECT file, body FROM body").fetchall()
    return dict(found)


@contextlib.contextmanager
def database_of(folder: Path) -> Iterator[sqlite3.Connection]:
    """The catalog's database, by a connection of its own; what is done with it is committed."""
    database = sqlite3.connect(folder / "bucket" / "catalog.sqlite")
    try:
        with database:
            yield database
    finally:
        database.close()


def data_files(folder: Path) -> list[Path]:
    """The cache's data files."""
    return [path for path in folder.glob("bucket/blocks/*/*") if path.is_file()]

"""A past without the kernel: what is asked of S3, in which order, and what becomes of refusals."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from s3mount.errors import NetworkError, NoSuchKeyError, StoreError
from s3mount.manifest.catalog import Catalog
from s3mount.manifest.compiling import compile_entries
from s3mount.manifest.model import Entry
from s3mount.tree.snapshot import Defaults, SnapshotTree
from s3mount.vfs.buckets import Access, OneBucket
from s3mount.vfs.snapshots.snapshot import SnapshotView
from tests.unit.cache.stores import Request, SlowStore, running, simulated

TOP = 1


@asynccontextmanager
async def opened(
    store: SlowStore, entries: list[Entry], folder: Path
) -> AsyncIterator[SnapshotView]:
    compile_entries(entries, folder / "catalog.sqlite", lambda lines: None)
    catalog = Catalog(folder / "catalog.sqlite")
    tree = SnapshotTree(catalog, Defaults(0o644, 0o755, 0, 0, 0))
    async with running(store, folder / "cache") as reader:
        files = SnapshotView(tree, OneBucket(Access(store, reader)), top_inode=TOP)
        yield files
        files.close()
    catalog.close()


def versions(
    store: SlowStore, count: int, *, sized: bool = True
) -> tuple[list[Entry], list[bytes]]:
    entries, bodies = [], []
    for number in range(count):
        size = 0 if number % 10 == 9 else 1000 + number
        ref, body = store.add(f"{number // 50}/{number % 50:02d}", size)
        bodies.append(body)
        store.put_now(ref.key, b"written later")
        known = (ref.size, ref.etag) if sized else (None, "")
        entries.append(Entry("b", ref.key, ref.version_id, *known))
    return entries, bodies


async def inode_of(files: SnapshotView, path: str) -> int:
    inode = TOP
    for name in path.split("/"):
        found = await files.lookup(inode, name)
        assert found is not None
        inode = found.inode
    return inode


async def read(files: SnapshotView, path: str) -> bytes:
    handle = await files.open(await inode_of(files, path))
    try:
        return await files.read(handle, 0, 1 << 20)
    finally:
        files.release(handle)


@simulated
async def test_file_after_file_comes_ahead(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.02)
    store.set_versioning("enabled")
    entries, bodies = versions(store, 200)
    async with opened(store, entries, tmp_path) as files:
        began_s = trio.current_time()
        for entry, body in zip(entries, bodies, strict=True):
            assert await read(files, entry.key) == body
        # One after another they would take 180 round trips; nothing is fetched twice.
        assert trio.current_time() - began_s < 40 * 0.02
        assert len(store.log) == 180
        assert all(request.version_id is not None for request in store.log)
        assert files.readahead._held_bytes == 0


@simulated
async def test_nothing_is_guessed_where_nobody_walks(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.02)
    store.set_versioning("enabled")
    entries, bodies = versions(store, 200)
    async with opened(store, entries, tmp_path) as files:
        order = list(range(200))
        random.Random(3).shuffle(order)
        for number in order[:100]:
            assert await read(files, entries[number].key) == bodies[number]
        assert files.readahead.asked <= 15


@simulated
async def test_a_walk_over_missing_versions_goes_on(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.02)
    store.set_versioning("enabled")
    entries, bodies = versions(store, 60)

    def fail(request: Request) -> StoreError | None:
        is_gone = int(request.key[-2:]) % 3 == 0
        return NoSuchKeyError("gone", status=404, code="NoSuchVersion") if is_gone else None

    store.fail = fail
    async with opened(store, entries, tmp_path) as files:
        missing = 0
        for entry, body in zip(entries, bodies, strict=True):
            if int(entry.key[-2:]) % 3 == 0 and body:
                with pytest.raises(OSError) as caught:  # noqa: PT011  the number is looked at
                    await read(files, entry.key)
                assert caught.value.errno == errno.EIO
                missing += 1
            else:
                assert await read(files, entry.key) == body
        told = files.missing_versions.status()
        assert told["files"] == missing
        assert told["list"][0]["why"] == "gone (404 NoSuchVersion)"


@simulated
async def test_sizes_are_asked_for_in_batches(tmp_path: Path) -> None:
    store = SlowStore()
    store.set_versioning("enabled")
    entries, _ = versions(store, 100, sized=False)
    async with opened(store, entries, tmp_path) as files:
        folder = await inode_of(files, "0")
        shown = await files.page(folder, "")
        assert [each.size for _, each in shown if each is not None] == [
            0 if number % 10 == 9 else 1000 + number for number in range(50)
        ]
        assert store.requests == {"head": 50}
        # One by one they are asked for alone at first, then with those behind them.
        other = await inode_of(files, "1")
        for number in range(4):
            await files.lookup(other, f"{number:02d}")
        assert store.requests == {"head": 100}


@simulated
async def test_an_outage_is_not_taken_for_a_missing_version(tmp_path: Path) -> None:
    store = SlowStore()
    store.set_versioning("enabled")
    entries, bodies = versions(store, 3)
    store.fail = lambda request: NetworkError("no route")
    async with opened(store, entries, tmp_path) as files:
        with pytest.raises(NetworkError):
            await read(files, "0/00")
        assert files.missing_versions.status()["files"] == 0
        store.fail = lambda request: None
        assert await read(files, "0/00") == bodies[0]

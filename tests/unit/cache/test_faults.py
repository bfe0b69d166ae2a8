"""Whatever goes wrong in the cache, at whichever step: reads go on past it, with the right bytes."""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from s3mount.cache.blocks import BlockMap
from s3mount.cache.cache_catalog import CacheCatalog
from s3mount.cache.disk_cache import DiskCache
from s3mount.cache.entry import Entry
from s3mount.cache.eviction import Evictor
from s3mount.cache.folder import CacheFolder
from s3mount.cache.maintenance import CacheMaintenance
from s3mount.cache.quota import Quota
from s3mount.cache.reader import CacheReader
from s3mount.refs import ContentRef
from tests.unit.cache.stores import KIB, MIB, SlowStore, read_all, running, simulated

KINDS: tuple[Callable[[], Exception], ...] = (
    lambda: OSError(errno.ENOSPC, "thrown by the test"),
    lambda: OSError(errno.EIO, "thrown by the test"),
    lambda: sqlite3.OperationalError("thrown by the test"),
    lambda: AssertionError("thrown by the test"),
    lambda: KeyError("thrown by the test"),
)
NETS = {"give_up", "disk_failed", "find", "adopt", "_conclude", "usable", "total_bytes", "_account"}
"""What catches the faults of the others, what all of them count by, and values that are no step."""
SIZES = (10, 3000, 40 * KIB, 1200 * KIB, 2 * MIB)
Shown = dict[str, tuple[ContentRef, bytes]]


@simulated
async def test_a_content_that_could_not_be_saved_again_is_made_shorter_all_the_same(
    tmp_path: Path,
) -> None:
    """Its row is known from an earlier save, though no later one went well: the disk was full."""
    store = SlowStore()
    ref, data = store.add("open", 3 * MIB)
    async with running(store, tmp_path, size_bytes_max=4 * MIB) as reader:
        handle = reader.open(ref)
        assert await read_all(handle) == data
        await trio.sleep(1)
        entry = reader._disk_cache.active(ref)
        assert entry is not None
        assert entry.row_digest is not None
        reader._disk_cache.make_private(entry)
        other, more = store.add("other", 3 * MIB)
        second = reader.open(other)
        assert await read_all(second) == more
        await trio.sleep(5)
        assert reader.statistics()["cache_evicted_bytes"]
        assert await read_all(handle) == data


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def steps_of(kind: type) -> list[str]:
    return [
        name
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and not name.startswith("__") and name not in NETS
    ]


async def use(reader: CacheReader, contents: Shown, folder: Path) -> None:
    """Two programs at once read everything, in two orders; small and large, ahead and not; some is taken over."""

    async def program(names: list[str]) -> None:
        for name in names:
            ref, data = contents[name]
            prefetched = reader.prefetch(ref, lambda prefetched: None)
            handle = reader.open(ref)
            assert await read_all(handle) == data, name
            middle = ref.size // 2
            assert await handle.read(middle, 100) == data[middle : middle + 100], name
            handle.close()
            if prefetched is not None:
                prefetched.close()
            await trio.sleep(0.3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(program, list(contents))
        nursery.start_soon(program, list(reversed(contents)))
    ref, data = contents["taken over"]
    path = folder / "blob"
    path.write_bytes(data)
    assert reader.adopt(ref, path) == (not path.exists())
    assert isinstance(reader.is_whole(ref), bool)
    await trio.sleep(1)


def contents_of(store: SlowStore) -> Shown:
    return {
        **{f"f{size}": store.add(f"f{size}", size) for size in SIZES},
        "taken over": store.add("taken over", 100 * KIB),
    }


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "always"])
@pytest.mark.parametrize(
    "kind",
    [BlockMap, CacheCatalog, CacheFolder, Entry, Evictor, Quota, DiskCache, CacheMaintenance],
)
def test_reads_go_on_past_a_cache_in_which_a_step_fails(
    kind: type, lasts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those after it."""
    passed = 0

    async def run(folder: Path, name: str, error: Callable[[], Exception]) -> None:
        nonlocal passed
        store = SlowStore()
        contents = contents_of(store)
        folder.mkdir()
        function = getattr(kind, name)
        armed, hits = False, 0

        @functools.wraps(function)
        def fails(*args: Any, **kwargs: Any) -> Any:
            nonlocal hits
            if armed and (lasts or not hits):
                hits += 1
                raise error()
            return function(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(kind, name, fails)
            async with running(store, folder, size_bytes_max=3 * MIB) as reader:
                if not lasts:
                    await use(reader, contents, folder)
                armed = True
                with trio.fail_after(1000):
                    await use(reader, contents, folder)
                armed = False
                await trio.sleep(100)
                await use(reader, contents, folder)
            passed += bool(hits)

    for number, name in enumerate(steps_of(kind)):
        error = KINDS[number % len(KINDS)]
        simulated(run)(tmp_path / name, name, error)
    assert passed

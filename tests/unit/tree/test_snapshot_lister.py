"""A bucket's past, listed as somebody looks, is what its writer knows of it."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.clock import ManualClock
from s3mount.errors import ServerFaultError
from s3mount.manifest.catalog import FILE, IMPLIED, MARKED, ROOT, Catalog, Listed
from s3mount.refs import Key, ObjectHeaders
from s3mount.testing.memory_store import MemoryStore, NoFaults
from s3mount.tree import snapshot_lister as module
from s3mount.tree.snapshot import Defaults, SnapshotTree
from s3mount.tree.snapshot_lister import SnapshotLister


class Written(NamedTuple):
    """What a writer did: ``size`` -1 is a deletion."""

    at_ns: int
    key: Key
    size: int


async def write(
    store: MemoryStore, clock: ManualClock, what: list[tuple[Key, int]]
) -> list[Written]:
    """Put and delete, a moment after each other; what was done when."""
    done = []
    for key, size in what:
        if size < 0:
            await store.delete(key)
        else:
            await store.put(key, b"x" * size, ObjectHeaders())
        done.append(Written(clock.now_ns(), key, size))
        clock.advance(0.01)
    return done


def expected(done: list[Written], at_ns: int) -> tuple[dict[str, int], set[str]]:
    """Files with their sizes and directories, as paths, by what was written until then."""
    last: dict[Key, int] = {}
    for each in done:
        if each.at_ns <= at_ns:
            last[each.key] = each.size
    keys = {key: size for key, size in last.items() if size >= 0}
    directories = set()
    for key in keys:
        parts = key.split("/")
        directories |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    return {
        key: size for key, size in keys.items() if not key.endswith("/") and key not in directories
    }, directories


async def walk(lister: SnapshotLister, tree: SnapshotTree) -> tuple[dict[str, int], set[str]]:
    """What listing everything finds."""
    files: dict[str, int] = {}
    directories: set[str] = set()
    todo = [(tree.top, "")]
    while todo:
        number, path = todo.pop()
        await lister.list(number)
        for row in tree.catalog.page(number, "", 10_000):
            if row.kind == FILE:
                assert row.size is not None
                files[path + row.name] = row.size
            else:
                directories.add(path + row.name)
                todo.append((row.number, f"{path}{row.name}/"))
    return files, directories


def opened(folder: Path, store: MemoryStore, at_ns: int) -> tuple[SnapshotLister, SnapshotTree]:
    catalog = Catalog(folder / f"{at_ns}.sqlite")
    catalog.add(ROOT, [Listed("memory", IMPLIED)])
    tree = SnapshotTree(catalog, Defaults(0o644, 0o755, 0, 0, at_ns))
    return SnapshotLister(store, tree, at_ns), tree


KEYS = st.sampled_from(
    [
        "a",
        "b",
        "a/x",
        "a/y/z",
        "a/y/",
        "d/",
        "d/e/f",
        "d/e/g",
        "a-b",
        "a.b/c",
        "é/ü",
        "d",
        "z/1",
        "z/2",
    ]
)
WHAT = st.lists(st.tuples(KEYS, st.integers(-1, 3)), max_size=60)


@settings(max_examples=60)
@given(WHAT, st.lists(st.integers(0, 60), min_size=1, max_size=3), st.integers(1, 7))
def test_every_time_shows_what_was_there(
    what: list[tuple[Key, int]], moments: list[int], page: int
) -> None:
    async def check() -> None:
        clock = ManualClock()
        begun_ns = clock.now_ns()
        store = MemoryStore(versioning="enabled", clock=clock)
        done = await write(store, clock, what)
        for number, moment in enumerate(moments):
            at_ns = begun_ns + moment * 10_000_000 + 5_000_000
            place = Path(folder) / str(number)
            place.mkdir()
            lister, tree = opened(place, store, at_ns)
            files, directories = expected(done, at_ns)
            for path in random.Random(page).sample(sorted(files), len(files) // 2):
                assert await found(lister, tree, path) == files[path]
            assert await found(lister, tree, "missing") is None
            assert await walk(lister, tree) == (files, directories)
            tree.catalog.close()

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAGE_KEYS", page)
        patch.setattr(module, "FEW_KEYS", max(1, page // 2))
        patch.setattr(module, "MANY_PREFIXES", 1)
        trio.run(check)


async def found(lister: SnapshotLister, tree: SnapshotTree, path: str) -> int | None:
    """The size of one file, looked up by its path alone; ``None``: there is none."""
    number, size = tree.top, None
    for name in path.split("/"):
        await lister.find(number, name)
        row = tree.catalog.child(number, name)
        if row is None:
            return None
        number, size = row.number, row.size
    return size


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**arguments: object) -> None:
        trio.run(functools.partial(test, **arguments))

    return run


@in_trio
async def test_a_small_bucket_costs_one_request(tmp_path: Path) -> None:
    store = MemoryStore(versioning="enabled")
    for number in range(100):
        await store.put(f"{number % 10}/{number}", b"", ObjectHeaders())
    store.requests.clear()
    lister, tree = opened(tmp_path, store, 1 << 62)
    files, directories = await walk(lister, tree)
    assert (len(files), len(directories)) == (100, 10)
    assert store.requests == {"list_versions": 1}
    tree.catalog.close()


@in_trio
async def test_a_name_in_a_large_directory_does_not_list_it(tmp_path: Path) -> None:
    store = MemoryStore(versioning="enabled")
    for number in range(3000):
        await store.put(f"large/{number:04d}", b"x", ObjectHeaders())
    lister, tree = opened(tmp_path, store, 1 << 62)
    store.requests.clear()
    assert await found(lister, tree, "large/2999") == 1
    assert await found(lister, tree, "large/2998") == 1
    assert store.requests["list_versions"] <= 10
    tree.catalog.close()


@in_trio
async def test_an_interrupted_listing_is_done_again(tmp_path: Path) -> None:
    store = MemoryStore(versioning="enabled")
    for number in range(2500):
        await store.put(f"{number:04d}", b"x", ObjectHeaders())
    lister, tree = opened(tmp_path, store, 1 << 62)

    class Third(NoFaults):
        count = 0

        async def before(self, operation: str, arguments: object) -> None:
            self.count += 1
            await trio.lowlevel.checkpoint()
            if self.count == 3:
                raise ServerFaultError("not now")

    store.faults = Third()
    with pytest.raises(ServerFaultError):
        await lister.list(tree.top)
    assert not tree.catalog.is_listed(tree.top)
    assert len((await walk(lister, tree))[0]) == 2500
    tree.catalog.close()


@in_trio
async def test_who_comes_second_waits_for_the_first(tmp_path: Path) -> None:
    store = MemoryStore(versioning="enabled")
    await store.put("a", b"x", ObjectHeaders())
    lister, tree = opened(tmp_path, store, 1 << 62)
    store.requests.clear()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(lister.list, tree.top)
    assert store.requests == {"list_versions": 1}
    tree.catalog.close()


@in_trio
async def test_a_marker_tells_of_its_directory(tmp_path: Path) -> None:
    store = MemoryStore(versioning="enabled")
    await store.put("d/", b"", ObjectHeaders())
    await store.put("d/e/", b"", ObjectHeaders())
    lister, tree = opened(tmp_path, store, 1 << 62)
    await lister.list(tree.top)
    (row,) = tree.catalog.page(tree.top, "", 10)
    assert (row.name, row.kind) == ("d", MARKED)
    (below,) = tree.catalog.page(row.number, "", 10)
    assert (below.name, below.kind) == ("e", MARKED)
    node = tree.node_of(below)
    assert (node.bucket, node.key, node.is_directory) == ("memory", "d/e/", True)
    tree.catalog.close()

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.errors import LocalDiskError, NetworkError, S3MountError
from s3mount.manifest.versions import version_scan as scanning
from s3mount.manifest.versions.key_pages import VersionPages
from s3mount.manifest.versions.version_scan import Scan
from s3mount.manifest.versions.versions import CurrentAt, current_at
from s3mount.refs import ObjectHeaders, ObjectVersion
from s3mount.s3.store import Store
from s3mount.testing.memory_store import MemoryStore
from tests.unit.manifest.listings import GeneratedStore, version


def scanned(
    store: Store, prefix: str = "", **settings: int
) -> tuple[list[ObjectVersion], Scan[ObjectVersion]]:
    found: list[ObjectVersion] = []
    scan = Scan(VersionPages(store, prefix), **settings)  # type: ignore[arg-type]

    async def main() -> None:
        await scan.run(found.extend)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return found, scan


def shapes() -> dict[str, list[str]]:
    """Keys as buckets have them."""
    chance = random.Random(5)
    return {
        "flat": [f"file-{n:06d}" for n in range(5000)],
        "dated": [
            f"logs/2026/{month:02d}/{day:02d}/{n:03d}.gz"
            for month in range(1, 13)
            for day in range(1, 29)
            for n in range(15)
        ],
        "lopsided": [*(f"a/b/c/{n:05d}" for n in range(4990)), "b", "c/x", "zz", *"\uffff😀"],
        "random": [f"{chance.getrandbits(128):032x}" for _ in range(5000)],
        "odd": [
            "".join(
                chance.choices("a/\x00\n\r%é\ud7ff\ue000\uffff😀\U0010ffff", k=chance.randint(1, 9))
            )
            for _ in range(5000)
        ],
        "nested": ["x" * n for n in range(1, 1025)],
    }


@pytest.mark.parametrize("shape", shapes())
def test_all_versions_come_once_in_order_and_quicker_than_one_by_one(shape: str) -> None:
    keys = sorted(set(shapes()[shape]))

    def versions_of(key: str) -> list[ObjectVersion]:
        return [version(key, n) for n in range(1 + len(key) % 3)]

    expected = [found for key in keys for found in versions_of(key)]
    store = GeneratedStore(keys, versions_of, delay_s=1, page_max=100)
    found, scan = scanned(store)
    assert found == expected
    assert scan.listed == len(expected)
    pages = -(-len(expected) // 100)
    assert store.asked_at_once_max <= 16 * 7
    # All but long chains of the same characters are parted, at the price of some probes.
    assert store.asked <= 12 * pages
    if shape not in ("nested", "lopsided"):
        assert scan.pages <= 3 * pages


def test_time_goes_down_with_lists_at_once() -> None:
    keys = [f"file-{n:06d}" for n in range(50_000)]
    seconds = []
    for lists in (1, 16):
        store = GeneratedStore(keys, lambda key: [version(key)], delay_s=1, page_max=100)

        async def main(store: Store = store, lists: int = lists) -> float:
            await Scan(VersionPages(store, ""), lists_at_once=lists).run(lambda rows: None)
            return trio.current_time()

        clock = trio.testing.MockClock(autojump_threshold=0)
        start = clock.current_time()
        seconds.append(trio.run(main, clock=clock) - start)
    assert seconds[0] >= 500
    assert seconds[1] <= seconds[0] / 6


def test_a_small_bucket_costs_one_request() -> None:
    store = GeneratedStore(["a", "b"], lambda key: [version(key)])
    assert len(scanned(store)[0]) == 2
    assert store.asked == 1
    store = GeneratedStore([], lambda key: [])
    assert scanned(store)[0] == []
    assert store.asked == 1


def test_a_prefix_bounds_what_is_asked_and_found() -> None:
    keys = sorted([f"{letter}/{n:04d}" for letter in "abc" for n in range(1000)])
    store = GeneratedStore(keys, lambda key: [version(key)], page_max=50)
    found, _ = scanned(store, "b/")
    assert [each.key for each in found] == [key for key in keys if key.startswith("b/")]


@settings(max_examples=60, deadline=None)
@given(
    keys=st.sets(
        st.text(st.sampled_from("ab/é\ud7ff\ue000\U0010ffff"), min_size=1, max_size=5), max_size=40
    ),
    versions=st.integers(1, 5),
    lists=st.integers(1, 6),
    page_max=st.integers(1, 4),
    rows_max=st.sampled_from([0, 3, 1000]),
    seed=st.integers(0, 1000),
)
def test_whatever_the_timing_nothing_is_lost_or_told_twice(
    keys: set[str], versions: int, lists: int, page_max: int, rows_max: int, seed: int
) -> None:
    chance = random.Random(seed)
    ordered = sorted(keys)
    store = GeneratedStore(
        ordered, lambda key: [version(key, n) for n in range(versions)], page_max=page_max
    )
    plain = store.list_versions_page

    async def slow(*arguments: object, **more: object) -> object:
        await trio.sleep(chance.random())
        return await plain(*arguments, **more)  # type: ignore[arg-type]

    store.list_versions_page = slow  # type: ignore[method-assign, assignment]
    before, scanning.ROWS_IN_MEMORY_MAX = scanning.ROWS_IN_MEMORY_MAX, rows_max
    try:
        found, _ = scanned(store, lists_at_once=lists)
    finally:
        scanning.ROWS_IN_MEMORY_MAX = before
    assert found == [version(key, n) for key in ordered for n in range(versions)]


def test_an_error_of_the_store_ends_the_scan_as_it_is() -> None:
    keys = [f"{n:05d}" for n in range(5000)]
    store = GeneratedStore(keys, lambda key: [version(key)], delay_s=1, page_max=100)
    plain = store.list_versions_page

    async def failing(*arguments: object, **more: object) -> object:
        if store.asked > 30:
            raise NetworkError("gone")
        return await plain(*arguments, **more)  # type: ignore[arg-type]

    store.list_versions_page = failing  # type: ignore[method-assign, assignment]
    with pytest.raises(NetworkError, match="gone"):
        scanned(store)


def test_what_takes_the_rows_may_end_it() -> None:
    store = GeneratedStore(["a"], lambda key: [version(key)])

    def refuse(rows: list[ObjectVersion]) -> None:
        raise LocalDiskError("full")

    async def main() -> None:
        with pytest.raises(S3MountError, match="full"):
            await Scan(VersionPages(store, "")).run(refuse)

    trio.run(main)


def test_without_room_for_what_waits_it_is_said_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scanning, "ROWS_IN_MEMORY_MAX", 10)
    monkeypatch.setattr("tempfile.tempdir", "/proc/nothing/here")
    keys = [f"{n:05d}" for n in range(5000)]
    store = GeneratedStore(keys, lambda key: [version(key)], delay_s=1, page_max=100)
    with pytest.raises(LocalDiskError, match="set TMPDIR"):
        scanned(store)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 9)), max_size=12),
    st.integers(-1, 10),
    st.integers(1, 5),
)
def test_what_was_current_is_what_an_oracle_says(
    writes: list[tuple[str, bool, int]], at_ns: int, page: int
) -> None:
    oracle: dict[str, ObjectVersion] = {}
    history: dict[str, list[ObjectVersion]] = {}
    for number, (key, is_deletion, moment) in enumerate(sorted(writes, key=lambda write: write[2])):
        made = version(key, number, moment, is_deletion=is_deletion)
        history.setdefault(key, []).insert(0, made)
        if moment <= at_ns:
            oracle[key] = made
    listed = [each for key in sorted(history) for each in history[key]]
    expected = [oracle[key] for key in sorted(oracle) if not oracle[key].is_delete_marker]
    assert list(current_at(listed, at_ns)) == expected
    choose = CurrentAt(at_ns)
    paged = [listed[start : start + page] for start in range(0, len(listed), page)]
    assert [each for part in paged for each in choose(part)] == expected


def test_the_latest_count_where_no_time_is_given() -> None:
    async def main() -> None:
        store = MemoryStore(versioning="enabled")
        for key in ("a", "b", "a", "c"):
            await store.put(key, b"x", ObjectHeaders())
        await store.delete("c")
        found: list[ObjectVersion] = []
        await Scan(VersionPages(store, ""), keep=lambda: CurrentAt(None)).run(found.extend)
        assert [(each.key, each.is_latest) for each in found] == [("a", True), ("b", True)]

    trio.run(main)

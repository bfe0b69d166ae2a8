"""The cap and what makes room: it holds while files are read, and takes what is needed least."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest
import trio

from s3mount.cache.cache_catalog import CacheCatalog
from s3mount.cache.entry import digest_of
from s3mount.cache.folder import CacheFolder
from s3mount.errors import LocalDiskError
from s3mount.refs import ContentRef
from tests.unit.cache.stores import (
    KIB,
    METADATA_BYTES,
    MIB,
    SlowStore,
    bodies,
    disk_bytes,
    read_all,
    running,
    simulated,
    unhurried,
)


@simulated
async def test_the_cap_holds_while_files_are_read(tmp_path: Path) -> None:
    store = SlowStore(bytes_per_s=200e6)
    contents = [store.add(f"key{index}", 30 * MIB) for index in range(4)]
    cap = 40 * MIB
    highest = 0
    async with running(store, tmp_path, size_bytes_max=cap) as reader:

        async def watch() -> None:
            nonlocal highest
            while True:
                highest = max(highest, disk_bytes(tmp_path))
                assert reader.statistics()["cache_bytes"] <= cap
                await trio.sleep(0.01)

        async def read(number: int) -> None:
            ref, data = contents[number]
            handle = reader.open(ref)
            assert await read_all(handle) == data
            handle.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as readers:
                for number in range(4):
                    readers.start_soon(read, number)
            nursery.cancel_scope.cancel()
    assert 25 * MIB < highest <= cap + METADATA_BYTES
    # Little was fetched twice.
    assert sum(length for _, length in store.ranges) < 1.2 * 4 * 30 * MIB


@simulated
async def test_the_cap_holds_for_random_reads_of_one_open_file(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.001)
    ref, data = store.add("key", 64 * MIB)
    rnd = random.Random(5)
    async with running(store, tmp_path, size_bytes_max=4 * MIB) as reader:
        handle = reader.open(ref)
        for _ in range(300):
            offset = rnd.randrange(ref.size)
            assert await handle.read(offset, 64 * KIB) == data[offset : offset + 64 * KIB]
            assert disk_bytes(tmp_path) <= 4 * MIB + METADATA_BYTES
        handle.close()


@simulated
async def test_files_count_until_they_are_gone(tmp_path: Path) -> None:
    store = SlowStore(bytes_per_s=1e9)
    cap = 8 * MIB
    async with running(store, tmp_path, size_bytes_max=cap) as reader:
        for number in range(3):
            known, data = store.add(f"key{number}", 6 * MIB)
            handle = reader.open(ContentRef(known.key, "", known.size))
            for offset in range(0, known.size, MIB):
                assert await handle.read(offset, MIB) == data[offset : offset + MIB]
                assert disk_bytes(tmp_path) <= cap + METADATA_BYTES
            handle.close()


@simulated
async def test_what_a_dropped_fetch_left_in_the_file_counts(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.001, bytes_per_s=100e6)
    store.report_delay_s = 0.02
    cap = 24 * MIB
    dropped = 0
    async with running(store, tmp_path, size_bytes_max=cap) as reader:
        for number in range(12):
            ref, data = store.add(f"key{number}", 20 * MIB)
            handle = reader.open(ref)
            for offset in range(0, 2 * MIB, 256 * KIB):
                piece = await handle.read(offset, 256 * KIB)
                assert piece == data[offset : offset + 256 * KIB]
            before = store.running
            handle.close()
            await trio.sleep(0.001)
            dropped += before - store.running
            known = reader.statistics()["cache_bytes"]
            assert disk_bytes(tmp_path) - METADATA_BYTES <= known <= cap
    assert dropped >= 6


@simulated
async def test_a_cap_below_one_block_still_reads(tmp_path: Path) -> None:
    store = SlowStore()
    large, data = store.add("large", 3 * MIB)
    small, body = store.add("small", 100_000)
    async with running(store, tmp_path, size_bytes_max=20_000) as reader:
        for ref, wanted in ((large, data), (small, body)):
            handle = reader.open(ref)
            assert await read_all(handle) == wanted
            handle.close()
        await trio.sleep(1)
        assert disk_bytes(tmp_path) <= 20_000


@simulated
async def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    store = SlowStore()
    refs = [store.add(f"key{index}", 100 * KIB)[0] for index in range(100)]
    async with running(store, tmp_path, size_bytes_max=10 * MIB) as reader:
        for number in (*range(90), 3, *range(90, 100)):
            handle = reader.open(refs[number])
            await handle.read(0, 10)
            handle.close()
            await trio.sleep(0.6)
        store.log.clear()
        cached = []
        for number in range(100):
            handle = reader.open(refs[number])
            if handle.read_now(0, 10) is not None:
                cached.append(number)
            handle.close()
    assert 80 <= len(cached) <= 97
    assert cached == [3, *sorted(cached)[1:]]
    assert sorted(cached)[1:] == list(range(101 - len(cached), 100))


@simulated
async def test_of_a_large_unused_entry_only_what_is_needed_goes(tmp_path: Path) -> None:
    store = SlowStore(bytes_per_s=1e9)
    first, data = store.add("first", 60 * MIB)
    second, _ = store.add("second", 20 * MIB)
    async with running(store, tmp_path, size_bytes_max=64 * MIB) as reader:
        for ref in (first, second):
            handle = reader.open(ref)
            await read_all(handle, MIB)
            handle.close()
            await trio.sleep(1)
        handle = reader.open(first)
        assert handle.read_now(0, 20 * MIB) == data[: 20 * MIB]
        handle.close()
        assert disk_bytes(tmp_path) <= 64 * MIB + METADATA_BYTES


@simulated
async def test_many_small_files_are_evicted_down_to_the_cap(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0)
    async with running(store, tmp_path, size_bytes_max=2 * MIB) as reader:
        for number in range(1500):
            ref, data = store.add(f"key{number}", 3000)
            handle = reader.open(ref)
            assert await handle.read(0, 3000) == data
            handle.close()
        await trio.sleep(1)
        assert MIB < disk_bytes(tmp_path) <= 2 * MIB
        assert reader.statistics()["cache_bytes"] == disk_bytes(tmp_path)
        assert reader.statistics()["cache_open_entries"] == 0


@simulated
async def test_the_catalog_gives_the_room_of_evicted_contents_back(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0)
    catalog = tmp_path / "bucket" / "catalog.sqlite"
    async with running(store, tmp_path, size_bytes_max=64 * MIB) as reader:
        for number in range(3000):
            handle = reader.open(store.add(f"key{number}", 16 * KIB)[0])
            await handle.read(0, 1)
            handle.close()
            if number % 100 == 0:
                await trio.sleep(1)
        await trio.sleep(1)
        assert len(bodies(tmp_path)) == 3000
        filled = catalog.stat().st_size
        reader._disk_cache.want_room(60 * MIB)
        await trio.sleep(5)
        assert len(bodies(tmp_path)) < 300
    assert filled > 40 * MIB
    assert catalog.stat().st_size < 20 * MIB


@simulated
async def test_blocks_that_are_being_taken_away_can_be_read_at_once(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0, bytes_per_s=1e9)
    ref, data = store.add("key", 40 * MIB)
    async with running(store, tmp_path, size_bytes_max=48 * MIB, worker=unhurried) as reader:
        handle = reader.open(ref)
        await read_all(handle, MIB)
        await trio.sleep(1)
        for _ in range(5):
            reader._disk_cache.want_room(20 * MIB)
            for _ in range(30):
                await trio.sleep(0.005)
                for offset in range(0, 12 * MIB, MIB):
                    assert await handle.read(offset, 4096) == data[offset : offset + 4096]
        assert reader.statistics()["cache_evicted_bytes"] > 12 * MIB
        handle.close()


@pytest.mark.parametrize("is_open", [True, False])
@simulated
async def test_the_catalog_knows_before_bytes_are_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    store = SlowStore(bytes_per_s=1e9)
    ref, data = store.add("key", 40 * MIB)
    real = CacheFolder.punch
    punched = []

    def punch(files: CacheFolder, descriptor: int, offset: int, length: int) -> None:
        catalog = CacheCatalog(tmp_path / "bucket", "boot")
        row = catalog.look_up(digest_of("bucket", ref))
        catalog.close()
        assert row is not None
        assert row.snapshot is not None
        first, stop = offset >> row.shift, (offset + length) >> row.shift
        assert not any(row.snapshot[first:stop])
        punched.append(length)
        real(files, descriptor, offset, length)

    monkeypatch.setattr(CacheFolder, "punch", punch)
    mount = running(store, tmp_path, size_bytes_max=48 * MIB)
    async with mount as reader:
        handle = reader.open(ref)
        await read_all(handle, MIB)
        if not is_open:
            handle.close()
        await trio.sleep(1)
        reader._disk_cache.want_room(20 * MIB)
        await trio.sleep(0.1)
        mount.kill()
        handle.close()
    assert sum(punched) >= 12 * MIB
    store.log.clear()
    async with running(store, tmp_path, size_bytes_max=48 * MIB) as reader:
        handle = reader.open(ref)
        local = 0
        for offset in range(0, ref.size, 64 * KIB):
            piece = handle.read_now(offset, 64 * KIB)
            if piece is not None:
                assert piece == data[offset : offset + 64 * KIB]
                local += len(piece)
        assert 20 * MIB <= local <= 28 * MIB
        handle.close()


def test_the_sum_of_the_catalog_is_kept_by_itself(tmp_path: Path) -> None:
    async def fill() -> None:
        store = SlowStore(latency_s=0)
        async with running(store, tmp_path, size_bytes_max=5 * MIB) as reader:
            for number in range(40):
                handle = reader.open(store.add(f"key{number % 25}", 300_000)[0])
                await handle.read(0, 10)
                handle.close()
                if number % 7 == 0:
                    await trio.sleep(0.3)

    trio.run(fill)
    catalog = CacheCatalog(tmp_path / "bucket", "boot")
    database = sqlite3.connect(tmp_path / "bucket" / "catalog.sqlite")
    summed = database.execute("SELECT sum(allocated) FROM entry").fetchone()[0]
    assert catalog.total() == summed == disk_bytes(tmp_path)
    database.close()
    catalog.close()


@simulated
async def test_a_part_of_the_disk_is_left_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others fill the disk: the cap falls and what is cached goes; it rises when they are gone."""
    whole_bytes, others_bytes = 200 * MIB, 0

    def disk_room(files: CacheFolder) -> tuple[int, int]:
        return whole_bytes - others_bytes - disk_bytes(tmp_path), whole_bytes

    monkeypatch.setattr(CacheFolder, "disk_room", disk_room)
    store = SlowStore()
    ref, data = store.add("large", 60 * MIB)
    async with running(store, tmp_path, free_bytes_min=10 * MIB) as reader:
        handle = reader.open(ref)
        assert await read_all(handle) == data
        handle.close()
        await trio.sleep(10)
        assert disk_bytes(tmp_path) >= 60 * MIB
        others_bytes = 160 * MIB
        await trio.sleep(20)
        assert disk_room(reader._disk_cache.files)[0] >= 10 * MIB
        assert 0 < reader.statistics()["cache_bytes_max"] <= 30 * MIB
        handle = reader.open(ref)
        assert await read_all(handle) == data
        await trio.sleep(20)
        assert disk_room(reader._disk_cache.files)[0] >= 10 * MIB
        handle.close()
        others_bytes = 0
        await trio.sleep(20)
        assert reader.statistics()["cache_bytes_max"] >= 180 * MIB


@simulated
async def test_on_a_small_disk_the_floor_is_a_tenth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CacheFolder, "disk_room", lambda files: (40 * MIB, 50 * MIB))
    async with running(SlowStore(), tmp_path, free_bytes_min=1 << 30) as reader:
        await trio.sleep(10)
        assert reader.statistics()["cache_bytes_max"] == 35 * MIB


@simulated
async def test_what_is_pinned_is_not_evicted(tmp_path: Path) -> None:
    store = SlowStore(bytes_per_s=1e9)
    pinned = [store.add(f"pinned{number}", 1 * MIB)[0] for number in range(3)]
    others = [store.add(f"other{number}", 1 * MIB)[0] for number in range(12)]
    small = [store.add(f"small{number}", 5 * KIB)[0] for number in range(8)]
    async with running(store, tmp_path, size_bytes_max=8 * MIB) as reader:
        # Before they are here as well, and what somebody else pinned.
        await reader.pin([*pinned[:2], *small], "mine", 100)
        await reader.pin(pinned[2:], "theirs", 100)
        for ref in (*pinned, *small):
            await reader.bring(ref)
        with pytest.raises(LocalDiskError, match="no ETag"):
            await reader.bring(ContentRef("pinned0", "", 1 * MIB))
        held = reader.open(pinned[0])
        assert await held.read(0, KIB)
        for ref in others:
            await reader.bring(ref)
        assert reader.statistics()["cache_evicted_bytes"] > 0
        assert all(reader.is_whole(ref) for ref in (*pinned, *small))
        assert not all(reader.is_whole(ref) for ref in others)
        held.close()
        kept = await reader.evict([*pinned, *small])
        assert (kept.files, kept.pinned) == (0, len(pinned) + len(small))
        # Those that were seen again stay pinned.
        await reader.pin(pinned[:1], "mine", 200)
        await reader.unpin_older("mine", 200)
        assert await reader.pin_owners() == ["mine", "theirs"]
        gone = await reader.evict([*pinned, *small])
        assert (gone.files, gone.pinned) == (1 + len(small), 2)
        assert gone.size_bytes >= 1 * MIB
        assert not reader.is_whole(pinned[1])

"""The cache's own disk: the cap, what a kill leaves behind, a disk that fails, several mounts."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from s3mount.cache.catalog import Catalog, boot_id
from s3mount.cache.entry import digest_of
from s3mount.cache.eviction import _shave
from s3mount.cache.folder import CacheFolder
from s3mount.errors import LocalDiskError
from s3mount.refs import ContentRef, ObjectHeaders
from tests.unit.cache.stores import (
    KIB,
    MIB,
    SlowStore,
    data_files,
    disk_bytes,
    read_all,
    running,
    simulated,
    unhurried,
)

METADATA_BYTES = 64 * KIB
"""What a file system may add to the bytes of a file with holes."""


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
async def test_blocks_that_are_being_taken_away_can_be_read_at_once(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0, bytes_per_s=1e9)
    ref, data = store.add("key", 40 * MIB)
    async with running(store, tmp_path, size_bytes_max=48 * MIB, worker=unhurried) as reader:
        handle = reader.open(ref)
        await read_all(handle, MIB)
        await trio.sleep(1)
        for _ in range(5):
            reader._shelf.want_room(20 * MIB)
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
        catalog = Catalog(tmp_path / "bucket", "boot")
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
        reader._shelf.want_room(20 * MIB)
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


CHILD = """
import sys, trio
from pathlib import Path
from s3mount.cache.reader import CacheReader
from s3mount.refs import ContentRef
from tests.unit.cache.stores import SlowStore

async def main():
    store = SlowStore(latency_s=0, bytes_per_s=200e6)
    refs = [store.add(f"key{number}", size)[0] for number, size in enumerate([5_000_000, 70_000] * 8)]
    async with trio.open_nursery() as nursery:
        reader = CacheReader(
            store, Path(sys.argv[1]), namespace="bucket",
            size_bytes_max=30_000_000, prefetch_bytes_max=30_000_000,
        )
        await nursery.start(reader.run)
        print("reading", flush=True)
        while True:
            for ref in refs:
                handle = reader.open(ref)
                for offset in range(0, ref.size, 100_000):
                    await handle.read(offset, 100_000)
                handle.close()

trio.run(main)
"""


def test_kill_9_never_leaves_bytes_that_are_not_there(tmp_path: Path) -> None:
    rnd = random.Random(7)
    found = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"reading\n"
            trio.run(trio.sleep, 0.3 + rnd.random() * 0.7)
            child.send_signal(signal.SIGKILL)
        found += _check_what_is_cached(tmp_path)
    assert found > 6


def _check_what_is_cached(folder: Path) -> int:
    """Whatever the cache says is local equals the source; how many blocks were."""
    store = SlowStore()
    contents = [
        store.add(f"key{number}", size) for number, size in enumerate([5_000_000, 70_000] * 8)
    ]
    found = 0

    async def check() -> None:
        nonlocal found
        async with running(store, folder, size_bytes_max=30_000_000) as reader:
            for ref, data in contents:
                handle = reader.open(ref)
                for offset in range(0, ref.size, 64 * KIB):
                    local = handle.read_now(offset, 64 * KIB)
                    if local is not None:
                        assert local == data[offset : offset + 64 * KIB]
                        found += 1
                handle.close()

    trio.run(check)
    return found


@simulated
async def test_a_power_cut_costs_what_was_not_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore()
    large, data = store.add("large", 3 * MIB)
    small, body = store.add("small", 3000)
    adopted, adopted_data = store.add("adopted", 4000)
    (tmp_path / "blob").write_bytes(adopted_data)

    async def read_everything() -> int:
        before = len(store.log)
        async with running(store, tmp_path) as reader:
            for ref, wanted in ((large, data), (small, body), (adopted, adopted_data)):
                handle = reader.open(ref)
                assert await read_all(handle) == wanted
                handle.close()
        return len({one.key for one in store.log[before:]})

    async with running(store, tmp_path) as reader:
        assert reader.adopt(adopted, tmp_path / "blob")
    assert await read_everything() == 2
    monkeypatch.setattr("s3mount.cache.upkeep.boot_id", lambda: "next")
    # Small ones are known by their checksum.
    assert await read_everything() == 1
    async with running(store, tmp_path) as reader:
        await trio.sleep(200)
        assert reader.statistics()["cache_bytes"] > 3 * MIB
    with sqlite3.connect(tmp_path / "bucket" / "catalog.sqlite") as database:
        # The wall clock of the reader did not move, so nothing rested long enough.
        assert database.execute("SELECT count(*) FROM entry WHERE boot = ''").fetchone() == (0,)
        database.execute("UPDATE entry SET used_ns = 0")
    database.close()
    async with running(store, tmp_path):
        await trio.sleep(200)
    monkeypatch.setattr("s3mount.cache.upkeep.boot_id", lambda: "third")
    assert await read_everything() == 0


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
@simulated
async def test_a_damaged_small_file_is_fetched_anew(tmp_path: Path, damage: str) -> None:
    store = SlowStore()
    ref, data = store.add("small", 3000)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        await read_all(handle)
        handle.close()
    (file,) = data_files(tmp_path)
    _damage(file, damage)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        assert await read_all(handle) == data
        handle.close()
        await trio.sleep(1)
    assert len(store.log) == 2
    (file,) = data_files(tmp_path)
    assert file.read_bytes() == data


@simulated
async def test_a_fetch_into_a_file_that_was_given_up_fills_no_other(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.01, bytes_per_s=10e6)
    ref, data = store.add("large", 16 * MIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        for offset in range(0, 2 * MIB, 256 * KIB):
            await handle.read(offset, 256 * KIB)
        assert store.running >= 2
        (file,) = data_files(tmp_path)
        os.truncate(file, 1000)
        assert handle.read_now(0, 64 * KIB) is None
        assert await handle.read(0, 64 * KIB) == data[: 64 * KIB]
        for _ in range(200):
            await trio.sleep(0.01)
            for offset in range(0, ref.size, 256 * KIB):
                local = handle.read_now(offset, 1000)
                assert local in (None, data[offset : offset + 1000])
        assert await read_all(handle) == data
        handle.close()


@pytest.mark.parametrize("when", ["before", "open"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
@simulated
async def test_a_damaged_large_file_is_fetched_anew(tmp_path: Path, damage: str, when: str) -> None:
    store = SlowStore()
    ref, data = store.add("large", 3 * MIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        await read_all(handle)
        if when == "before":
            handle.close()
            await trio.sleep(1)
        (file,) = data_files(tmp_path)
        _damage(file, damage)
        if when == "before":
            handle = reader.open(ref)
        assert await read_all(handle) == data
        assert handle.read_now(0, ref.size) == data
        assert reader._shelf.usable
        handle.close()
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        assert await read_all(handle) == data
        handle.close()


def _damage(file: Path, damage: str) -> None:
    if damage == "truncated":
        os.truncate(file, 1000)
    elif damage == "changed":
        file.write_bytes(file.read_bytes()[::-1])
    else:
        file.unlink()


@simulated
async def test_a_damaged_catalog_costs_the_cache_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore()
    ref, data = store.add("large", 3 * MIB)
    for _ in range(2):
        async with running(store, tmp_path) as reader:
            handle = reader.open(ref)
            assert await read_all(handle) == data
            handle.close()
        for name in ("catalog.sqlite-wal", "catalog.sqlite-shm"):
            (tmp_path / "bucket" / name).unlink(missing_ok=True)
        (tmp_path / "bucket" / "catalog.sqlite").write_bytes(b"no database" * 1000)
    async with running(store, tmp_path) as reader:
        await trio.sleep(20)
        assert reader.statistics()["cache_bytes"] == 0
    assert data_files(tmp_path) == []
    assert caplog.messages.count(caplog.messages[0]) == 2
    assert "damaged" in caplog.messages[0]


def _refuse_space(descriptor: int, size: int) -> None:
    raise OSError(28, "No space left on device")


@simulated
async def test_a_full_disk_costs_one_warning_and_no_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore()
    large, data = store.add("large", 3 * MIB)
    small, body = store.add("small", 3000)
    async with running(store, tmp_path) as reader:
        with monkeypatch.context() as patched:
            patched.setattr(os, "ftruncate", _refuse_space)
            for _ in range(2):
                for ref, wanted in ((large, data), (small, body)):
                    handle = reader.open(ref)
                    assert await read_all(handle) == wanted
                    handle.close()
                    await trio.sleep(1)
            with pytest.raises(LocalDiskError):
                await reader.materialize(large)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "No space left" in caplog.messages[0]
        await trio.sleep(31)
        handle = reader.open(large)
        await read_all(handle)
        handle.close()
        await trio.sleep(1)
        store.log.clear()
        handle = reader.open(large)
        assert handle.read_now(0, 3 * MIB) == data
        handle.close()
    assert len(caplog.records) == 1


@simulated
async def test_a_sink_that_refuses_bytes_is_the_disks_fault_not_the_stores(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore()
    ref, data = store.add("large", 3 * MIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        await handle.read(0, 10)
        shutil.rmtree(tmp_path / "bucket" / "blocks")
        for offset in range(0, 3 * MIB, 128 * KIB):
            assert await handle.read(offset, 128 * KIB) == data[offset : offset + 128 * KIB]
        handle.close()
        await trio.sleep(31)
        handle = reader.open(ref)
        assert await read_all(handle) == data
        handle.close()
        await trio.sleep(1)
        handle = reader.open(ref)
        assert handle.read_now(0, ref.size) == data
        handle.close()
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


@simulated
async def test_a_folder_that_cannot_be_made_costs_the_cache_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore()
    (tmp_path / "bucket").write_text("in the way")
    large, data = store.add("large", 3 * MIB)
    small, body = store.add("small", 3000)
    (tmp_path / "blob").write_bytes(body)
    async with running(store, tmp_path) as reader:
        for ref, wanted in ((large, data), (small, body)):
            handle = reader.open(ref)
            assert await read_all(handle) == wanted
            handle.close()
        assert not reader.adopt(small, tmp_path / "blob")
        (tmp_path / "bucket").unlink()
        await trio.sleep(61)
        for _ in range(2):
            store.log.clear()
            handle = reader.open(large)
            assert await read_all(handle) == data
            handle.close()
        assert store.log == []
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


@simulated
async def test_a_finished_local_file_is_adopted_by_rename(tmp_path: Path) -> None:
    store = SlowStore()
    for size in (3000, 3 * MIB):
        ref, data = store.add(f"key{size}", size)
        blob = tmp_path / "blob"
        blob.write_bytes(data)
        inode = blob.stat().st_ino
        async with running(store, tmp_path) as reader:
            assert reader.adopt(ref, blob)
            assert not blob.exists()
            handle = reader.open(ref)
            assert handle.read_now(0, size) == data
            handle.close()
        assert inode in [file.stat().st_ino for file in data_files(tmp_path)]
        async with running(store, tmp_path) as reader:
            handle = reader.open(ref)
            assert handle.read_now(0, size) == data
            handle.close()
    assert store.log == []


@simulated
async def test_what_cannot_be_adopted_is_left_alone(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("key", 3000)
    blob = tmp_path / "blob"
    blob.write_bytes(data)
    shm = Path("/dev/shm")
    async with running(store, tmp_path, size_bytes_max=100_000) as reader:
        assert not reader.adopt(ContentRef("key", "", 3000), blob)
        assert not reader.adopt(ContentRef("key", "e", 2999), blob)
        assert not reader.adopt(ref, tmp_path / "nothing")
        (tmp_path / "large").write_bytes(bytes(200_000))
        assert not reader.adopt(ContentRef("large", "e", 200_000), tmp_path / "large")
        if shm.is_dir() and shm.stat().st_dev != tmp_path.stat().st_dev:
            elsewhere = shm / f"s3mount-test-{os.getpid()}"
            elsewhere.write_bytes(data)
            try:
                assert not reader.adopt(ref, elsewhere)
                assert elsewhere.exists()
            finally:
                elsewhere.unlink()
        assert blob.read_bytes() == data
        assert reader.adopt(ref, blob)
        blob.write_bytes(data)
        assert not reader.adopt(ref, blob)
    assert blob.exists()


@pytest.mark.parametrize("size", [3000, 5 * MIB])
@pytest.mark.parametrize("is_open", [False, True])
@simulated
async def test_a_relabelled_content_needs_no_new_fetch(
    tmp_path: Path, size: int, is_open: bool
) -> None:
    store = SlowStore()
    old, data = store.add("old", size)
    async with running(store, tmp_path) as reader:
        handle = reader.open(old)
        await handle.read(0, 64 * KIB)
        if not is_open:
            handle.close()
            await trio.sleep(1)
        result = await store.copy(old, "new", ObjectHeaders())
        new = ContentRef("new", result.etag, size, result.version_id)
        await store.delete("old")
        reader.relabel(old, new)
        store.log.clear()
        other = reader.open(new)
        assert other.read_now(0, 3000) == data[:3000]
        if is_open:
            assert await read_all(handle) == data
            handle.close()
        assert await read_all(other) == data
        other.close()
        assert {one.key for one in store.log} <= {"new"}
    store.log.clear()
    async with running(store, tmp_path) as reader:
        handle = reader.open(new)
        assert await read_all(handle) == data
        handle.close()
        again = reader.open(old)
        assert again.read_now(0, 1) is None
        again.close()
    assert store.log == []
    assert len(data_files(tmp_path)) == 1


@simulated
async def test_a_fetch_that_was_under_way_goes_on_under_the_new_label(tmp_path: Path) -> None:
    store = SlowStore(latency_s=1)
    for size in (3000, 5 * MIB):
        old, data = store.add(f"old{size}", size)
        async with running(store, tmp_path) as reader:
            handle = reader.open(old)
            got: list[bytes] = []

            async def read(into: list[bytes] = got) -> None:
                into.append(await handle.read(0, 100))  # noqa: B023

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.sleep(0.5)
                result = await store.copy(old, "new", ObjectHeaders())
                await store.delete(old.key)
                reader.relabel(old, ContentRef("new", result.etag, size, result.version_id))
            assert got == [data[:100]]
            handle.close()


@simulated
async def test_relabelling_to_what_is_cached_already_keeps_both_readable(tmp_path: Path) -> None:
    store = SlowStore()
    old, data = store.add("old", 3 * MIB)
    result = await store.copy(old, "new", ObjectHeaders())
    new = ContentRef("new", result.etag, old.size, result.version_id)
    async with running(store, tmp_path) as reader:
        handles = [reader.open(old), reader.open(new)]
        for handle in handles:
            await handle.read(MIB, 10)
        reader.relabel(old, new)
        for handle in handles:
            assert await read_all(handle) == data
            handle.close()
        await trio.sleep(1)
    assert len(data_files(tmp_path)) == 1


@simulated
async def test_two_mounts_share_one_folder(tmp_path: Path) -> None:
    store = SlowStore()
    refs = [store.add(f"key{index}", size) for index, size in enumerate((3 * MIB, 3000))]
    async with running(store, tmp_path) as one, running(store, tmp_path) as other:
        for ref, data in refs:
            handle = one.open(ref)
            assert await read_all(handle) == data
            handle.close()
        await trio.sleep(1)
        store.log.clear()
        for ref, data in refs:
            handle = other.open(ref)
            assert handle.read_now(0, ref.size) == data
            handle.close()
        assert store.log == []


@simulated
async def test_two_mounts_that_fetch_the_same_do_not_disturb_each_other(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("key", 9 * MIB)
    async with running(store, tmp_path) as one, running(store, tmp_path) as other:
        handles = [one.open(ref), other.open(ref)]

        async def read(number: int) -> None:
            for offset in range(0, ref.size, 128 * KIB):
                piece = await handles[number].read(offset, 128 * KIB)
                assert piece == data[offset : offset + 128 * KIB]
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, 0)
            nursery.start_soon(read, 1)
        for handle in handles:
            handle.close()
        await trio.sleep(1)
        assert len(data_files(tmp_path)) == 1


@simulated
async def test_what_two_mounts_fetched_of_one_object_is_put_together(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("key", 9 * MIB)
    async with running(store, tmp_path) as one, running(store, tmp_path) as other:
        handles = [one.open(ref)]
        await handles[0].read(0, 10)
        await trio.sleep(1)
        handles.append(other.open(ref))
        assert handles[1].read_now(0, 10) == data[:10]
        for place in range(1, 9):
            await handles[place % 2].read(place * MIB, 10)
            if place % 4 == 0:
                await trio.sleep(1)
        for handle in handles:
            handle.close()
    store.log.clear()
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        for place in range(9):
            assert handle.read_now(place * MIB, 10) == data[place * MIB : place * MIB + 10]
        handle.close()
    assert len(data_files(tmp_path)) == 1


@simulated
async def test_no_mount_takes_away_what_another_reads(tmp_path: Path) -> None:
    store = SlowStore()
    first, data = store.add("first", 6 * MIB)
    cap = 8 * MIB
    async with running(store, tmp_path, size_bytes_max=cap) as one:
        handle = one.open(first)
        await read_all(handle)
        await trio.sleep(1)
        (used,) = data_files(tmp_path)
        async with running(store, tmp_path, size_bytes_max=cap) as other:
            for number in range(4):
                ref, wanted = store.add(f"other{number}", 5 * MIB)
                another = other.open(ref)
                assert await read_all(another) == wanted
                another.close()
                assert disk_bytes(tmp_path) <= cap + METADATA_BYTES
            assert handle.read_now(0, 6 * MIB) == data
            assert used in data_files(tmp_path)
        handle.close()


@simulated
async def test_no_mount_cuts_holes_into_what_another_reads(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("key", 12 * MIB)
    cap = 16 * MIB
    async with (
        running(store, tmp_path, size_bytes_max=cap) as one,
        running(store, tmp_path, size_bytes_max=cap) as other,
    ):
        first = one.open(ref)
        await read_all(first)
        await trio.sleep(1)
        second = other.open(ref)
        other._shelf.want_room(12 * MIB)
        await trio.sleep(0.5)
        assert first.read_now(0, ref.size) == data
        assert second.read_now(0, ref.size) == data
        first.close()
        await trio.sleep(1)
        other._shelf.want_room(12 * MIB)
        await trio.sleep(0.5)
        assert second.read_now(0, ref.size) is None
        assert await read_all(second) == data
        second.close()


@simulated
async def test_blocks_that_go_while_a_file_is_being_opened_are_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore()
    ref, data = store.add("key", 12 * MIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        await read_all(handle)
        handle.close()
    real = CacheFolder.open
    interfered = []

    def open_late(files: CacheFolder, name: str, size: int) -> int:
        catalog = Catalog(tmp_path / "bucket", boot_id())
        digest = digest_of("bucket", ref)
        (victim,) = catalog.victims((-1, b""), 10)
        assert victim.digest == digest
        interfered.append(_shave(catalog, files, victim, 8 * MIB))
        catalog.close()
        return real(files, name, size)

    monkeypatch.setattr(CacheFolder, "open", open_late)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        assert interfered == [8 * MIB]
        assert handle.read_now(0, 4 * MIB) == data[: 4 * MIB]
        assert handle.read_now(4 * MIB, 10) is None
        assert await read_all(handle) == data
        handle.close()


@simulated
async def test_files_that_a_kill_left_behind_are_swept_when_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore()
    ref, data = store.add("key", 3000)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        await read_all(handle)
        handle.close()
    shard = tmp_path / "bucket" / "blocks" / "ab"
    shard.mkdir(exist_ok=True)
    (shard / "abcd-1234").write_bytes(b"left behind")
    async with running(store, tmp_path):
        await trio.sleep(20)
    assert (shard / "abcd-1234").exists()
    monkeypatch.setattr("s3mount.cache.folder.ORPHAN_AGE_S", -1.0)
    async with running(store, tmp_path) as reader:
        await trio.sleep(20)
        handle = reader.open(ref)
        assert handle.read_now(0, 3000) == data
        handle.close()
    assert not (shard / "abcd-1234").exists()


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
    catalog = Catalog(tmp_path / "bucket", "boot")
    database = sqlite3.connect(tmp_path / "bucket" / "catalog.sqlite")
    summed = database.execute("SELECT sum(allocated) FROM entry").fetchone()[0]
    assert catalog.total() == summed == disk_bytes(tmp_path)
    database.close()
    catalog.close()


def test_the_cache_is_for_its_owner_alone(tmp_path: Path) -> None:
    async def fill() -> None:
        store = SlowStore()
        async with running(store, tmp_path / "cache") as reader:
            for size in (3000, 3 * MIB):
                handle = reader.open(store.add(f"key{size}", size)[0])
                await handle.read(0, 10)
                handle.close()

    trio.run(fill)
    assert (tmp_path / "cache" / "bucket").stat().st_mode & 0o777 == 0o700
    files = data_files(tmp_path / "cache")
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]

"""The cache's own disk: what a kill or a power cut leaves behind, damage, a disk that fails."""

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

from s3mount.cache.cache_catalog import CacheCatalog
from s3mount.errors import LocalDiskError
from s3mount.refs import ContentRef
from tests.unit.cache.stores import (
    KIB,
    MIB,
    SlowStore,
    bodies,
    data_files,
    database_of,
    read_all,
    running,
    simulated,
)

CHILD = """
import sys, trio
from pathlib import Path
from s3mount.cache.reader import CacheReader
from s3mount.refs import ContentRef
from tests.unit.cache.stores import SlowStore

async def main():
    store = SlowStore(latency_s=0, bytes_per_s=200e6)
    refs = [store.add(f"key{number}", size)[0] for number, size in enumerate([5_000_000, 70_000, 7_000] * 6)]
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
        store.add(f"key{number}", size)
        for number, size in enumerate([5_000_000, 70_000, 7_000] * 6)
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


async def read_once(store: SlowStore, folder: Path, ref: ContentRef, *, rest_s: float = 0) -> bytes:
    """The content, by a reader of its own in this cache folder, which ends ``rest_s`` later."""
    async with running(store, folder) as reader:
        handle = reader.open(ref)
        data = await read_all(handle)
        handle.close()
        await trio.sleep(rest_s)
    return data


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
    monkeypatch.setattr("s3mount.cache.maintenance.boot_id", lambda: "next")
    # All are known by their checksums.
    assert await read_everything() == 0
    (file,) = [file for file in data_files(tmp_path) if file.stat().st_size > MIB]
    with file.open("r+b") as lost:
        # What the kernel had not written back reads as zeros.
        lost.seek(MIB)
        lost.write(bytes(MIB))
    asked = len(store.log)
    assert await read_everything() == 1
    again = store.ranges[asked:]
    assert sum(length for _, length in again) == MIB
    assert len(again) <= 4
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
    monkeypatch.setattr("s3mount.cache.maintenance.boot_id", lambda: "third")
    assert await read_everything() == 0


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
@simulated
async def test_a_damaged_small_file_is_fetched_anew(tmp_path: Path, damage: str) -> None:
    store = SlowStore()
    ref, data = store.add("small", 30_000)
    await read_once(store, tmp_path, ref)
    (file,) = data_files(tmp_path)
    _damage(file, damage)
    assert await read_once(store, tmp_path, ref, rest_s=1) == data
    assert len(store.log) == 2
    (file,) = data_files(tmp_path)
    assert file.read_bytes() == data


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE body SET body = substr(body, 1, 100)",
        "UPDATE body SET body = zeroblob(length(body))",
        "DELETE FROM body",
    ],
)
@simulated
async def test_a_damaged_content_in_the_catalog_is_fetched_anew(
    tmp_path: Path, damage: str
) -> None:
    store = SlowStore()
    ref, data = store.add("small", 3000)
    await read_once(store, tmp_path, ref)
    assert list(bodies(tmp_path).values()) == [data]
    assert data_files(tmp_path) == []
    with database_of(tmp_path) as database:
        assert database.execute(damage).rowcount == 1
    assert await read_once(store, tmp_path, ref, rest_s=1) == data
    assert len(store.log) == 2
    assert list(bodies(tmp_path).values()) == [data]


@simulated
async def test_a_catalog_that_is_locked_while_a_content_is_read_is_no_sick_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The content is fetched, is still in the catalog afterwards, and what comes next is kept."""

    def locked(catalog: CacheCatalog, name: str) -> bytes | None:
        raise sqlite3.OperationalError("database is locked")

    store = SlowStore()
    ref, data = store.add("small", 3000)
    other, other_data = store.add("other", 4000)
    await read_once(store, tmp_path, ref)
    with monkeypatch.context() as patch:
        patch.setattr(CacheCatalog, "body", locked)
        assert await read_once(store, tmp_path, ref) == data
        assert await read_once(store, tmp_path, other, rest_s=1) == other_data
    assert len(store.log) == 3
    assert caplog.records == []
    assert sorted(bodies(tmp_path).values()) == sorted([data, other_data])
    assert await read_once(store, tmp_path, ref) == data
    assert len(store.log) == 3


@simulated
async def test_what_a_kill_left_in_the_catalog_without_an_entry_is_removed(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("small", 3000)
    await read_once(store, tmp_path, ref)
    with database_of(tmp_path) as database:
        database.execute("INSERT INTO body VALUES ('=0123-left', 'behind')")
    async with running(store, tmp_path):
        await trio.sleep(20)
    assert list(bodies(tmp_path).values()) == [data]


def _change(file: Path, *places: int) -> None:
    """Flip one bit at each place."""
    with file.open("r+b") as changed:
        for place in places:
            changed.seek(place)
            byte = changed.read(1)[0]
            changed.seek(place)
            changed.write(bytes([byte ^ 1]))


@simulated
async def test_a_changed_block_is_known_by_its_checksum_and_only_it_is_fetched_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore()
    ref, data = store.add("large", 5 * MIB + 1234)
    assert await read_once(store, tmp_path, ref) == data
    (file,) = data_files(tmp_path)
    _change(file, 3 * MIB + 5, ref.size - 1)
    for reads in range(2):
        asked = len(store.log)
        async with running(store, tmp_path) as reader:
            handle = reader.open(ref)
            assert await read_all(handle) == data
            handle.close()
            assert reader.statistics()["cache_damaged"] == (2 if reads == 0 else 0)
        if reads == 0:
            start = 5 * MIB
            assert sorted(store.ranges[asked:]) == [(3 * MIB, 64 * KIB), (start, ref.size - start)]
        else:
            assert len(store.log) == asked
    assert "damaged" in caplog.text


@simulated
async def test_a_damaged_checksum_costs_a_fetch_and_is_mended(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("large", 3 * MIB)
    assert await read_once(store, tmp_path, ref) == data
    (file,) = data_files(tmp_path)
    _change(file, ref.size + 8 * 7)
    for _ in range(2):
        async with running(store, tmp_path) as reader:
            handle = reader.open(ref)
            assert await read_all(handle) == data
            handle.close()
    assert store.ranges[-1] == (7 * 64 * KIB, 64 * KIB)
    assert store.ranges.count((7 * 64 * KIB, 64 * KIB)) == 1


@simulated
async def test_random_reads_prove_the_blocks_they_use(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("large", 8 * MIB)
    assert await read_once(store, tmp_path, ref) == data
    (file,) = data_files(tmp_path)
    _change(file, *range(1000, ref.size, 512 * KIB))
    places = random.Random(11).choices(range(ref.size), k=300)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        for offset in places:
            assert await handle.read(offset, 5000) == data[offset : offset + 5000]
        handle.close()


@simulated
async def test_an_adopted_file_gets_checksums_when_it_rests(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("adopted", 2 * MIB + 99)
    (tmp_path / "blob").write_bytes(data)
    async with running(store, tmp_path) as reader:
        assert reader.adopt(ref, tmp_path / "blob")
        await trio.sleep(1)
    with sqlite3.connect(tmp_path / "bucket" / "catalog.sqlite") as database:
        database.execute("UPDATE entry SET used_ns = 0")
    database.close()
    async with running(store, tmp_path) as reader:
        await trio.sleep(100)
    (file,) = data_files(tmp_path)
    _change(file, MIB)
    assert await read_once(store, tmp_path, ref) == data
    assert store.ranges == [(MIB, 64 * KIB)]


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
        assert reader._disk_cache.usable
        handle.close()
    assert await read_once(store, tmp_path, ref) == data


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
async def test_files_that_a_kill_left_behind_are_swept_when_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore()
    ref, data = store.add("key", 3000)
    await read_once(store, tmp_path, ref)
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


def test_the_cache_is_for_its_owner_alone(tmp_path: Path) -> None:
    async def fill() -> None:
        store = SlowStore()
        async with running(store, tmp_path / "cache") as reader:
            for size in (3000, 30_000, 3 * MIB):
                handle = reader.open(store.add(f"key{size}", size)[0])
                await handle.read(0, 10)
                handle.close()

    trio.run(fill)
    assert (tmp_path / "cache" / "bucket").stat().st_mode & 0o777 == 0o700
    files = data_files(tmp_path / "cache")
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]

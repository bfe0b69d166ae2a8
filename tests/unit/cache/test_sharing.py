"""Contents that come or are named otherwise than by reading, and mounts that share one folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from s3mount.boot_id import boot_id
from s3mount.cache.cache_catalog import CacheCatalog
from s3mount.cache.entry import digest_of
from s3mount.cache.eviction import _shave
from s3mount.cache.folder import CacheFolder
from s3mount.refs import ContentRef, ObjectHeaders
from tests.unit.cache.stores import (
    KIB,
    METADATA_BYTES,
    MIB,
    SlowStore,
    bodies,
    data_files,
    disk_bytes,
    read_all,
    running,
    simulated,
)


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
    assert len(data_files(tmp_path)) + len(bodies(tmp_path)) == 1


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
        other._disk_cache.want_room(12 * MIB)
        await trio.sleep(0.5)
        assert first.read_now(0, ref.size) == data
        assert second.read_now(0, ref.size) == data
        first.close()
        await trio.sleep(1)
        other._disk_cache.want_room(12 * MIB)
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
        catalog = CacheCatalog(tmp_path / "bucket", boot_id())
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

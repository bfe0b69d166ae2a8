"""What a reader sees and which requests it costs, under a virtual clock."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from s3mount.errors import (
    AccessDeniedError,
    EngineError,
    NoSuchKeyError,
    PreconditionFailedError,
    ServerFaultError,
    StoreError,
)
from s3mount.refs import ContentRef, ObjectHeaders
from tests.unit.cache.stores import KIB, MIB, Request, SlowStore, read_all, running, simulated


@simulated
async def test_a_small_object_costs_one_get_of_the_whole(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.02)
    ref, data = store.add("small", 64 * KIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        assert store.log == []
        started = trio.current_time()
        assert handle.read_now(0, 4096) is None
        assert await handle.read(0, 4096) == data[:4096]
        assert trio.current_time() - started == pytest.approx(store.latency_s)
        assert handle.read_now(60 * KIB, MIB) == data[60 * KIB :]
        assert store.log == [Request("get", "small", 0, 0, ref.etag, None)]
        handle.close()


@simulated
async def test_an_empty_object_costs_nothing(tmp_path: Path) -> None:
    store = SlowStore()
    async with running(store, tmp_path) as reader:
        handle = reader.open(ContentRef("empty", "etag", 0))
        assert handle.read_now(0, 10) == b""
        assert await handle.read(0, 10) == b""
        handle.close()
    assert store.log == []


@simulated
async def test_a_random_read_of_a_large_object_fetches_one_small_range(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("large", 64 * MIB)
    rnd = random.Random(3)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        for count in range(1, 30):
            offset = rnd.randrange(ref.size // 4096 - 4) * 4096
            fetched = await handle.read(offset, 16 * KIB)
            assert fetched == data[offset : offset + 16 * KIB]
            assert len(store.log) <= count
        assert all(length <= 128 * KIB for _, length in store.ranges)
        handle.close()


@simulated
async def test_a_cold_sequential_read_travels_in_parallel_large_ranges(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.02, bytes_per_s=50e6)
    ref, data = store.add("large", 200 * MIB)
    async with running(store, tmp_path, size_bytes_max=400 * MIB) as reader:
        handle = reader.open(ref)
        started = trio.current_time()
        assert await read_all(handle, MIB) == data
        duration_s = trio.current_time() - started
        handle.close()
    assert 8 <= store.running_max <= 16
    # One connection would take 4.2 s, eight 0.52 s.
    assert duration_s < 0.75
    assert sum(length for _, length in store.ranges) == ref.size
    assert len(store.log) < 45
    assert 8 * MIB <= max(length for _, length in store.ranges) <= 12 * MIB


@simulated
async def test_a_waiting_read_gets_its_bytes_before_the_range_ends(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.02, bytes_per_s=1e6)
    ref, data = store.add("large", 64 * MIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        started = trio.current_time()
        assert await handle.read(0, 256 * KIB) == data[: 256 * KIB]
        assert trio.current_time() - started < 0.4
        assert reader.statistics()["cache_prefetch_bytes"] > 0
        handle.close()


@simulated
async def test_readers_of_the_same_blocks_share_one_request(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("large", 64 * MIB)
    small, body = store.add("small", 1000)
    async with running(store, tmp_path) as reader:
        handles = [reader.open(ref) for _ in range(10)]
        smalls = [reader.open(small) for _ in range(10)]

        async def read(index: int) -> None:
            offset = 5 * MIB + index * 4096
            assert await handles[index].read(offset, 4096) == data[offset : offset + 4096]
            assert await smalls[index].read(0, 10) == body[:10]

        async with trio.open_nursery() as nursery:
            for index in range(10):
                nursery.start_soon(read, index)
        assert len(store.log) == 2
        for handle in handles + smalls:
            handle.close()


@simulated
async def test_a_cancelled_read_does_not_hurt_the_others(tmp_path: Path) -> None:
    store = SlowStore(latency_s=1)
    ref, data = store.add("large", 4 * MIB)
    small, body = store.add("small", 1000)
    async with running(store, tmp_path) as reader:
        for content, wanted in ((ref, data[:100]), (small, body[:100])):
            first, second = reader.open(content), reader.open(content)
            results: list[bytes] = []

            async def read(handle: object = second, into: list[bytes] = results) -> None:
                into.append(await second.read(0, 100))  # noqa: B023

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                with trio.move_on_after(0.5):
                    await first.read(0, 100)
                first.close()
            assert results == [wanted]
            second.close()
        assert len(store.log) == 2


@simulated
async def test_demand_goes_before_what_is_read_ahead(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.02, bytes_per_s=1e6)
    refs = [store.add(f"large{index}", 150 * MIB)[0] for index in range(3)]
    async with running(
        store, tmp_path, size_bytes_max=1 << 30, prefetch_bytes_max=1 << 30
    ) as reader:
        async with trio.open_nursery() as nursery:
            handles = [reader.open(ref) for ref in refs]

            async def stream(number: int) -> None:
                for offset in range(0, 40 * MIB, MIB):
                    await handles[number].read(offset, MIB)

            nursery.start_soon(stream, 0)
            nursery.start_soon(stream, 1)
            await trio.sleep(30)
            started = trio.current_time()
            await handles[2].read(70 * MIB, 4096)
            # One round trip and one block, however much is on its way for the others.
            assert trio.current_time() - started < 0.1
            nursery.cancel_scope.cancel()
        for handle in handles:
            handle.close()


@simulated
async def test_a_jump_into_what_is_on_its_way_does_not_wait_for_all_before_it(
    tmp_path: Path,
) -> None:
    store = SlowStore(latency_s=0.02, bytes_per_s=1e6)
    ref, data = store.add("large", 64 * MIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        for offset in range(0, 6 * MIB, MIB):
            await handle.read(offset, MIB)
        target = max(store.ranges)[0] + 6 * MIB
        assert target > 16 * MIB
        before = len(store.log)
        started = trio.current_time()
        assert handle.read_now(target, 16 * KIB) is None
        assert await handle.read(target, 16 * KIB) == data[target : target + 16 * KIB]
        assert trio.current_time() - started < 0.1
        assert len(store.log) == before + 1
        # A reader that goes on there, or comes there in a row, does not ask twice.
        for offset in range(target, target + 4 * MIB, 128 * KIB):
            await handle.read(offset, 128 * KIB)
        assert len(store.log) < before + 12
        handle.close()


@simulated
async def test_what_random_reads_left_does_not_cut_a_sequential_read_to_pieces(
    tmp_path: Path,
) -> None:
    store = SlowStore(latency_s=0.001)
    ref, data = store.add("large", 32 * MIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        for offset in range(64 * KIB, ref.size, 256 * KIB):
            await handle.read(ref.size - offset, 4096)
        handle.close()
        store.log.clear()
        handle = reader.open(ref)
        assert await read_all(handle) == data
        handle.close()
    assert len(store.log) < 20


@simulated
async def test_closing_drops_what_was_read_ahead_for_nobody_else(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.02, bytes_per_s=1e6)
    ref, _ = store.add("large", 64 * MIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        for offset in range(0, 4 * MIB, MIB):
            await handle.read(offset, MIB)
        assert store.running >= 2
        handle.close()
        await trio.sleep(0.01)
        assert store.running == 0
        assert reader.statistics()["cache_prefetch_bytes"] == 0


@simulated
async def test_the_budget_bounds_all_that_is_read_ahead(tmp_path: Path) -> None:
    store = SlowStore(latency_s=0.02, bytes_per_s=20e6)
    refs = [store.add(f"large{index}", 60 * MIB)[0] for index in range(4)]
    async with running(store, tmp_path, prefetch_bytes_max=32 * MIB) as reader:
        handles = [reader.open(ref) for ref in refs]
        done: list[int] = []

        async def stream(number: int) -> None:
            for offset in range(0, 60 * MIB, MIB):
                await handles[number].read(offset, MIB)
                assert reader.statistics()["cache_prefetch_bytes"] <= 32 * MIB
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(stream, number)
        started_last = trio.current_time()
        assert sorted(done) == [0, 1, 2, 3]
        # Fair: nobody had to wait until another had finished.
        assert started_last < 60 * MIB * 4 / (20e6 * 4)
        for handle in handles:
            handle.close()


@pytest.mark.parametrize("size", [1000, 5 * MIB])
@simulated
async def test_a_replaced_object_is_refused_not_mixed(tmp_path: Path, size: int) -> None:
    store = SlowStore()
    ref, data = store.add("key", size)
    async with running(store, tmp_path) as reader:
        old = reader.open(ref)
        if size > MIB:
            assert await old.read(0, 4096) == data[:4096]
        new_ref, new_data = store.add("key", size, seed=1)
        with pytest.raises(PreconditionFailedError):
            await old.read(size - 500, 500)
        if size > MIB:
            assert await old.read(0, 4096) == data[:4096]
        new = reader.open(new_ref)
        assert await new.read(size - 500, 500) == new_data[-500:]
        await store.delete("key")
        with pytest.raises(NoSuchKeyError):
            await old.read(size - 500, 500)
        old.close()
        new.close()


@simulated
async def test_versions_are_asked_for_by_their_id_too(tmp_path: Path) -> None:
    store = SlowStore()
    store.set_versioning("enabled")
    ref, data = store.add("key", 3 * MIB)
    store.add("key", 3 * MIB, seed=1)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        assert await read_all(handle) == data
        handle.close()
    assert {(one.version_id, one.if_match) for one in store.log} == {(ref.version_id, ref.etag)}


@pytest.mark.parametrize("size", [1000, 3 * MIB])
@simulated
async def test_an_error_reaches_the_reader_and_the_next_try_asks_again(
    tmp_path: Path, size: int
) -> None:
    store = SlowStore()
    ref, data = store.add("key", size)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        store.fail = lambda request: AccessDeniedError("no", key=request.key, status=403)
        with pytest.raises(AccessDeniedError):
            await handle.read(0, 100)
        store.fail = lambda request: None
        assert await read_all(handle) == data
        handle.close()


@simulated
async def test_what_fails_ahead_is_silent_and_asked_for_again_when_needed(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("key", 32 * MIB)
    failed: list[Request] = []
    is_failing = True

    def fail_some(request: Request) -> StoreError | None:
        if request.start < 2 * MIB or not is_failing:
            return None
        failed.append(request)
        return ServerFaultError("no", key=request.key, status=500)

    store.fail = fail_some
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        pieces = []
        for offset in range(0, ref.size, 128 * KIB):
            is_failing = offset < MIB
            pieces.append(await handle.read(offset, 128 * KIB))
            await trio.sleep(1)
        assert b"".join(pieces) == data
        assert reader.statistics()["cache_prefetch_failures"] == len(failed) > 0
        # And not bit by bit from then on.
        assert len(store.log) < 20
        handle.close()


@simulated
async def test_what_is_cached_survives_a_remount(tmp_path: Path) -> None:
    store = SlowStore()
    large, data = store.add("large", 3 * MIB + 17)
    small, body = store.add("small", 3000)
    async with running(store, tmp_path) as reader:
        for ref in (large, small):
            handle = reader.open(ref)
            await read_all(handle)
            handle.close()
    store.log.clear()
    async with running(store, tmp_path) as reader:
        for ref, wanted in ((large, data), (small, body)):
            handle = reader.open(ref)
            assert handle.read_now(0, ref.size) == wanted
            handle.close()
    assert store.log == []


@simulated
async def test_a_partly_cached_object_is_completed_after_a_remount(tmp_path: Path) -> None:
    store = SlowStore()
    ref, data = store.add("large", 3 * MIB)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        await handle.read(MIB, 64 * KIB)
        handle.close()
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        assert handle.read_now(MIB, 64 * KIB) == data[MIB : MIB + 64 * KIB]
        assert handle.read_now(MIB, 64 * KIB + 1) is None
        assert await read_all(handle) == data
        handle.close()
    assert sum(length for _, length in store.ranges) == ref.size


@pytest.mark.parametrize("size", [1000, 3 * MIB])
@simulated
async def test_without_an_etag_nothing_is_shared_or_kept(tmp_path: Path, size: int) -> None:
    store = SlowStore()
    known, data = store.add("key", size)
    ref = ContentRef("key", "", size)
    async with running(store, tmp_path) as reader:
        for round_number in (1, 2):
            handle = reader.open(ref)
            assert await handle.read(0, 500) == data[:500]
            handle.close()
            assert len(store.log) == round_number
        handle = reader.open(ref)
        await handle.read(0, 500)
        store.put_now("key", data[::-1])
        if size > MIB:
            with pytest.raises(PreconditionFailedError):
                await handle.read(size - 500, 500)
        else:
            assert await handle.read(size - 500, 500) == data[-500:]
        handle.close()
    assert known.size == size


@simulated
async def test_a_store_that_ignores_conditions_is_not_believed(tmp_path: Path) -> None:
    class Careless(SlowStore):
        def _read(self, key, byte_range, version_id, if_match):  # type: ignore[no-untyped-def]
            return super()._read(key, byte_range, version_id, None)

    store = Careless()
    for size in (1000, 3 * MIB):
        ref, _ = store.add("key", size)
        store.add("key", size, seed=1)
        async with running(store, tmp_path) as reader:
            handle = reader.open(ref)
            for _ in range(2):
                with pytest.raises(PreconditionFailedError):
                    await handle.read(size - 500, 500)
            handle.close()
            again = reader.open(ref)
            assert again.read_now(size - 500, 500) is None
            again.close()


@simulated
async def test_a_closed_cache_fails_its_readers_instead_of_hanging(tmp_path: Path) -> None:
    store = SlowStore(latency_s=100)
    large, _ = store.add("large", 3 * MIB)
    small, _ = store.add("small", 100)
    outcomes: list[str] = []

    async with trio.open_nursery() as nursery, running(store, tmp_path) as reader:
        handles = [reader.open(large), reader.open(small)]

        async def read(number: int) -> None:
            try:
                await handles[number].read(0, 10)
            except EngineError:
                outcomes.append("told")

        nursery.start_soon(read, 0)
        nursery.start_soon(read, 1)
        await trio.sleep(1)
    assert outcomes == ["told", "told"]
    for handle in handles:
        with pytest.raises(EngineError):
            await handle.read(0, 10)
        handle.close()
        handle.close()


@simulated
async def test_statistics_count_what_happened(tmp_path: Path) -> None:
    store = SlowStore()
    ref, _ = store.add("small", 1000)
    async with running(store, tmp_path) as reader:
        handle = reader.open(ref)
        assert handle.read_now(0, 10) is None
        await handle.read(0, 10)
        await handle.read(0, 10)
        handle.read_now(0, 10)
        handle.close()
        await trio.sleep(1)
        found = reader.statistics()
    assert found["cache_misses"] == 1
    assert found["cache_hits"] == 2
    assert found["cache_requests"] == 1
    assert found["cache_fetched_bytes"] == 1000
    assert found["cache_bytes"] == 4096
    assert found["cache_open_entries"] == 0


@simulated
async def test_materialize_brings_all_and_keeps_it_when_the_object_is_gone(tmp_path: Path) -> None:
    store = SlowStore(bytes_per_s=50e6)
    large, data = store.add("large", 40 * MIB + 1)
    small, body = store.add("small", 3000)
    async with running(store, tmp_path, size_bytes_max=48 * MIB) as reader:
        started = trio.current_time()
        await reader.materialize(large)
        assert trio.current_time() - started < 0.3
        await reader.materialize(small)
        await store.delete("large")
        await store.delete("small")
        other, _ = store.add("other", 40 * MIB)
        handle = reader.open(other)
        await read_all(handle, MIB)
        handle.close()
        for ref, wanted in ((large, data), (small, body)):
            handle = reader.open(ref)
            assert await read_all(handle, MIB) == wanted
            handle.close()
            reader.unpin(ref)
            reader.unpin(ref)


@simulated
async def test_materialize_raises_what_hinders_it(tmp_path: Path) -> None:
    store = SlowStore()
    ref, _ = store.add("large", 40 * MIB)
    await store.put("large", b"other", ObjectHeaders())
    async with running(store, tmp_path) as reader:
        with pytest.raises(PreconditionFailedError):
            await reader.materialize(ref)
        await trio.sleep(1)
        assert reader.statistics()["cache_open_entries"] == 0


@simulated
async def test_readers_share_what_may_be_read_ahead_evenly(tmp_path: Path) -> None:
    """Three that begin later come as far in the same time as the one that had all for itself before."""
    store = SlowStore(latency_s=0.02, bytes_per_s=10e6)
    refs = [store.add(f"large-{number}", 40 * MIB)[0] for number in range(4)]
    done = [0] * 4
    async with running(store, tmp_path, prefetch_bytes_max=32 * MIB) as reader:

        async def read_on(number: int) -> None:
            handle = reader.open(refs[number])
            while piece := await handle.read(done[number], 128 * KIB):
                done[number] += len(piece)
            handle.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on, 0)
            while done[0] < 8 * MIB:  # noqa: ASYNC110 - the clock is virtual
                await trio.sleep(0.01)
            before = done[0]
            for number in (1, 2, 3):
                nursery.start_soon(read_on, number)
            while min(done[1:]) < 16 * MIB:
                await trio.sleep(0.01)
                assert reader.statistics()["cache_prefetch_bytes"] <= 32 * MIB
            progress = [done[0] - before, *done[1:]]
            nursery.cancel_scope.cancel()
    assert max(progress) <= 2 * min(progress), progress

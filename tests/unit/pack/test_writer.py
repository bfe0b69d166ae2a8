"""The writer of packs on a store in memory: what it tells before S3 has it, and what becomes of it when S3 fails."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio
import trio.testing

from s3mount.errors import (
    AccessDeniedError,
    ObjectExistsError,
    PackError,
    PackFullError,
    ServerFaultError,
    UsageError,
)
from s3mount.pack import index
from s3mount.pack.batch import Batch
from s3mount.pack.entry import Entry
from s3mount.pack.finding import Loaded, Pack, alive, find_packs, index_inside, load
from s3mount.pack.writer import UNDER_WAY_MAX, Limits, PackBatch, Placed, open_writer
from s3mount.refs import ObjectHeaders, ObjectInfo
from s3mount.testing.memory_store import MemoryStore, NoFaults


class Clock:
    """Wall time that a test sets."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def now_ns(self) -> int:
        return self.now_ms * 1_000_000


class Faults(NoFaults):
    """Calls ``fail`` around each PUT."""

    def __init__(
        self,
        before: Callable[[str], None] | None = None,
        after: Callable[[str], None] | None = None,
    ) -> None:
        self._before, self._after = before, after

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if operation == "put" and self._before is not None:
            self._before(str(arguments["key"]))

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "put" and self._after is not None:
            self._after(str(arguments["key"]))


def run(main: Callable[[], Awaitable[None]]) -> None:
    """With time that passes when nobody works."""

    async def bounded() -> None:
        with trio.fail_after(10_000):
            await main()

    trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))


def member_at(store: MemoryStore, placed: Placed[PackBatch]) -> bytes:
    return store.contents()[placed.batch.key][placed.body : placed.body + placed.size]


async def all_alive(store: MemoryStore, prefix: str = "") -> dict[str, Entry]:
    packs = [await load(store, pack, pack.tar.key) for pack in await find_packs(store, prefix)]
    return {each.key: each.entry for each in alive([pack for pack in packs if pack])}


def test_where_a_member_will_lie_is_told_before_it_does() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with open_writer(
            store, "b", "in/", Limits(seconds=5), storage_class="STANDARD_IA", clock=Clock()
        ) as writer:
            placed = [
                await writer.put(name, body, mode=0o600)
                for name, body in (("a", b"1" * 700), ("b/" * 80 + "c", b""), ("d", b"4"))
            ]
            assert store.contents() == {}
            assert placed[0].key.startswith("in/1700000000000-")
            stored = await placed[0].batch.wait()
            assert (stored.key, stored.files) == (placed[0].key, 3)
            assert trio.current_time() == pytest.approx(5)
            assert [member_at(store, each) for each in placed] == [b"1" * 700, b"", b"4"]
            tar_info = await store.head(stored.key)
            assert tar_info.headers is not None
            assert tar_info.storage_class == "STANDARD_IA" or (
                tar_info.headers.storage_class == "STANDARD_IA"
            )
        with tarfile.open(fileobj=io.BytesIO(store.contents()[stored.key])) as tar:
            assert tar.getmember("d").mtime == 1_700_000_000
        assert set(await all_alive(store)) == {f"in/{each.name}" for each in placed}

    run(main)


def test_a_pack_is_closed_by_its_size_and_by_its_members() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with open_writer(store, "b", "", Limits(bytes=10_000, files=3)) as writer:
            keys = [(await writer.put(f"s{n}", b"x")).key for n in range(7)]
            assert [keys.count(key) for key in dict.fromkeys(keys)] == [3, 3, 1]
            large = [(await writer.put(f"l{n}", b"x" * 4000)).key for n in range(4)]
            assert [large.count(key) for key in dict.fromkeys(large)] == [1, 2, 1]
            alone = await writer.put("alone", b"x" * 20_000)
            await writer.close()
            assert member_at(store, alone) == b"x" * 20_000
        assert len(await all_alive(store)) == 12
        # Names of packs stand in the order in which they were begun.
        assert list(dict.fromkeys(keys)) == sorted(dict.fromkeys(keys))

    run(main)


def test_bad_names_are_refused_alone() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with open_writer(store, "b", "", Limits()) as writer:
            for bad in ("", "a\0", "x" * 2000, "\udcff"):
                with pytest.raises(UsageError):
                    await writer.put(bad, b"1")
                with pytest.raises(UsageError):
                    writer.try_put(bad, b"1")
            await writer.put("good", b"1")
            await writer.close()
        assert list(await all_alive(store)) == ["good"]

    run(main)


def test_put_waits_and_try_put_refuses_while_too_much_waits_for_s3() -> None:
    async def main() -> None:
        store = MemoryStore()
        gate = trio.Event()

        class Gate(NoFaults):
            async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
                if operation == "put":
                    await gate.wait()

        store.faults = Gate()
        async with open_writer(store, "b", "", Limits(files=1)) as writer:
            for number in range(UNDER_WAY_MAX):
                writer.try_put(f"{number}", b"x")
            with pytest.raises(PackFullError):
                writer.try_put("more", b"x")
            with trio.move_on_after(100) as waited:
                await writer.put("waits", b"x")
            assert waited.cancelled_caught
            gate.set()
            await writer.put("goes", b"x")
            await writer.close()
        assert sorted(await all_alive(store)) == ["0", "1", "2", "3", "4", "goes"]

    run(main)


def test_what_fails_for_now_is_sent_until_s3_has_it() -> None:
    async def main() -> None:
        store = MemoryStore()
        left = 60

        def fail(key: str) -> None:
            nonlocal left
            left -= 1
            if left > 0:
                raise ServerFaultError("busy", status=500)

        store.faults = Faults(before=fail)
        async with open_writer(store, "b", "", Limits()) as writer:
            placed = await writer.put("a", b"1")
            await writer.close()
            assert member_at(store, placed) == b"1"
        assert list(await all_alive(store)) == ["a"]

    run(main)


@pytest.mark.parametrize("suffix", [".tar", ".tar.idx"])
def test_an_answer_that_is_lost_makes_no_second_pack(suffix: str) -> None:
    async def main() -> None:
        store = MemoryStore(opaque_etags=True)
        lost: list[str] = []

        def lose(key: str) -> None:
            if key.endswith(suffix) and not lost:
                lost.append(key)
                raise ServerFaultError("lost", status=500)

        store.faults = Faults(after=lose)
        async with open_writer(store, "b", "", Limits()) as writer:
            placed = await writer.put("a", b"1")
            await writer.close()
        assert lost
        assert sorted(store.contents()) == [placed.key, f"{placed.key}.idx"]

    run(main)


def test_what_s3_refuses_is_kept_and_close_tries_it_again() -> None:
    async def main() -> None:
        store = MemoryStore()

        def refuse(key: str) -> None:
            raise AccessDeniedError("no", status=403)

        store.faults = Faults(before=refuse)
        async with open_writer(store, "b", "", Limits(files=1)) as writer:
            placed = await writer.put("a", b"1")
            with pytest.raises(AccessDeniedError):
                await placed.batch.wait()
            with pytest.raises(AccessDeniedError):
                await writer.put("b", b"2")
            with pytest.raises(AccessDeniedError):
                await writer.close()
            store.faults = NoFaults()
            await writer.close()
            await placed.batch.wait()
            await writer.put("b", b"2")
            await writer.close()
        assert list(await all_alive(store)) == ["a", "b"]

    run(main)


def test_windows_give_the_names_and_offsets_of_the_batches_of_the_past() -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock(1_700_000_012_345)
        limits = Limits(seconds=5, windows=True)
        async with open_writer(store, "b", "logs/", limits, layout="v7", clock=clock) as writer:
            first = await writer.put("first", b"1" * 8192, mode=0o600)
            second = await writer.put("second", b"2", mode=0o600)
            assert (first.key, first.header, first.size) == ("logs/1700000010000.tar", 0, 8192)
            assert (second.key, second.header) == ("logs/1700000010000.tar", 8704)
            clock.now_ms = 1_700_000_015_000
            third = await writer.put("third", b"3")
            assert (third.key, third.header) == ("logs/1700000015000.tar", 0)
            # What was flushed within its window cannot grow: the next has another name, which is told.
            await writer.flush()
            fourth = await writer.put("fourth", b"4")
            assert fourth.key.startswith("logs/1700000015000-")
            began_s = trio.current_time()
            await fourth.batch.wait()
            assert trio.current_time() - began_s == pytest.approx(5, abs=0.1)
        for placed, body in ((second, b"2"), (third, b"3"), (fourth, b"4")):
            assert member_at(store, placed) == body
        with tarfile.open(fileobj=io.BytesIO(store.contents()[first.key])) as tar:
            assert tar.getnames() == ["first", "second"]

    run(main)


def test_two_writers_of_one_window_lose_nothing_and_the_second_is_told() -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock()
        limits = Limits(seconds=1, windows=True)
        async with (
            open_writer(store, "b", "", limits, clock=clock) as one,
            open_writer(store, "b", "", limits, clock=clock) as two,
        ):
            mine = await one.put("mine", b"1")
            await one.close()
            other = await two.put("other", b"2")
            assert mine.key == other.key == "1700000000000.tar"
            with pytest.raises(ObjectExistsError, match="this pack is s3://b/1700000000000-"):
                await other.batch.wait()
        assert sorted(await all_alive(store)) == ["mine", "other"]
        assert member_at(store, other) == b"2"

    run(main)


def test_a_later_pack_replaces_and_deletes_whatever_the_clock_says() -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock()
        async with open_writer(store, "b", "p/", Limits(files=1), clock=clock) as writer:
            await writer.put("a", b"old")
            await writer.put("gone", b"1")
            clock.now_ms -= 10_000
            await writer.put("a", b"newer")
            await writer.delete("gone")
            await writer.close()
        found = await all_alive(store)
        assert list(found) == ["p/a"]
        assert found["p/a"].size == 5

    run(main)


def test_a_pack_without_its_index_object_is_read_by_its_last_member() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with open_writer(store, "b", "", Limits()) as writer:
            for number in range(2500):
                await writer.put(f"{number:05}/{number * 7919}", b"%d" % number)
            await writer.close()
        (pack,) = await find_packs(store, "")
        assert pack.beside is not None
        beside = await load(store, pack, "here")
        await store.delete(f"{pack.tar.key}.idx")
        (bare,) = await find_packs(store, "")
        inside = await load(store, bare, "here")
        assert beside is not None
        assert inside is not None
        assert inside.contents.entries == beside.contents.entries
        assert len(inside.contents.entries) == 2500

    # A thread's time is not the clock's of a test.
    trio.run(main)


@pytest.mark.parametrize("data", [b"", b"x" * 100, bytes(1024), b"x" * 300_000], ids=len)
def test_what_is_no_pack_has_no_index_inside(data: bytes) -> None:
    async def main() -> None:
        store = MemoryStore()
        await store.put("k.tar", data, ObjectHeaders())
        assert await index_inside(store, await store.head("k.tar")) is None

    run(main)


def test_an_index_of_another_tar_file_is_not_believed() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with open_writer(store, "b", "", Limits()) as writer:
            placed = await writer.put("a", b"1")
            await writer.close()
        data = store.contents()[placed.key]
        await store.put(placed.key, data[:-1] + b"x", ObjectHeaders())
        (pack,) = await find_packs(store, "")
        with pytest.raises(PackError, match="replaced"):
            await load(store, pack, "here")

    run(main)


def entry(name: str, **more: Any) -> Entry:
    return Entry(name, 0, 512, 1, **more)


def test_the_order_of_an_entry_outlives_the_pack_that_it_moves_to() -> None:
    def loaded(pack_id: str, *entries: Entry) -> Loaded:
        tar = ObjectInfo(f"f/{pack_id}.tar", 5000, "e", 1)
        return Loaded(Pack(tar, None), index.Index(index.Head(1, pack_id, "x"), list(entries)))

    compacted = loaded("5", entry("a", order="1"), entry("b", order="3"))
    between = loaded("2", entry("a"), entry("b"))
    assert {each.key: each.loaded for each in alive([compacted, between])} == {
        "f/a": between,
        "f/b": compacted,
    }
    same = loaded("6", entry("b", order="3"))
    assert [each.loaded for each in alive([same, compacted]) if each.key == "f/b"] == [same]
    twice = loaded("7", entry("c"), entry("c", mode="0600"))
    assert [each.entry.mode for each in alive([twice])] == ["0600"]


@pytest.mark.parametrize(
    "limits",
    [Limits(bytes=0), Limits(files=0), Limits(bytes=6 << 30), Limits(windows=True)],
    ids=itertools.count(),
)
def test_limits_that_cannot_be_are_refused(limits: Limits) -> None:
    async def main() -> None:
        async with open_writer(MemoryStore(), "b", "", limits):
            raise AssertionError("it was taken")

    with pytest.raises(UsageError):
        run(main)


def test_an_index_inside_a_pack_names_nothing_outside_of_it() -> None:
    async def main() -> None:
        store = MemoryStore()
        batch = Batch("1", "1.tar")
        batch.entries.append(Entry("a", 0, 512, 1 << 40))
        batch.finish()
        await store.put("1.tar", batch.body, ObjectHeaders())
        batch.close()
        (pack,) = await find_packs(store, "")
        with pytest.raises(PackError, match="outside"):
            await load(store, pack, "here")

    run(main)


def test_packs_of_one_id_have_one_order_for_whoever_looks() -> None:
    def loaded(key: str) -> Loaded:
        pack = Pack(ObjectInfo(key, 5000, "e", 1), None)
        return Loaded(pack, index.Index(index.Head(1, "5", "x"), [entry("a")]))

    first, second = loaded("f/5-1.tar"), loaded("f/5-2.tar")
    for packs in ([first, second], [second, first]):
        assert [each.loaded for each in alive(packs)] == [second]


def test_a_large_member_goes_by_a_thread_and_lies_where_it_is_told() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with open_writer(store, "b", "", Limits()) as writer:
            body = bytes(range(256)) * 10_000
            placed = [await writer.put(name, body) for name in ("a", "b")]
            await writer.close()
            assert all(member_at(store, each) == body for each in placed)

    # A thread's time is not the clock's of a test.
    trio.run(main)

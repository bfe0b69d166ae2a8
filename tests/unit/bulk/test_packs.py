"""Unpacking and compacting on a store in memory, while others write, compact, replace and fail."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import pytest
import trio

from s3mount.bulk.location import LocalPath, S3Location
from s3mount.bulk.packs.compacting import Compacting, plan
from s3mount.bulk.packs.members import GAP_BYTES_MAX, Sink, Span, read_spans
from s3mount.bulk.packs.named import loaded_packs, make_index
from s3mount.bulk.packs.unpacking import Unpacking
from s3mount.bulk.report import Report
from s3mount.bulk.selecting import ALL_NAMES
from s3mount.errors import ObjectExistsError, PackError, ServerFaultError
from s3mount.pack.finding import alive
from s3mount.pack.writer import Limits, open_writer
from s3mount.refs import ObjectHeaders
from s3mount.testing.memory_store import MemoryStore, NoFaults

FOLDER = S3Location("b", "p/")
DAY_MS = 86_400_000


class Clock:
    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def now_ns(self) -> int:
        return self.now_ms * 1_000_000


def report() -> tuple[Report, list[str]]:
    """A report, and what it complained of."""
    said: list[str] = []
    return Report("pack", write=lambda line: None, complain=said.append), said


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(bounded)


async def write(
    store: MemoryStore, clock: Clock, members: Mapping[str, bytes | None], files: int = 1000
) -> None:
    """Packs of these members; ``None`` deletes."""
    limits = Limits(files=files)
    async with open_writer(store, "b", "p/", limits, clock=clock, gives_up=True) as writer:
        for name, data in members.items():
            if data is None:
                await writer.delete(name)
            else:
                await writer.put(name, data)
        await writer.close()
    clock.now_ms += 1000


async def contents(store: MemoryStore) -> dict[str, bytes]:
    """What there is, read where it is said to lie."""
    told, _ = report()
    found = alive(await loaded_packs(store, FOLDER, told, "test"))
    assert told.counts.failed == 0
    data = store.contents()
    return {
        each.key[2:]: data[each.loaded.pack.tar.key][each.entry.body :][: each.entry.size]
        for each in found
    }


async def compact(store: MemoryStore, clock: Clock, live_below: float = 0.5) -> Report:
    told, _ = report()
    await Compacting(store, FOLDER, told, limits=Limits(), live_below=live_below, clock=clock).run()
    return told


MANY: dict[str, bytes | None] = {f"{n:03}": b"%d" % n * 300 for n in range(100)}


def test_compaction_keeps_what_is_alive_and_frees_the_rest() -> None:
    async def main() -> None:
        store, clock = MemoryStore(versioning="enabled"), Clock()
        await write(store, clock, MANY, files=50)
        await write(store, clock, dict.fromkeys(list(MANY)[10:], None))
        before = await contents(store)
        assert sorted(before) == list(MANY)[:10]
        size = sum(map(len, store.contents().values()))
        told = await compact(store, clock)
        assert (told.counts.failed, told.counts.objects) == (0, 2)
        assert await contents(store) == before
        assert sum(map(len, store.contents().values())) < size / 2
        pages = await store.list_versions_page("p/")
        assert not any(each.is_delete_marker for each in pages.versions)
        # Again there is nothing to do, and then the tombstones go with what they hid.
        again = await compact(store, clock)
        assert again.counts.objects == 0
        assert await contents(store) == before

    run(main)


def test_tombstones_stay_as_long_as_anything_may_come_back() -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock()
        await write(store, clock, {"a": b"1" * 5000, "b": b"2"})
        await write(store, clock, {"a": None, "x": b"y" * 9000})
        await write(store, clock, {"x": b"z"})
        await compact(store, clock)
        told, _ = report()
        packs = await loaded_packs(store, FOLDER, told, "test")
        assert [e.name for p in packs for e in p.contents.entries if e.deleted] == ["a"]
        assert await contents(store) == {"b": b"2", "x": b"z"}
        # A pack that was begun before the deletion arrives after the compaction.
        late = Clock(1_700_000_000_500)
        await write(store, late, {"a": b"late"})
        assert await contents(store) == {"b": b"2", "x": b"z"}
        clock.now_ms += 3 * DAY_MS
        for _ in range(2):
            await compact(store, clock, live_below=1.0)
            assert await contents(store) == {"b": b"2", "x": b"z"}

    run(main)


def test_what_is_written_during_a_compaction_stays_later() -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock()
        await write(store, clock, MANY)
        await write(store, clock, dict.fromkeys(list(MANY)[10:], None))
        other = store.observer()

        class Meddler(NoFaults):
            done = False

            async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
                if operation == "put" and not Meddler.done:
                    Meddler.done = True
                    await write(other, Clock(clock.now_ms - 500), {"000": b"newer", "001": None})

        store.faults = Meddler()
        await compact(store, clock)
        assert Meddler.done
        found = await contents(other)
        assert found["000"] == b"newer"
        assert "001" not in found
        assert len(found) == 9

    run(main)


@pytest.mark.parametrize("fails", [1, 1000], ids=["once", "from then on"])
@pytest.mark.parametrize("step", range(16))
def test_a_request_that_fails_loses_nothing_and_brings_nothing_back(step: int, fails: int) -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock()
        await write(store, clock, MANY, files=40)
        gone = dict.fromkeys(list(MANY)[10:], None)
        await write(store, clock, {"x": b"1" * 9000, "y": b"2"} | gone)
        await write(store, clock, {"x": b""})
        clock.now_ms += 2 * DAY_MS
        before = await contents(store)

        class Ends(NoFaults):
            left = step

            async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
                if operation in ("put", "delete", "head"):
                    self.left -= 1
                    if -fails <= self.left < 0:
                        raise ServerFaultError("gone", status=500)

        store.faults = Ends()
        await compact(store, clock)
        store.faults = NoFaults()
        assert await contents(store) == before
        clock.now_ms += 2 * DAY_MS
        told = await compact(store, clock)
        assert told.counts.failed == 0
        assert await contents(store) == before

    run(main)


def test_two_compactions_at_once_lose_nothing() -> None:
    async def main() -> None:
        rng = random.Random(5)
        for _ in range(10):
            store, clock = MemoryStore(), Clock()
            for _ in range(4):
                names = rng.sample(list(MANY), 40)
                await write(
                    store, clock, {n: MANY[n] if rng.random() < 0.5 else None for n in names}
                )
            before = await contents(store)

            class Slow(NoFaults):
                async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
                    for _ in range(rng.randrange(20)):
                        await trio.lowlevel.checkpoint()

            stores = [store.observer(), store.observer()]
            async with trio.open_nursery() as nursery:
                for each in stores:
                    each.faults = Slow()
                    nursery.start_soon(compact, each, Clock(clock.now_ms), 0.9)
            assert await contents(store) == before

    run(main)


def test_a_pack_with_a_member_that_is_not_as_it_was_stays() -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock()
        await write(store, clock, {"a": b"1" * 5000, "b": b"2" * 100})
        (key,) = [key for key in store.contents() if key.endswith(".tar")]
        await write(store, clock, {"a": None})
        whole = store.contents()[key]
        # The bytes rot below the ETag.
        rot(store, key, whole.replace(b"2" * 100, b"3" * 100))
        told = await compact(store, clock)
        assert told.counts.failed == 1
        assert key in store.contents()

    run(main)


def rot(store: MemoryStore, key: str, data: bytes) -> None:
    """Other bytes are under the key, and all that S3 tells of it stays."""
    history = store._bucket.versions[key]
    history[-1] = msgspec.structs.replace(history[-1], data=data)


def test_nothing_is_compacted_while_an_index_cannot_be_read() -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock()
        await write(store, clock, MANY)
        await write(store, clock, dict.fromkeys(list(MANY)[10:], None))
        (first, _) = sorted(key for key in store.contents() if key.endswith(".idx"))
        await store.put(first, b"damaged", ObjectHeaders())
        keys = set(store.contents())
        with pytest.raises(PackError, match="nothing was compacted"):
            await compact(store, clock)
        assert set(store.contents()) == keys

    run(main)


def foreign_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (("x/one", b"1" * 2000), ("x/two", b""), ("../out", b"evil")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), 1_500_000_000, 0o4755
            tar.addfile(info, io.BytesIO(data))
        for name, kind, target in (
            ("x/same", tarfile.LNKTYPE, "x/one"),
            ("x/link", tarfile.SYMTYPE, "/etc/passwd"),
            ("x/link/inside", tarfile.REGTYPE, ""),
            ("folder", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return buffer.getvalue()


async def unpack(
    store: MemoryStore, location: S3Location, to: LocalPath | S3Location, *names: str
) -> tuple[Report, list[str]]:
    told, said = report()
    target = store if isinstance(to, S3Location) else None
    await Unpacking(store, location, told, to, target).run(names=names, takes=ALL_NAMES)
    return told, said


def test_any_tar_file_gets_an_index_and_is_unpacked_without_leaving_the_folder(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        store = MemoryStore()
        await store.put("p/f.tar", foreign_tar(), ObjectHeaders())
        at = S3Location("b", "p/f.tar")
        told, said = report()
        await make_index(store, at, told, replaces=False)
        with pytest.raises(ObjectExistsError):
            await make_index(store, at, told, replaces=False)
        await make_index(store, at, told, replaces=True)
        folder = tmp_path / "got"
        told, said = await unpack(store, at, LocalPath(str(folder)))
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*")} == {
            *("x", "x/one", "x/two", "x/same", "x/link", "x/link/inside", "folder"),
        }
        assert (folder / "x/one").read_bytes() == (folder / "x/same").read_bytes() == b"1" * 2000
        about = (folder / "x/one").stat()
        assert (about.st_mode & 0o7777, about.st_mtime) == (0o755, 1_500_000_000)
        assert not (folder / "x/link").is_symlink()
        assert not (tmp_path / "out").exists()
        assert [line for line in said if "lead out" in line]
        assert (told.counts.failed, told.counts.skipped) == (1, 1)
        told, _ = await unpack(store, at, S3Location("b", "to/"))
        assert told.counts.failed == 0
        assert store.contents()["to/x/same"] == b"1" * 2000
        headers = (await store.head("to/x/one")).headers
        assert headers is not None
        assert headers.metadata == {"mode": str(0o100755), "mtime": "1500000000"}
        told, _ = await unpack(store, at, LocalPath(str(tmp_path / "some")), "x/two", "none")
        assert (told.counts.objects, told.counts.failed) == (2, 1)
        # It is nobody's to compact.
        told, _ = report()
        packs = await loaded_packs(store, FOLDER, told, "test")
        assert plan(packs, 1.0, 0) == []

    run(main)


def test_unpacked_bytes_are_held_to_their_digest(tmp_path: Path) -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock()
        await write(store, clock, {"good": b"1" * 100, "bad": b"2" * 100})
        (key,) = [key for key in store.contents() if key.endswith(".tar")]
        rot(store, key, store.contents()[key].replace(b"2" * 100, b"3" * 100))
        told, said = await unpack(store, FOLDER, LocalPath(str(tmp_path / "got")))
        assert told.counts.failed == 1
        assert "not those that the index tells of" in said[0]
        assert [path.name for path in (tmp_path / "got").iterdir()] == ["good"]
        told, _ = await unpack(store, FOLDER, S3Location("b", "to/"))
        assert told.counts.failed == 1
        assert [key for key in store.contents() if key.startswith("to/")] == ["to/good"]

    run(main)


def test_unpacking_finds_what_is_compacted_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        store, clock = MemoryStore(), Clock()
        await write(store, clock, MANY, files=30)
        await write(store, clock, dict.fromkeys(list(MANY)[::2], None))
        other = store.observer()

        class Meddler(NoFaults):
            done = False

            async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
                reads = operation in ("get", "fetch") and ".idx" not in str(arguments["key"])
                if reads and not Meddler.done:
                    Meddler.done = True
                    await compact(other, clock, live_below=0.9)

        store.faults = Meddler()
        told, said = await unpack(store, FOLDER, LocalPath(str(tmp_path / "got")))
        assert Meddler.done
        assert (told.counts.failed, said) == (0, [])
        assert told.counts.objects == 50
        for name in list(MANY)[1::2]:
            assert (tmp_path / "got" / name).read_bytes() == MANY[name]

    run(main)


def test_spans_are_read_whole_however_they_lie() -> None:
    data = random.Random(1).randbytes(20 << 20)
    rng = random.Random(2)
    spans = [
        Span(rng.randrange(len(data) - 70_000), rng.randrange(1, 70_000), n) for n in range(200)
    ]
    spans += [Span(1000, 19 << 20, 200), Span(1000, 10, 201), Span(0, 1, 202), spans[0]]
    spans += [Span(n * GAP_BYTES_MAX, 7, 1000 + n) for n in range(100)]

    class Keep:
        def __init__(self, span: Span) -> None:
            self.span, self.found = span, bytearray()

        def write(self, piece: memoryview) -> None:
            self.found += piece

        async def end(self) -> None:
            await trio.lowlevel.checkpoint()
            assert bytes(self.found) == data[self.span.start : self.span.stop]
            ended.append(self.span)

        def drop(self) -> None:
            raise AssertionError("it came whole")

    ended: list[Span] = []

    def begin(span: Span) -> Sink:
        return Keep(span)

    async def main() -> None:
        store = MemoryStore()
        with_file = await store.create_multipart("k", ObjectHeaders())
        parts = [
            await store.upload_part(
                "k", with_file, 1 + n, data[n * (5 << 20) : (n + 1) * (5 << 20)]
            )
            for n in range(4)
        ]
        await store.complete_multipart("k", with_file, parts)
        await read_spans(store, (await store.head("k")).ref, spans, begin)
        assert sorted(ended) == sorted(spans)

    run(main)

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from s3mount.errors import (
    ChecksumError,
    DownloadExistsError,
    LocalDiskError,
    NoSuchKeyError,
    PreconditionFailedError,
    ThrottledError,
)
from s3mount.refs import ByteRange, ContentRef, ObjectHeaders, ObjectInfo
from s3mount.testing.memory_store import MemoryStore
from s3mount.transfer.download import download_file
from s3mount.transfer.fetching import SMALL_BYTES, Fetching, Wanted
from tests.unit.transfer.faults import Meddler

RANGE = 256 << 10
SIZE = 10 * RANGE + 7
BLOCK = 128 << 10


class Downloads:
    """Downloads of one test, and what they counted."""

    def __init__(self, folder: Path, store: MemoryStore) -> None:
        self.path = folder / "target"
        self.store = store
        self.moved = 0
        self.resumed: list[int] = []

    def _moved(self, n: int) -> None:
        self.moved += n

    async def run(self, source: ContentRef, *, replace: bool = True, resume: bool = True) -> None:
        fetching = Fetching(self._moved, slots=trio.CapacityLimiter(3))
        await download_file(
            fetching,
            self.store,
            Wanted(source.key, source.etag, source.size, source.version_id),
            str(self.path),
            range_bytes=RANGE,
            on_resumed=self.resumed.append,
            replace=replace,
            resume=resume,
        )


def random_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def put(store: MemoryStore, data: bytes) -> ContentRef:
    await store.observer().put("k", data, ObjectHeaders())
    return (await store.observer().head("k")).ref


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, SIZE])
def test_every_size_arrives_whole_in_place_of_what_was_there(tmp_path: Path, size: int) -> None:
    data = random_bytes(size)
    faults = Meddler()
    downloads = Downloads(tmp_path, MemoryStore(faults=faults))
    downloads.path.write_bytes(b"before")

    async def main() -> None:
        await downloads.run(await put(downloads.store, data))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert downloads.path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [downloads.path]
    assert downloads.moved == size
    ranges = -(-size // RANGE) if size > SMALL_BYTES else 0
    assert downloads.store.requests.get("fetch", 0) == ranges
    assert faults.most_running == min(3, max(1, ranges))


def test_an_object_that_is_overwritten_meanwhile_is_never_mixed(tmp_path: Path) -> None:
    async def overwrite(operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "fetch" and arguments["byte_range"] == ByteRange(3 * RANGE, RANGE):
            await store.observer().put("k", b"n" * SIZE, ObjectHeaders())

    store = MemoryStore(faults=Meddler(before=overwrite))
    downloads = Downloads(tmp_path, store)

    async def main() -> None:
        source = await put(store, b"o" * SIZE)
        with pytest.raises(PreconditionFailedError):
            await downloads.run(source)

    trio.run(main)
    assert list(tmp_path.iterdir()) == []


def test_a_pinned_version_arrives_although_it_was_overwritten(tmp_path: Path) -> None:
    store = MemoryStore(versioning="enabled")
    downloads = Downloads(tmp_path, store)

    async def main() -> None:
        source = await put(store, b"o" * SIZE)
        await put(store, b"n" * 5 * RANGE)
        await downloads.run(source)

    trio.run(main)
    assert downloads.path.read_bytes() == b"o" * SIZE


def test_bytes_that_do_not_match_the_etag_are_not_shown(tmp_path: Path) -> None:
    store = MemoryStore()
    downloads = Downloads(tmp_path, store)
    spoilt = 0

    async def flip(operation: str, arguments: Mapping[str, object]) -> None:
        nonlocal spoilt
        if operation == "fetch" and spoilt < times:
            spoilt += 1
            (landing,) = tmp_path.iterdir()
            with landing.open("r+b") as file:
                file.seek(getattr(arguments["byte_range"], "start", 0))
                file.write(b"!")

    async def main() -> None:
        source = await put(store, b"o" * SIZE)
        store.faults = Meddler(after=flip)
        with pytest.raises(ChecksumError):
            await downloads.run(source)
        assert list(tmp_path.iterdir()) == []

    times = 1000
    trio.run(main)
    # Once is mended by fetching it again.
    spoilt, times = 0, 1

    async def once() -> None:
        store.faults = Meddler(after=flip)
        await downloads.run((await store.observer().head("k")).ref)

    trio.run(once)
    assert downloads.path.read_bytes() == b"o" * SIZE


class Cut:
    """Fails one range for good."""

    def __init__(self, store: MemoryStore, start: int) -> None:
        self.start: int | None = start
        self.fetched = 0
        self.spans: list[ByteRange] = []
        store.faults = Meddler(before=self.before, after=self.after)

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        span = arguments.get("byte_range")
        if operation == "fetch" and isinstance(span, ByteRange) and span.start == self.start:
            raise ThrottledError("slow down", status=503)

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        span = arguments.get("byte_range")
        if operation == "fetch" and isinstance(span, ByteRange):
            self.fetched += span.length
            self.spans.append(span)


def test_what_was_cut_off_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    data = random_bytes(SIZE)
    store = MemoryStore()
    downloads = Downloads(tmp_path, store)

    async def main() -> None:
        source = await put(store, data)
        cut = Cut(store, 6 * RANGE)
        with pytest.raises(ThrottledError):
            await downloads.run(source)
        assert [p.name for p in tmp_path.iterdir()] == [".target.partial"]
        first, cut.fetched, cut.start = cut.fetched, 0, None
        assert 3 * RANGE <= first < SIZE
        # A block that the disk spoilt meanwhile is fetched again; of 128 KiB.
        with open(tmp_path / ".target.partial", "r+b") as file:
            file.seek(cut.spans[0].start + 5)
            file.write(bytes([data[cut.spans[0].start + 5] ^ 1]))
        await downloads.run(source)
        resumed = downloads.resumed[1]
        # Of ranges that were on their way then some blocks may be there too, or not noted yet.
        assert abs(resumed - (first - BLOCK)) <= 3 * RANGE
        assert cut.fetched == SIZE - resumed

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert downloads.path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [downloads.path]


@pytest.mark.parametrize("how", ["another version", "not to be resumed"])
def test_what_is_of_another_version_is_begun_anew(tmp_path: Path, how: str) -> None:
    store = MemoryStore()
    downloads = Downloads(tmp_path, store)
    data = random_bytes(SIZE)

    async def main() -> None:
        cut = Cut(store, 6 * RANGE)
        with pytest.raises(ThrottledError):
            await downloads.run(await put(store, b"o" * SIZE))
        cut.start = None
        await downloads.run(await put(store, data), resume=how == "another version")
        assert downloads.resumed == [0, 0]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert downloads.path.read_bytes() == data


def test_two_downloads_of_one_file_do_not_share_a_partial_one(tmp_path: Path) -> None:
    store = MemoryStore(faults=Meddler())
    downloads = Downloads(tmp_path, store)

    async def main() -> None:
        source = await put(store, b"o" * SIZE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(downloads.run, source)
            await trio.sleep(0.015)
            with pytest.raises(DownloadExistsError, match="by another process"):
                await downloads.run(source)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert downloads.path.read_bytes() == b"o" * SIZE


@pytest.mark.parametrize("size", [10, SIZE])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path, size: int) -> None:
    store = MemoryStore()
    downloads = Downloads(tmp_path, store)

    async def main() -> None:
        source = await put(store, b"o" * size)
        downloads.path.write_bytes(b"theirs")
        with pytest.raises(FileExistsError):
            await downloads.run(source, replace=False)
        assert downloads.path.read_bytes() == b"theirs"
        downloads.path.unlink()
        await downloads.run(source, replace=False)
        assert downloads.resumed[1:] == ([size] if size == SIZE else [])

    trio.run(main)
    assert downloads.path.read_bytes() == b"o" * size
    assert list(tmp_path.iterdir()) == [downloads.path]


def test_small_files_leave_nothing_behind_when_they_fail(tmp_path: Path) -> None:
    store = MemoryStore()
    downloads = Downloads(tmp_path, store)

    async def main() -> None:
        for size in (0, 5, None):
            with pytest.raises(NoSuchKeyError):
                await download_file(
                    Fetching(lambda n: None), store, Wanted("gone", "", size), str(downloads.path)
                )

    trio.run(main)
    assert list(tmp_path.iterdir()) == []


def test_permissions_and_time_are_set_before_the_name_is(tmp_path: Path) -> None:
    store = MemoryStore()
    path = tmp_path / "target"

    def attributes(info: ObjectInfo) -> tuple[int, int]:
        assert not path.exists()
        return 0o640, 123_000_000_456

    async def main() -> None:
        for size in (10, SIZE):
            source = await put(store, b"o" * size)
            wanted = Wanted("k", source.etag, size)
            await download_file(
                Fetching(lambda n: None), store, wanted, str(path), attributes=attributes
            )
            assert (path.stat().st_mode & 0o7777, path.stat().st_mtime_ns) == attributes_told
            path.unlink()

    attributes_told = (0o640, 123_000_000_456)
    trio.run(main)


@pytest.mark.parametrize("size", [1, SIZE])
def test_a_folder_that_does_not_exist_is_one_clear_error(tmp_path: Path, size: int) -> None:
    store = MemoryStore()
    downloads = Downloads(tmp_path, store)

    async def main() -> None:
        source = await put(store, b"o" * size)
        downloads.path = tmp_path / "nowhere" / "t"
        with pytest.raises(LocalDiskError, match="nowhere/t: No such file"):
            await downloads.run(source)
        downloads.path = tmp_path / "folder"
        downloads.path.mkdir()
        with pytest.raises(LocalDiskError, match="folder: Is a directory"):
            await downloads.run(source)

    trio.run(main)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_disk_that_is_too_full_is_told_before_the_transfer(tmp_path: Path) -> None:
    store = MemoryStore()

    async def main() -> None:
        with pytest.raises(LocalDiskError, match="No space left on device"):
            await Downloads(tmp_path, store).run(ContentRef("k", "etag", 1 << 60))

    trio.run(main)
    assert store.requests == {}
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_can_be_downloaded_to(tmp_path: Path) -> None:
    store = MemoryStore()
    downloads = Downloads(tmp_path, store)
    downloads.path = tmp_path / ("é" * 127)

    async def main() -> None:
        for size in (1, SIZE):
            await downloads.run(await put(store, b"o" * size))
            assert downloads.path.read_bytes() == b"o" * size

    trio.run(main)
    assert os.listdir(tmp_path) == [downloads.path.name]

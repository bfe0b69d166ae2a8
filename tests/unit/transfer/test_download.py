from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from s3mount.errors import (
    ChecksumError,
    LocalDiskError,
    NoSuchKeyError,
    PreconditionFailedError,
    ThrottledError,
)
from s3mount.refs import ByteRange, ContentRef, ObjectHeaders
from s3mount.testing.memory_store import MemoryStore
from s3mount.transfer.download import download_file
from tests.unit.transfer.faults import Meddler

RANGE = 1000
SLOTS = trio.CapacityLimiter(3)


@pytest.mark.parametrize("size", [0, 1, RANGE, RANGE + 1, 10 * RANGE + 7])
def test_every_size_arrives_whole_in_place_of_what_was_there(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    faults = Meddler()
    store = MemoryStore(faults=faults)
    target = tmp_path / "target"
    target.write_bytes(b"before")
    seen: list[int] = []

    async def main() -> None:
        await store.put("k", data, ObjectHeaders())
        source = (await store.head("k")).ref
        await download_file(
            store,
            source,
            str(target),
            slots=SLOTS,
            range_bytes=RANGE,
            on_progress=seen.append,
        )

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert target.read_bytes() == data
    assert list(tmp_path.iterdir()) == [target]
    assert seen == sorted(seen)
    assert seen[-1:] == ([size] if size else [])
    assert store.requests.get("fetch", 0) == -(-size // RANGE)
    assert faults.most_running == min(3, max(1, -(-size // RANGE)))


def test_an_object_that_is_overwritten_meanwhile_is_never_mixed(tmp_path: Path) -> None:
    async def overwrite(operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "fetch" and arguments["byte_range"] == ByteRange(3 * RANGE, RANGE):
            await store.observer().put("k", b"n" * 10 * RANGE, ObjectHeaders())

    store = MemoryStore(faults=Meddler(before=overwrite))

    async def main() -> None:
        await store.put("k", b"o" * 10 * RANGE, ObjectHeaders())
        source = (await store.head("k")).ref
        with pytest.raises(PreconditionFailedError):
            await download_file(store, source, str(tmp_path / "t"), slots=SLOTS, range_bytes=RANGE)

    trio.run(main)
    assert list(tmp_path.iterdir()) == []


def test_a_pinned_version_arrives_although_it_was_overwritten(tmp_path: Path) -> None:
    store = MemoryStore(versioning="enabled")

    async def main() -> None:
        await store.put("k", b"o" * 3 * RANGE, ObjectHeaders())
        source = (await store.head("k")).ref
        await store.put("k", b"n" * 5 * RANGE, ObjectHeaders())
        await download_file(store, source, str(tmp_path / "t"), slots=SLOTS, range_bytes=RANGE)

    trio.run(main)
    assert (tmp_path / "t").read_bytes() == b"o" * 3 * RANGE


def test_bytes_that_do_not_match_the_etag_are_not_shown(tmp_path: Path) -> None:
    store = MemoryStore()

    async def flip(operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "fetch":
            (landing,) = tmp_path.iterdir()
            with landing.open("r+b") as file:
                file.write(b"!")

    async def main() -> None:
        await store.put("k", b"o" * RANGE, ObjectHeaders())
        source = (await store.head("k")).ref
        store.faults = Meddler(after=flip)
        with pytest.raises(ChecksumError):
            await download_file(store, source, str(tmp_path / "t"), slots=SLOTS)
        assert list(tmp_path.iterdir()) == []
        await download_file(store, source, str(tmp_path / "t"), slots=SLOTS, verify=False)

    trio.run(main)
    assert (tmp_path / "t").read_bytes() == b"!" + b"o" * (RANGE - 1)


def test_errors_and_cancellation_leave_no_file(tmp_path: Path) -> None:
    async def fail(operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "fetch" and arguments["byte_range"] == ByteRange(RANGE, RANGE):
            raise ThrottledError("slow down", status=503)
        await trio.sleep(1)

    store = MemoryStore(faults=Meddler(before=fail))
    target = tmp_path / "t"

    async def main() -> None:
        await store.observer().put("k", b"o" * 4 * RANGE, ObjectHeaders())
        source = (await store.observer().head("k")).ref
        with pytest.raises(ThrottledError):
            await download_file(store, source, str(target), slots=SLOTS, range_bytes=RANGE)
        with trio.move_on_after(0.5) as scope:
            await download_file(store, source, str(target), slots=SLOTS)
        assert scope.cancelled_caught
        gone = msgspec.structs.replace(source, key="gone")
        for missing in (gone, msgspec.structs.replace(gone, size=0)):
            with pytest.raises(NoSuchKeyError):
                await download_file(store, missing, str(target), slots=SLOTS)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    store = MemoryStore()

    async def main() -> None:
        await store.put("k", b"o", ObjectHeaders())
        source = (await store.head("k")).ref
        with pytest.raises(LocalDiskError, match="nowhere/t: No such file"):
            await download_file(store, source, str(tmp_path / "nowhere" / "t"), slots=SLOTS)
        (tmp_path / "folder").mkdir()
        with pytest.raises(LocalDiskError, match="folder: Is a directory"):
            await download_file(store, source, str(tmp_path / "folder"), slots=SLOTS)

    trio.run(main)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_disk_that_is_too_full_is_told_before_the_transfer(tmp_path: Path) -> None:
    store = MemoryStore()

    async def main() -> None:
        source = ContentRef("k", "", 1 << 60)
        with pytest.raises(LocalDiskError, match="No space left on device"):
            await download_file(store, source, str(tmp_path / "t"), slots=SLOTS)

    trio.run(main)
    assert store.requests == {}
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_can_be_downloaded_to(tmp_path: Path) -> None:
    store = MemoryStore()
    target = tmp_path / ("é" * 127)

    async def main() -> None:
        await store.put("k", b"o", ObjectHeaders())
        await download_file(store, (await store.head("k")).ref, str(target), slots=SLOTS)

    trio.run(main)
    assert target.read_bytes() == b"o"

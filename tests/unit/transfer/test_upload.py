from __future__ import annotations

import itertools
import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from s3mount.errors import (
    AccessDeniedError,
    ChecksumError,
    PreconditionFailedError,
    RejectedError,
    SeveralUploadsError,
    ThrottledError,
    UploadExistsError,
)
from s3mount.flow.parts import PartPlan
from s3mount.refs import Condition, ObjectHeaders
from s3mount.testing.memory_store import MemoryStore
from s3mount.transfer.digest import etag_if_parts, etag_if_put
from s3mount.transfer.ledger import Ledger, Record
from s3mount.transfer.source import FileSource, Source
from s3mount.transfer.upload import GO_ON, Resume, upload, upload_file
from tests.unit.transfer.faults import Meddler, unfinished

PART = 5 << 20
HEADERS = ObjectHeaders(metadata={"mode": "33188"})


def make(folder: Path, size: int) -> tuple[str, bytes]:
    data = random.Random(size).randbytes(size)
    path = folder / "file"
    path.write_bytes(data)
    return str(path), data


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 12345])
def test_every_size_arrives_whole_with_its_headers_and_the_foretold_etag(
    tmp_path: Path, size: int
) -> None:
    path, data = make(tmp_path, size)
    store = MemoryStore()
    sent: list[int] = []

    async def main() -> None:
        result = await upload_file(
            store,
            path,
            size,
            "k",
            HEADERS,
            part_bytes=PART,
            slots=trio.CapacityLimiter(3),
            on_sent=sent.append,
        )
        assert store.contents() == {"k": data}
        info = await store.head("k")
        assert info.headers is not None
        assert info.headers.metadata == HEADERS.metadata
        expected = (
            await etag_if_put(path, size)
            if size <= PART
            else await etag_if_parts(path, size, PartPlan(PART))
        )
        assert result.etag == info.etag == expected
        assert await unfinished(store) == 0

    trio.run(main)
    assert sum(sent) == size


def test_parts_of_all_files_share_the_slots(tmp_path: Path) -> None:
    path, data = make(tmp_path, 6 * PART)
    faults = Meddler()
    store = MemoryStore(faults=faults)

    async def main() -> None:
        slots = trio.CapacityLimiter(4)
        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                nursery.start_soon(
                    lambda name: upload_file(
                        store, path, len(data), name, HEADERS, part_bytes=PART, slots=slots
                    ),
                    name,
                )

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert store.contents() == {"a": data, "b": data}
    assert faults.most_running == 4


def test_a_refused_part_ends_the_upload_with_that_error_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    path, data = make(tmp_path, 4 * PART)

    async def refuse(operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "upload_part" and arguments["number"] == 3:
            raise AccessDeniedError("no", key="k", status=403)

    store = MemoryStore(faults=Meddler(before=refuse))

    async def main() -> None:
        with pytest.raises(AccessDeniedError):
            await upload_file(
                store,
                path,
                len(data),
                "k",
                HEADERS,
                part_bytes=PART,
                slots=trio.CapacityLimiter(2),
            )
        assert await unfinished(store) == 0

    trio.run(main)
    assert store.contents() == {}
    assert store.requests["abort_multipart"] == 1


def test_a_cancelled_upload_leaves_nothing_behind(tmp_path: Path) -> None:
    path, data = make(tmp_path, 4 * PART)
    store = MemoryStore(faults=Meddler())

    async def main() -> None:
        with trio.move_on_after(0.035) as scope:
            await upload_file(
                store, path, len(data), "k", HEADERS, part_bytes=PART, slots=trio.CapacityLimiter(1)
            )
        assert scope.cancelled_caught
        assert store.requests["upload_part"] >= 2
        assert await unfinished(store) == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert store.contents() == {}


def test_a_condition_that_does_not_hold_is_told_and_changes_nothing(tmp_path: Path) -> None:
    path, _ = make(tmp_path, 2 * PART)
    store = MemoryStore()

    async def main() -> None:
        await store.put("k", b"foreign", ObjectHeaders())
        for size in (PART, 2 * PART):
            with pytest.raises(PreconditionFailedError):
                await upload_file(
                    store,
                    path,
                    size,
                    "k",
                    HEADERS,
                    condition=Condition(if_absent=True),
                    part_bytes=PART,
                    slots=trio.CapacityLimiter(2),
                )
        assert await unfinished(store) == 0

    trio.run(main)
    assert store.contents() == {"k": b"foreign"}


def test_a_file_that_changes_while_it_is_sent_never_becomes_a_mixture(tmp_path: Path) -> None:
    path, data = make(tmp_path, 3 * PART)
    times = itertools.count(1)

    async def change(operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "upload_part" and arguments["number"] == 2:
            with open(path, "r+b") as file:
                file.write(b"new")
            os.utime(path, ns=(1, next(times)))

    store = MemoryStore(faults=Meddler(after=change))

    async def main() -> None:
        with pytest.raises(ChecksumError, match="was changed while it was sent"):
            await upload_file(
                store, path, len(data), "k", HEADERS, part_bytes=PART, slots=trio.CapacityLimiter(2)
            )
        assert await unfinished(store) == 0

    trio.run(main)
    assert store.contents() == {}


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    async def main() -> None:
        for size in (PART, 2 * PART):
            with pytest.raises(RejectedError, match="nowhere: No such file"):
                await upload_file(
                    MemoryStore(),
                    str(tmp_path / "nowhere"),
                    size,
                    "k",
                    HEADERS,
                    part_bytes=PART,
                    slots=trio.CapacityLimiter(2),
                )

    trio.run(main)


def test_an_older_send_that_lands_last_is_found_and_sent_again(tmp_path: Path) -> None:
    """Completing then names an ETag that the store does not hold: the part is sent once more."""
    path, data = make(tmp_path, 3 * PART)
    meddled = 0

    async def overwrite(operation: str, arguments: Mapping[str, object]) -> None:
        nonlocal meddled
        if operation == "complete_multipart" and not meddled:
            meddled += 1
            upload_id = str(arguments["upload_id"])
            await store.observer().upload_part("k", upload_id, 2, bytes(PART))

    store = MemoryStore(faults=Meddler(before=overwrite))

    async def main() -> None:
        await upload_file(
            store, path, len(data), "k", HEADERS, part_bytes=PART, slots=trio.CapacityLimiter(2)
        )

    trio.run(main)
    assert meddled == 1
    assert store.contents() == {"k": data}
    assert store.requests["complete_multipart"] == 2
    assert store.requests["upload_part"] == 4


class World:
    """A file, a store, and runs of the command that may be cut off."""

    def __init__(self, folder: Path, store: MemoryStore) -> None:
        self.folder = folder
        self.store = store
        self.resumed: list[int] = []
        self.sent = 0

    async def upload(
        self, source: Source, *, resume: Resume = GO_ON, part_bytes: int = PART
    ) -> None:
        def sent(n: int) -> None:
            self.sent += n

        self.sent = 0
        with Ledger(self.folder / "state", "bucket", "k") as ledger:
            await upload(
                self.store,
                source,
                "k",
                HEADERS,
                plan=PartPlan(part_bytes),
                slots=trio.CapacityLimiter(2),
                ledger=ledger,
                resume=resume,
                on_sent=sent,
                on_resumed=self.resumed.append,
            )

    async def foreign(self, data: bytes, *parts: int, size: int = PART) -> str:
        """An unfinished upload of another tool."""
        there = self.store.observer()
        upload_id = await there.create_multipart("k", ObjectHeaders())
        for index in parts:
            await there.upload_part(
                "k", upload_id, index + 1, data[index * size : (index + 1) * size]
            )
        return upload_id


def stop_at(number: int, store: MemoryStore) -> None:
    """The part of this number is refused, as long as nothing else is said."""

    async def refuse(operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "upload_part" and arguments["number"] == number:
            raise ThrottledError("slow down", status=503)

    store.faults = Meddler(before=refuse)


def test_what_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    path, data = make(tmp_path, 6 * PART + 9)
    world = World(tmp_path, MemoryStore())
    source = FileSource(path, len(data))

    async def main() -> None:
        stop_at(5, world.store)
        with pytest.raises(ThrottledError):
            await world.upload(source)
        arrived = world.sent
        assert arrived >= 3 * PART
        assert await unfinished(world.store) == 1
        world.store.faults = Meddler()
        await world.upload(source)
        # One whose answer was not heard any more may have arrived as well.
        assert world.resumed[0] == 0
        assert arrived <= world.resumed[1] <= 5 * PART
        assert world.sent == len(data) - world.resumed[1]
        assert await unfinished(world.store) == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert world.store.contents() == {"k": data}
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize("how", ["another file", "force", "aborted", "other parts"])
def test_what_does_not_fit_begins_anew(tmp_path: Path, how: str) -> None:
    path, data = make(tmp_path, 6 * PART + 9)
    world = World(tmp_path, MemoryStore())

    async def main() -> None:
        stop_at(5, world.store)
        with pytest.raises(ThrottledError):
            await world.upload(FileSource(path, len(data)))
        world.store.faults = Meddler()
        if how == "another file":
            Path(path).write_bytes(data[::-1])
        elif how == "aborted":
            for each in await world.store.observer().list_uploads(""):
                await world.store.observer().abort_multipart("k", each.upload_id)
        await world.upload(
            FileSource(path, len(data)),
            resume=Resume(force=how == "force"),
            part_bytes=PART + 1 if how == "other parts" else PART,
        )
        assert world.resumed == [0, 0]
        assert await unfinished(world.store) == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert world.store.contents() == {"k": Path(path).read_bytes()}


def test_a_file_that_changes_once_while_it_is_sent_is_sent_anew(tmp_path: Path) -> None:
    path, data = make(tmp_path, 3 * PART)
    changed = False

    async def change(operation: str, arguments: Mapping[str, object]) -> None:
        nonlocal changed
        if operation == "upload_part" and arguments["number"] == 2 and not changed:
            changed = True
            Path(path).write_bytes(data[::-1])
            os.utime(path, ns=(1, 1))

    world = World(tmp_path, MemoryStore(faults=Meddler(after=change)))

    async def main() -> None:
        await world.upload(FileSource(path, len(data)))
        assert await unfinished(world.store) == 0

    trio.run(main)
    assert world.store.contents() == {"k": data[::-1]}


class TestForeign:
    """Unfinished uploads of other tools."""

    def test_one_with_these_bytes_is_adopted(self, tmp_path: Path) -> None:
        size = 6 << 20
        path, data = make(tmp_path, 4 * size + 5)
        world = World(tmp_path, MemoryStore())

        async def main() -> None:
            await world.foreign(data, 0, 2, size=size)
            await world.upload(FileSource(path, len(data)), part_bytes=8 << 20)
            assert world.resumed == [2 * size]
            assert world.sent == len(data) - 2 * size
            assert await unfinished(world.store) == 0

        trio.run(main)
        assert world.store.contents() == {"k": data}

    def test_one_with_other_bytes_is_left_alone_or_told(self, tmp_path: Path) -> None:
        path, data = make(tmp_path, 3 * PART)
        world = World(tmp_path, MemoryStore())

        async def main() -> None:
            await world.foreign(data[::-1], 0)
            with pytest.raises(UploadExistsError, match="--force"):
                await world.upload(FileSource(path, len(data)), resume=Resume(is_strict=True))
            await world.upload(FileSource(path, len(data)))
            assert await unfinished(world.store) == 1

        trio.run(main)
        assert world.store.contents() == {"k": data}

    def test_of_two_none_is_taken_and_force_drops_them(self, tmp_path: Path) -> None:
        path, data = make(tmp_path, 3 * PART)
        world = World(tmp_path, MemoryStore())

        async def main() -> None:
            for _ in range(2):
                await world.foreign(data, 0)
            await world.foreign(data)
            with pytest.raises(SeveralUploadsError, match="2 unfinished uploads"):
                await world.upload(FileSource(path, len(data)))
            assert world.store.contents() == {}
            await world.upload(FileSource(path, len(data)), resume=Resume(force=True))
            assert await unfinished(world.store) == 0

        trio.run(main)
        assert world.store.contents() == {"k": data}


def test_two_uploads_to_one_key_do_not_share_a_record(tmp_path: Path) -> None:
    with Ledger(tmp_path, "bucket", "k") as ledger:
        ledger.write(Record("id", PART, 900, "source", "headers"))
        with (
            pytest.raises(UploadExistsError, match="another process"),
            Ledger(tmp_path, "bucket", "k"),
        ):
            pass
        with Ledger(tmp_path, "bucket", "other"):
            pass
    with Ledger(tmp_path, "bucket", "k") as ledger:
        assert ledger.read() == Record("id", PART, 900, "source", "headers")
        ledger.write(None)
    assert os.listdir(tmp_path) == []

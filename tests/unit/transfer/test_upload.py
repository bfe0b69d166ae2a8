from __future__ import annotations

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
)
from s3mount.flow.parts import PartPlan
from s3mount.refs import Condition, ObjectHeaders
from s3mount.testing.memory_store import MemoryStore
from s3mount.transfer.digest import etag_if_parts, etag_if_put
from s3mount.transfer.upload import upload_file
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
    assert sent == sorted(sent)
    assert sent[-1] == size


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

    async def change(operation: str, arguments: Mapping[str, object]) -> None:
        if operation == "upload_part" and arguments["number"] == 2:
            with open(path, "r+b") as file:
                file.write(b"new")
            os.utime(path, ns=(1, 1))

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

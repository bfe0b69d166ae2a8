"""A file is read while S3 has a change of it already, and its answer is late: the bytes come all the same."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import trio

from s3mount.errors import NetworkError
from s3mount.vfs.namespace.renaming import RENAME_EXCHANGE
from tests.sim.mount import Mount
from tests.sim.world import PART_BYTES, World, simulated

SIZE = 4 * PART_BYTES
LATE_S = 20.0
BEFORE = bytes(range(256)) * (SIZE // 256)


class LateAnswers:
    """While ``is_late`` the answer to what writes is late; with ``is_lost`` it never comes.

    Whatever is asked of the key ``slow`` waits.
    """

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self.is_lost = False
        self.is_late = False
        self.slow = ""
        self.waits = trio.Event()

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if self.slow and arguments.get("key") == self.slow:
            await trio.sleep(2 * LATE_S)

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        if operation != self._operation or not self.is_late:
            return
        self.waits.set()
        await trio.sleep(LATE_S)
        self.is_late = False
        if self.is_lost:
            raise NetworkError("the answer was lost")


async def append(mount: Mount) -> bytes:
    fd = await mount.open("f", os.O_WRONLY | os.O_APPEND)
    await mount.pwrite(fd, b"more", SIZE)
    await mount.close(fd)
    return BEFORE + b"more"


async def lengthen(mount: Mount) -> bytes:
    await mount.truncate("f", SIZE + 3000)
    return BEFORE + bytes(3000)


async def edit(mount: Mount) -> bytes:
    fd = await mount.open("f", os.O_WRONLY)
    await mount.pwrite(fd, b"edit", 10)
    await mount.close(fd)
    return BEFORE[:10] + b"edit" + BEFORE[14:]


async def chmod(mount: Mount) -> bytes:
    await mount.chmod("f", 0o600)
    return BEFORE


WAYS = [
    (append, "append"),
    (lengthen, "append"),
    (edit, "complete_multipart"),
    (chmod, "copy"),
]


@pytest.mark.parametrize("is_lost", [False, True], ids=["late", "answer lost"])
@pytest.mark.parametrize(("act", "operation"), WAYS, ids=lambda each: getattr(each, "__name__", ""))
def test_a_file_is_read_while_the_answer_to_its_change_is_late(
    tmp_path: Path, act: Callable[[Mount], Awaitable[bytes]], operation: str, is_lost: bool
) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path, opaque_etags=True)
        world.bucket.habits.renames = world.bucket.habits.appends = True
        await world.foreign_put("f", BEFORE)
        world.faults = late = LateAnswers(operation)
        async with world.mounted() as mount:
            await mount.sync()
            late.is_late, late.is_lost = True, is_lost
            after = await act(mount)
            with trio.fail_after(LATE_S):
                await late.waits.wait()
            with world.counting() as asked:
                assert await mount.read("f") == after
            assert late.is_late, "it was read before the answer came"
            assert asked["head"] <= 2
            with world.counting() as asked:
                await mount.sync()
            assert asked["put"] + asked["append"] + asked["complete_multipart"] <= is_lost
            assert world.files() == {"f": after}
            assert await mount.read("f") == after
            assert mount.leftovers() == []

    run()


@pytest.mark.parametrize("is_lost", [False, True], ids=["late", "answer lost"])
@pytest.mark.parametrize(("act", "operation"), WAYS, ids=lambda each: getattr(each, "__name__", ""))
def test_what_takes_the_name_of_an_open_file_is_sent_although_an_answer_is_late(
    tmp_path: Path, act: Callable[[Mount], Awaitable[bytes]], operation: str, is_lost: bool
) -> None:
    """What the open file still needs of the version in S3 is fetched from what its own change made of it."""

    @simulated
    async def run() -> None:
        world = World(tmp_path, opaque_etags=True)
        world.bucket.habits.renames = world.bucket.habits.appends = True
        await world.foreign_put("f", BEFORE)
        world.faults = late = LateAnswers(operation)
        async with world.mounted() as mount:
            await mount.sync()
            fd = mount._hold(await mount.node("f"), os.O_RDONLY)
            late.is_late, late.is_lost = True, is_lost
            after = await act(mount)
            with trio.fail_after(LATE_S):
                await late.waits.wait()
            await mount.unlink("f")
            await mount.write("f", b"another")
            with trio.fail_after(3 * LATE_S):
                await mount.sync()
            assert world.files() == {"f": b"another"}
            assert await mount.read_all(fd) == after
            await mount.close(fd)
            assert await mount.read("f") == b"another"
            assert mount.leftovers() == []

    run()


@pytest.mark.parametrize("is_read", [False, True], ids=["looked at", "in the cache"])
@pytest.mark.parametrize("is_lost", [False, True], ids=["late", "answer lost"])
@pytest.mark.parametrize(("act", "operation"), WAYS, ids=lambda each: getattr(each, "__name__", ""))
def test_files_that_change_places_while_an_answer_is_late_keep_their_bytes(
    tmp_path: Path,
    act: Callable[[Mount], Awaitable[bytes]],
    operation: str,
    is_lost: bool,
    is_read: bool,
) -> None:
    """What the answer tells of belongs to the key, which is another file's by then."""

    @simulated
    async def run() -> None:
        world = World(tmp_path, opaque_etags=True)
        world.bucket.habits.renames = world.bucket.habits.appends = True
        other = b"other" * PART_BYTES
        await world.foreign_put("f", BEFORE)
        await world.foreign_put("g", other)
        world.faults = late = LateAnswers(operation)
        async with world.mounted() as mount:
            await mount.sync()
            if is_read:
                # So that nothing has to be fetched from S3.
                assert await mount.read("f") == BEFORE
                assert await mount.read("g") == other
            late.is_late, late.is_lost = True, is_lost
            after = await act(mount)
            with trio.fail_after(LATE_S):
                await late.waits.wait()
            await mount.rename("f", "g", RENAME_EXCHANGE)
            late.slow = "g"
            for _ in range(30):
                await trio.sleep(LATE_S / 20)
                if not is_read:
                    assert await mount.read("g") == after
                    assert await mount.read("f") == other
            await mount.sync()
            assert await mount.read("g") == after
            assert await mount.read("f") == other
            assert world.files() == {"f": other, "g": after}
            assert mount.leftovers() == []

    run()

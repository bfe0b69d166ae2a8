"""A large folder moves in slices: others go on meanwhile, and see it under one of its names, never both or none."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import trio

from s3mount import crashpoints
from s3mount.errors import LocalDiskError
from s3mount.spool.journal.changes import Delete
from s3mount.spool.journal.inspection import inspect
from s3mount.spool.journal.journal import Journal
from s3mount.spool.step import Step
from s3mount.vfs.namespace.subtree import AHEAD_MIN, SubtreeMove
from tests.sim.mount import Mount
from tests.sim.world import Killed, World, simulated, small_steps
from tests.unit.vfs.scripted import Script

FILES = 12


@pytest.fixture
def in_small_steps() -> Iterator[None]:
    with small_steps():
        yield


def body(number: int) -> bytes:
    return b"%d." % number * (number + 1)


async def half_sent(world: World, mount: Mount, count: int) -> dict[str, bytes]:
    """A folder of which half is in S3, and the rest pending; what its files hold."""
    await mount.makedirs("d/in")
    files = {f"{'in/' * (n % 2)}f{n:04}": body(n) for n in range(count)}
    for number, (name, data) in enumerate(files.items()):
        if number == count // 2:
            await mount.sync()
        await mount.write(f"d/{name}", data)
    await mount.change("d/f0000", b"edit", 1)
    files["f0000"] = (files["f0000"][:1] + b"edit" + files["f0000"][5:])[: max(5, 1)]
    return files


async def files_in(mount: Mount, folder: str) -> dict[str, bytes]:
    tree = await mount.tree(folder)
    start = len(folder) + 1
    return {path[start:]: data for path, data in tree.items() if data is not None}


@simulated
async def test_who_looks_while_a_folder_moves_sees_it_under_one_name(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(upload_delay_s=100.0) as mount:
        await mount.mkdir("d")
        for number in range(2 * AHEAD_MIN):
            await mount.write(f"d/f{number:04}", body(number))
        looks = 0
        is_moved = False

        async def move() -> None:
            nonlocal is_moved
            await mount.rename("d", "e")
            is_moved = True

        with mock.patch("s3mount.slices.SLICE_S", 0.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(move)
                while not is_moved:
                    [name] = await mount.listdir()
                    assert name in ("d", "e")
                    number = looks % (2 * AHEAD_MIN)
                    assert await mount.read(f"{name}/f{number:04}") == body(number)
                    looks += 1
        assert looks > 5, "it was moved in one turn"
        await mount.sync()
        assert len(world.files()) == 2 * AHEAD_MIN
        assert mount.leftovers() == []


@pytest.mark.parametrize("seed", range(12))
def test_what_is_done_in_a_folder_while_it_moves_is_kept(
    tmp_path: Path, in_small_steps: None, seed: int
) -> None:
    @simulated
    async def run() -> None:
        rng = random.Random(seed)
        world = World(tmp_path, faults=Script(latency_s=0.01))
        async with world.mounted(upload_delay_s=rng.choice((0.0, 0.02))) as mount:
            files = await half_sent(world, mount, FILES)
            node = await mount.node("d")
            is_over = False

            async def work() -> None:
                naming = mount.fs.naming
                for number in range(40):
                    name = rng.choice([*(name for name in files if "/" not in name), "new"])
                    if name not in files:
                        child = await naming.create(node, name, 0o644, mount.creator)
                        fd = mount._hold(child, os.O_RDWR)
                        files[name] = b"%d" % number
                        await mount.pwrite(fd, files[name], 0)
                        await trio.sleep(rng.choice((0, 0.005)))
                        await mount.close(fd)
                    elif rng.random() < 0.3:
                        await naming.unlink(node, name)
                        del files[name]
                    else:
                        child = await naming.existing(node, name)
                        await mount.fs.contents.truncate(child, 1)
                        files[name] = files[name][:1].ljust(1, b"\0")
                    await trio.sleep(rng.choice((0, 0, 0.001, 0.02)))

            async def move() -> None:
                here, there = "d", "e"
                while not is_over:
                    await mount.rename(here, there)
                    here, there = there, here
                    await trio.sleep(rng.choice((0.001, 0.03)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(move)
                await work()
                is_over = True
            [name] = await mount.listdir()
            assert await files_in(mount, name) == files
            await mount.sync()
            assert world.files() == {f"{name}/{path}": data for path, data in files.items()}
            await trio.sleep(3)
            assert mount.leftovers() == []

    run()


STEPS = [
    ("step: written ahead", 1),
    ("step: written ahead", 3),
    ("spool: recorded", 1),
    ("rename: directory recorded", 1),
    ("journal: committed", 4),
    ("journal: committed", 9),
    ("step: settled in part", 1),
    ("step: settled in part", 4),
]


@pytest.mark.parametrize(("step", "count"), STEPS)
def test_a_kill_while_a_folder_moves_leaves_it_under_one_name(
    tmp_path: Path, in_small_steps: None, step: str, count: int
) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        files: dict[str, bytes] = {}
        try:
            async with world.mounted(upload_delay_s=100.0) as mount:
                files = await half_sent(world, mount, FILES)
                left = count

                def passed(name: str) -> None:
                    nonlocal left
                    left -= name == step
                    if left == 0 and name == step:
                        mount.kill()

                with crashpoints.listening(passed):
                    await mount.rename("d", "e")
                    await trio.sleep(1)
                raise AssertionError("not killed")
        except Killed:
            pass
        found = inspect(world.state, is_in_use=False).changes
        told = {change.key.split("/")[0] for change in found if not isinstance(change, Delete)}
        async with world.mounted() as mount:
            [name] = await mount.listdir()
            assert told - {".s3mount"} == {name}
            assert await files_in(mount, name) == files
            await mount.sync()
            assert world.files() == {f"{name}/{path}": data for path, data in files.items()}
            await trio.sleep(3)
            assert mount.leftovers() == []

    run()


@simulated
async def test_rows_that_a_fault_kept_from_their_place_count_all_the_same(
    tmp_path: Path, unexpected: list[str]
) -> None:
    world = World(tmp_path)
    with small_steps():
        async with world.mounted() as mount:
            files = await half_sent(world, mount, FILES)
            fault = RuntimeError("thrown by the test")
            with mock.patch.object(Journal, "settle_step", side_effect=fault):
                await mount.rename("d", "e")
            await mount.change("e/f0002", b"!", 0)
            files["f0002"] = b"!" + files["f0002"][1:]
            await mount.rename("e", "f")
            assert await files_in(mount, "f") == files
            await mount.sync()
            assert world.files() == {f"f/{path}": data for path, data in files.items()}
            await trio.sleep(3)
            assert mount.leftovers() == []
    unexpected.clear()


async def take_its_name(mount: Mount) -> None:
    await mount.write("to/e", b"taken")


async def leave_its_name(mount: Mount) -> None:
    await mount.rename("d", "elsewhere")


async def move_where_it_goes(mount: Mount) -> None:
    await mount.rename("to", "other")


async def remove_where_it_goes(mount: Mount) -> None:
    await mount.rmdir("to")


@pytest.mark.parametrize(
    ("meanwhile", "error", "why"),
    [
        (take_its_name, errno.EBUSY, "was taken"),
        (leave_its_name, errno.ENOENT, "went elsewhere"),
        (move_where_it_goes, errno.ENOENT, "is gone"),
        (remove_where_it_goes, errno.ENOENT, "is gone"),
    ],
)
def test_a_folder_whose_move_has_lost_its_sense_stays_whole(
    tmp_path: Path,
    in_small_steps: None,
    meanwhile: Callable[[Mount], Awaitable[None]],
    error: int,
    why: str,
) -> None:
    """Linux keeps programs from doing so meanwhile; what others did may be shown at any time."""

    @simulated
    async def run() -> None:
        world = World(tmp_path)
        async with world.mounted() as mount:
            files = await half_sent(world, mount, FILES)
            await mount.mkdir("to")
            plan_ahead = SubtreeMove.plan_ahead

            async def plan(move: SubtreeMove, step: Step) -> None:
                await plan_ahead(move, step)
                if move.new_prefix == "to/e/":
                    # The other move waits for this one's end.
                    with mock.patch.object(mount.spool, "steps", trio.Lock()):
                        await meanwhile(mount)

            with mock.patch.object(SubtreeMove, "plan_ahead", plan):
                with pytest.raises(OSError, match=why) as raised:
                    await mount.rename("d", "to/e")
                assert raised.value.errno == error
            names = set(await mount.listdir()) - {"to", "other"}
            assert await files_in(mount, names.pop()) == files
            assert not names
            await mount.sync()
            await trio.sleep(3)
            assert mount.leftovers() == []
            assert len(world.files()) == len(files) + (meanwhile is take_its_name)

    run()


@simulated
async def test_a_folder_that_cannot_be_journalled_stays_where_it_is(tmp_path: Path) -> None:
    world = World(tmp_path)
    with small_steps():
        async with world.mounted() as mount:
            files = await half_sent(world, mount, FILES)
            for method in ("write_ahead", "take_step"):
                full = LocalDiskError("no room")
                with (
                    mock.patch.object(Journal, method, side_effect=full),
                    pytest.raises(LocalDiskError),
                ):
                    await mount.rename("d", "e")
                assert await mount.listdir() == ["d"]
                assert await files_in(mount, "d") == files
            await mount.rename("d", "e")
            await mount.sync()
            assert world.files() == {f"e/{path}": data for path, data in files.items()}
            await trio.sleep(3)
            assert mount.leftovers() == []

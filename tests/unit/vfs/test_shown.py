"""The release of a written file waits for those who were just told its size from before."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from s3mount.vfs.live import LiveView
from s3mount.vfs.shown import HELD_MAX, TAKEN_IN_S
from tests.sim.mount import Mount
from tests.sim.world import World, simulated


async def listed(mount: Mount, live: LiveView) -> None:
    """What READDIRPLUS answers of the folder."""
    opened = live.open_directory((await mount.node("d")).inode)
    await opened.rewind()
    assert {name async for name, entry in opened.entries(0) if entry is not None}


async def appended(mount: Mount, live: LiveView, path: str) -> float:
    """Append a byte; how many seconds the release takes."""
    node = await mount.node(path)
    handle = await live.open(node.inode, os.O_WRONLY | os.O_APPEND, 0)
    await live.write(handle, node.size, b"+")
    await live.flush(handle)
    began = trio.current_time()
    await live.release_in_time(handle)
    return trio.current_time() - began


@simulated
async def test_a_release_outlasts_the_answers_that_told_of_another_size(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"base")
    async with world.mounted(metadata_ttl_s=60.0) as mount:
        live = LiveView(mount.fs)
        assert await appended(mount, live, "d/a") == 0.0
        await listed(mount, live)
        assert 0.9 * TAKEN_IN_S < await appended(mount, live, "d/a") <= TAKEN_IN_S
        assert await appended(mount, live, "d/a") == 0.0
        node = await mount.node("d/a")
        handle = await live.open(node.inode, os.O_WRONLY, 0)
        assert await live.lookup((await mount.node("d")).inode, "a") is not None
        await live.write(handle, 0, b"B")
        await live.flush(handle)
        began = trio.current_time()
        await live.release_in_time(handle)
        assert 0.9 * TAKEN_IN_S < trio.current_time() - began <= TAKEN_IN_S
        assert await mount.read("d/a") == b"Base+++"


@simulated
async def test_few_releases_wait_at_once_and_one_of_each_file(tmp_path: Path) -> None:
    world = World(tmp_path)
    names = [f"d/f{number}" for number in range(3 * HELD_MAX)]
    for name in names:
        await world.foreign_put(name, b"base")
    took: list[float] = []
    async with world.mounted(metadata_ttl_s=60.0) as mount:
        live = LiveView(mount.fs)
        await listed(mount, live)

        async def append(name: str) -> None:
            took.append(await appended(mount, live, name))

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(append, name)
        assert sum(each > 0.0 for each in took) == HELD_MAX
        took.clear()
        await trio.sleep(TAKEN_IN_S)
        await listed(mount, live)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(append, names[0])
                await trio.sleep(TAKEN_IN_S / 5)
        assert sorted(took)[0] < TAKEN_IN_S / 4 < 0.7 * TAKEN_IN_S < sorted(took)[1]

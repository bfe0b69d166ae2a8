"""What the kernel forgets while answers are on their way: they bring back no size and no time of before."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from s3mount.testing.memory_store import NoFaults
from s3mount.tree.node import Node
from s3mount.vfs.live import LiveView
from tests.sim.mount import Mount
from tests.sim.world import World, simulated


class ForgetsDuringRequest(NoFaults):
    """A number is given up while S3 is asked whether the file is current."""

    def __init__(self, mount: Mount, node: Node) -> None:
        self._mount = mount
        self._node = node

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if not self._mount.fs.state.files.all():
            self._mount.fs.state.nodes.renumber(self._node)


async def listed(mount: Mount, live: LiveView) -> None:
    """What READDIRPLUS answers of the folder."""
    opened = live.open_directory((await mount.node("d")).inode)
    await opened.rewind()
    assert {name async for name, entry in opened.entries(0) if entry is not None}


async def number_of(mount: Mount, live: LiveView, name: str) -> int:
    """What LOOKUP answers."""
    entry = await live.lookup((await mount.node("d")).inode, name)
    assert entry is not None
    return entry.inode


async def appended(live: LiveView, inode: int) -> None:
    """One byte more."""
    size = (await live.getattr(inode)).size
    handle = await live.open(inode, os.O_WRONLY | os.O_APPEND, 0)
    await live.write(handle, size, b"+")
    await live.flush(handle)
    live.release(handle)


@simulated
async def test_a_number_told_with_another_size_is_stale(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"base")
    async with world.mounted(metadata_ttl_s=60.0) as mount:
        live = LiveView(mount.fs)
        inode = await number_of(mount, live, "a")
        await listed(mount, live)
        await appended(live, inode)
        live.forget(inode, 1)
        with pytest.raises(OSError, match="forgotten") as raised:
            await live.open(inode, os.O_RDONLY, 0)
        assert raised.value.errno == errno.ESTALE
        anew = await number_of(mount, live, "a")
        assert anew != inode
        assert (await live.getattr(anew)).size == 5
        live.forget(inode, 1)
        await appended(live, anew)
        assert await mount.read("d/a") == b"base++"


@simulated
async def test_a_number_stays_where_all_answers_tell_what_is(tmp_path: Path) -> None:
    """Nothing has changed; or all answers were taken in; or it changed before all of them."""
    world = World(tmp_path)
    for name in "abc":
        await world.foreign_put(f"d/{name}", b"base")
    async with world.mounted(metadata_ttl_s=60.0) as mount:
        live = LiveView(mount.fs)
        numbers = [await number_of(mount, live, name) for name in "abc"]
        await listed(mount, live)
        live.forget(numbers[0], 1)
        await appended(live, numbers[1])
        live.forget(numbers[1], 2)
        live.forget(numbers[2], 2)
        await appended(live, numbers[2])
        await listed(mount, live)
        await listed(mount, live)
        live.forget(numbers[2], 1)
        assert [await number_of(mount, live, name) for name in "abc"] == numbers


@simulated
async def test_a_number_stays_while_the_file_is_open(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"base")
    async with world.mounted(metadata_ttl_s=60.0) as mount:
        live = LiveView(mount.fs)
        inode = await number_of(mount, live, "a")
        await listed(mount, live)
        handle = await live.open(inode, os.O_WRONLY, 0)
        await live.write(handle, 4, b"+")
        live.forget(inode, 1)
        assert await number_of(mount, live, "a") == inode
        live.release(handle)


@simulated
async def test_an_open_on_its_way_meets_the_new_number(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"base")
    async with world.mounted(metadata_ttl_s=1.0) as mount:
        live = LiveView(mount.fs)
        node = await mount.node("d/a")
        await trio.sleep(5)
        world.faults = ForgetsDuringRequest(mount, node)
        with pytest.raises(OSError, match="meanwhile") as raised:
            await live.open(node.inode, os.O_RDONLY, 0)
        assert raised.value.errno == errno.ESTALE
        assert not mount.fs.state.files.all()


@simulated
async def test_references_that_were_too_many_to_count_may_hide_an_answer(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(10):
        await world.foreign_put(f"d/{number}", b"base")
    async with world.mounted(metadata_ttl_s=60.0) as mount:
        live = LiveView(mount.fs)
        inode = await number_of(mount, live, "5")
        for _ in range(300):
            await listed(mount, live)
        await appended(live, inode)
        live.forget(inode, 300)
        assert await number_of(mount, live, "5") != inode

"""A listing that took long is believed for longer than the TTL; an open for reading is not misled by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.sim.mount import Mount
from tests.sim.world import World, simulated
from tests.unit.vfs.scripted import Script

SLOW_S = 0.8
"""A listing that takes so long is believed for 3.2 s, the TTL is 1 s."""


async def listed(world: World, mount: Mount) -> None:
    """The folder was listed slowly, more than the TTL ago; its listing is still believed."""
    world.faults = Script(latency_s=SLOW_S)
    assert await mount.listdir("d") == ["f", "g"]
    world.faults = Script()


@pytest.mark.parametrize("size", [5, 300_000])
def test_an_open_after_the_ttl_sees_what_s3_holds(tmp_path: Path, size: int) -> None:
    @simulated
    async def play() -> None:
        world = World(tmp_path, faults=Script())
        for name in ("f", "g"):
            await world.foreign_put(f"d/{name}", b"x" * size)
        async with world.mounted(metadata_ttl_s=1.0) as mount:
            await listed(world, mount)
            await world.foreign_put("d/f", b"y" * size)
            await trio.sleep(1.5)
            assert await mount.read("d/f") == b"y" * size
            assert await mount.read("d/g") == b"x" * size

    play()


@simulated
async def test_a_file_that_is_gone_is_not_found(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script())
    for name in ("f", "g"):
        await world.foreign_put(f"d/{name}", b"x")
    async with world.mounted(metadata_ttl_s=1.0) as mount:
        await listed(world, mount)
        await world.s3.delete("d/f")
        await trio.sleep(1.5)
        with pytest.raises(FileNotFoundError):
            await mount.open("d/f")


@simulated
async def test_it_costs_one_request_for_each_file_and_ttl(tmp_path: Path) -> None:
    world = World(tmp_path, faults=Script())
    for name in ("f", "g"):
        await world.foreign_put(f"d/{name}", b"x")
    async with world.mounted(metadata_ttl_s=1.0) as mount:
        await listed(world, mount)
        await trio.sleep(1.5)
        with world.counting() as asked:
            for _ in range(5):
                assert await mount.read("d/f") == b"x"
        assert asked["head"] == 0
        assert asked["get"] + asked["fetch"] <= 2, "the GET that is read, and its neighbour's ahead"

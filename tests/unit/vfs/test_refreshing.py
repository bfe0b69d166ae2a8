"""What was believed is forgotten on demand; with a TTL of nothing, nothing is believed."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

from tests.sim.world import World, simulated


@simulated
async def test_the_next_look_asks_s3(tmp_path: Path) -> None:
    world = World(tmp_path)
    for key in ("t/a", "t/d/b", "u/c"):
        await world.foreign_put(key, b"x")
    async with world.mounted(metadata_ttl_s=3600) as mount:
        for path in ("", "t", "t/d", "u"):
            await mount.listdir(path)
        await world.foreign_put("t/late", b"x")
        await world.foreign_put("t/d/late", b"x")
        await world.foreign_put("u/late", b"x")
        await world.foreign_put("t/a", b"longer")
        assert not await mount.exists("t/late")
        await mount.fs.refresh(["t"])
        assert await mount.listdir("t") == ["a", "d", "late"]
        assert await mount.listdir("t/d") == ["b", "late"]
        assert (await mount.stat("t/a")).st_size == 6
        assert await mount.listdir("u") == ["c"], "only what was named"
        await mount.fs.refresh([""])
        assert await mount.listdir("u") == ["c", "late"]


@simulated
async def test_a_name_that_was_missing_is_looked_for_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("t/a", b"x")
    forgotten: list[tuple[int, str]] = []

    async def forget(parent: int, name: str) -> None:
        forgotten.append((parent, name))

    async with world.mounted(metadata_ttl_s=3600, forget_entry=forget) as mount:
        assert not await mount.exists("t/b")
        await world.foreign_put("t/b", b"x")
        await mount.fs.refresh(["t/b"])
        assert await mount.exists("t/b")
        assert forgotten == [((await mount.node("t")).inode, "b")]
        await mount.fs.refresh(["t/a/none/at/all", "no/where"])


@simulated
async def test_attributes_that_others_changed_are_read_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted(metadata_ttl_s=3600) as mount:
        await mount.mkdir("d")
        await mount.write("d/a", b"x", mode=0o600)
        await mount.sync()
        await world.foreign_put("d/a", b"x", {"mode": str(0o100640)})
        assert stat.S_IMODE((await mount.stat("d/a")).st_mode) == 0o600
        await mount.fs.refresh(["d/a"])
        assert stat.S_IMODE((await mount.stat("d/a")).st_mode) == 0o640


@simulated
async def test_what_is_pending_or_open_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/old", b"old")
    async with world.mounted(metadata_ttl_s=3600, upload_delay_s=3600) as mount:
        await mount.write("d/new", b"mine", mode=0o640)
        fd = await mount.open("d/old")
        await world.foreign_put("d/old", b"other")
        await mount.fs.refresh([""])
        assert await mount.listdir("d") == ["new", "old"]
        assert stat.S_IMODE((await mount.stat("d/new")).st_mode) == 0o640
        assert await mount.read("d/old") == b"other"
        with contextlib.suppress(OSError):
            assert await mount.read_all(fd) == b"old", "or nothing"
        await mount.close(fd)


@simulated
async def test_without_a_ttl_every_look_asks(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.foreign_put("d/a", b"x")
    async with world.mounted(metadata_ttl_s=0) as mount:
        assert await mount.listdir("d") == ["a"]
        for number in range(5):
            await world.foreign_put(f"d/n{number}", b"x")
            assert await mount.exists(f"d/n{number}")
            await world.s3.delete(f"d/n{number}")
            assert not await mount.exists(f"d/n{number}")
            assert await mount.listdir("d") == ["a"]
        await mount.write("d/mine", b"1")
        assert await mount.listdir("d") == ["a", "mine"]
        await mount.sync()
        assert await mount.read("d/mine") == b"1"

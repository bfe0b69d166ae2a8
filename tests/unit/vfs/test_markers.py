"""Markers of folders on stores that treat keys ending in a slash otherwise than S3."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.sim.world import World, simulated


@simulated
async def test_the_marker_of_a_moved_folder_is_put_and_not_copied(tmp_path: Path) -> None:
    """With what is stored with it, also when another tool made it."""
    world = World(tmp_path)
    world.bucket.habits.marker_copies = False
    await world.foreign_put("d/sub/", b"", {"color": "red"})
    await world.foreign_put("d/sub/f", b"1")
    async with world.mounted() as mount:
        await mount.mkdir("d/mine", 0o711)
        await mount.sync()
    async with world.mounted() as mount:
        await mount.rename("d", "e")
        await mount.sync()
        assert not mount.pending()
        assert sorted(world.bucket.contents()) == [
            ".s3mount/",
            "e/",
            "e/mine/",
            "e/sub/",
            "e/sub/f",
        ]
        assert (await world.metadata("e/sub/"))["color"] == "red"
        assert stat.S_IMODE(int((await world.metadata("e/mine/"))["mode"])) == 0o711
    async with world.mounted() as mount:
        assert stat.S_IMODE((await mount.stat("e/mine")).st_mode) == 0o711


@simulated
async def test_markers_that_lose_their_metadata_do_not_cost_the_modes_of_files(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.bucket.habits.marker_metadata = False
    async with world.mounted() as mount:
        await mount.mkdir("d")
        await mount.write("d/secret", b"1", mode=0o600)
        await mount.sync()
    world.cache = tmp_path / "another cache"
    async with world.mounted() as mount:
        await mount.sync()
        assert await mount.listdir("d") == ["secret"]
        assert stat.S_IMODE((await mount.stat("d/secret")).st_mode) == 0o600


@simulated
async def test_where_markers_become_files_none_is_written(tmp_path: Path) -> None:
    """A folder that was made here is there until the unmount; one with a file in it stays."""
    world = World(tmp_path)
    world.bucket.habits.markers = False
    async with world.mounted(metadata_ttl_s=0.1) as mount:
        await mount.mkdir("empty")
        await mount.mkdir("full")
        await mount.write("full/f", b"1", mode=0o640)
        await mount.chmod("full", 0o700)
        await mount.sync()
        assert await mount.listdir() == ["empty", "full"]
        assert list(world.bucket.contents()) == ["full/f"]
        await mount.mkdir("empty/below")
        await mount.rename("empty", "moved")
        await mount.sync()
        assert await mount.tree() == {
            "full": None,
            "full/f": b"1",
            "moved": None,
            "moved/below": None,
        }
        await mount.rmdir("moved/below")
        await mount.rmdir("moved")
        await mount.sync()
        assert await mount.listdir() == ["full"]
        assert not mount.pending()
        assert list(world.bucket.contents()) == ["full/f"]
    async with world.mounted() as mount:
        assert await mount.listdir() == ["full"]
        assert stat.S_IMODE((await mount.stat("full/f")).st_mode) == 0o640

"""What status tells of bytes: those that were sent, and those of parts that S3 copied itself."""

from __future__ import annotations

from pathlib import Path

from tests.sim.world import PART_BYTES, World, simulated


@simulated
async def test_copied_parts_do_not_count_as_sent(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.mounted() as mount:
        statistics = mount.fs.uploader.statistics
        await mount.write("big", b"b" * 4 * PART_BYTES)
        await mount.sync()
        before = statistics()
        assert before["uploaded_bytes"] == 4 * PART_BYTES
        assert before["copied_bytes"] == 0
        await mount.change("big", b"ours", 10)
        await mount.sync()
        now = statistics()
        assert now["uploaded_bytes"] - before["uploaded_bytes"] == PART_BYTES
        assert now["copied_bytes"] == 3 * PART_BYTES
        await mount.write("small", b"1234567")
        await mount.sync()
        assert statistics()["uploaded_bytes"] - now["uploaded_bytes"] == 7

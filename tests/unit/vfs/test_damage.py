"""A spool whose disk alters bytes: they are found before they are sent, the file waits, the others go on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from s3mount.errors import S3MountError
from s3mount.spool.journal.changes import blob_id_of
from tests.sim.mount import Mount
from tests.sim.world import PART_BYTES, World, simulated
from tests.unit.vfs.scripted import Script

PART = PART_BYTES


def flip(mount: Mount, key: str, at: int) -> None:
    """One bit of a pending file is not as it was written."""
    blob = mount.spool.live_blobs[blob_id_of(mount.spool.changes[key])]
    (byte,) = os.pread(blob.fd, 1, at)
    os.pwrite(blob.fd, bytes([byte ^ 4]), at)


@pytest.mark.parametrize("size", [100, 3000, 5 * PART])
def test_a_file_that_rotted_is_parked_and_never_sent(tmp_path: Path, size: int) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        async with world.mounted(upload_delay_s=5) as mount:
            await mount.write("good", b"g" * size)
            await mount.write("bad", b"b" * size)
            flip(mount, "bad", size - 1)
            with pytest.raises(S3MountError, match="not those that were written"):
                await mount.sync()
            assert world.files() == {"good": b"g" * size}
            assert mount.pending()["bad"] == "put parked"
            await mount.write("bad", b"again")
            await mount.sync()
            assert world.files() == {"good": b"g" * size, "bad": b"again"}

    run()


@pytest.mark.parametrize("size", [100, 3000, 5 * PART])
def test_a_file_that_rotted_between_two_runs_is_found_too(tmp_path: Path, size: int) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        async with world.mounted(upload_delay_s=5) as mount:
            await mount.write("bad", b"b" * size)
            flip(mount, "bad", 0)
        async with world.mounted() as mount:
            with pytest.raises(S3MountError, match="not those that were written"):
                await mount.sync()
            assert world.files() == {}

    run()


@simulated
async def test_rot_in_a_part_that_streams_keeps_the_file_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        await mount.sync()
        gate = script.hold("create_multipart", "film.mkv")
        fd = await mount.create("film.mkv")
        for number in range(6):
            await mount.pwrite(fd, b"x" * PART, number * PART)
        await script.waiting.wait()
        flip(mount, "film.mkv", 2 * PART)
        gate.set()
        await trio.sleep(1)
        await mount.close(fd)
        with pytest.raises(S3MountError, match="not those that were written"):
            await mount.sync()
        assert world.files() == {}


@simulated
async def test_a_part_written_while_it_is_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    """The engine reads the part some time after its checksum was told."""
    world = World(tmp_path)
    world.faults = script = Script()
    async with world.mounted() as mount:
        await mount.sync()
        fd = await mount.create("film.mkv")
        with world.counting() as asked:
            script.latency_s = 1.0
            for number in range(6):
                await mount.pwrite(fd, b"x" * PART, number * PART)
            await trio.sleep(1.25)
        assert asked["create_multipart"] == 1
        await mount.pwrite(fd, b"HEAD", 0)
        await mount.close(fd)
        await mount.sync()
        assert world.files()["film.mkv"] == b"HEAD" + b"x" * (6 * PART - 4)
        assert mount.fs.uploader.counters["parked"] == 0

"""A file is removed or replaced while its bytes are read to be sent: that is no damage and no fault."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3mount.errors import DamagedBodyError
from tests.sim.mount import Mount
from tests.sim.world import PART_BYTES, World, simulated
from tests.unit.vfs.scripted import Script

BIG = bytes(range(251)) * (6 * PART_BYTES // 251)


def _damaged() -> DamagedBodyError:
    return DamagedBodyError("other bytes than were written", key="f")


async def closed(mount: Mount) -> None:
    await mount.write("f", BIG)


async def of_one_part(mount: Mount) -> None:
    await mount.write("f", BIG[:PART_BYTES])


async def still_open(mount: Mount) -> None:
    fd = await mount.create("f")
    for at in range(0, len(BIG), PART_BYTES):
        await mount.pwrite(fd, BIG[at : at + PART_BYTES], at)


async def streamed(mount: Mount) -> None:
    fd = await mount.create("f")
    for at in range(0, len(BIG), PART_BYTES):
        await mount.pwrite(fd, BIG[at : at + PART_BYTES], at)
    await trio.sleep(10.5)
    await mount.close(fd)


async def changed_at_random(mount: Mount) -> None:
    await mount.write("f", BIG)
    for at in (3, 2 * PART_BYTES, 5 * PART_BYTES, PART_BYTES):
        await mount.change("f", b"changed", at)


async def known_to_s3(mount: Mount) -> None:
    await mount.write("g", BIG)
    await mount.sync()
    await mount.write("f", BIG)


async def laid_over_a_base(mount: Mount) -> None:
    await mount.write("f", BIG)
    await mount.sync()
    await mount.change("f", b"changed", 2 * PART_BYTES)


WAYS = [closed, of_one_part, still_open, streamed, changed_at_random, known_to_s3, laid_over_a_base]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when_s", [3.0, 9.0, 21.0])
@pytest.mark.parametrize("replaces", [False, True])
def test_what_is_removed_while_it_is_sent_ends_quietly(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    way: Callable[[Mount], Awaitable[None]],
    when_s: float,
    replaces: bool,
) -> None:
    caplog.set_level(logging.INFO)

    @simulated
    async def run() -> None:
        world = World(tmp_path)
        async with world.mounted(upload_delay_s=0, metadata_ttl_s=1e6) as mount:
            await mount.write("other", b"other")
            await mount.sync()
            world.faults = script = Script()
            async with trio.open_nursery() as nursery:
                script.latency_s = 0 if way in (known_to_s3, laid_over_a_base) else 10
                await way(mount)
                script.latency_s = 10
                await trio.sleep(when_s)
                for operation in ("put", "upload_part"):
                    # The engine read the file while it was written, and tells of it when it is gone.
                    script.fail(operation, _damaged, key="f")
                if replaces:
                    nursery.start_soon(mount.rename, "other", "f")
                else:
                    nursery.start_soon(mount.unlink, "f")
                await trio.sleep(60)
            script.latency_s = 0
            script.rules.clear()
            await mount.sync()
            files = world.files()
            assert files.get("f") == (b"other" if replaces else None)

    run()
    told = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert not [text for text in told if "not done yet" not in text]
    assert not [text for text in told if "written" in text or "internal" in text]

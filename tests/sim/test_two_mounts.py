"""Two mounts write the same keys of one bucket, under virtual time: no line that a program wrote is lost.

The kernel's part is played here too: it believes a name for the metadata TTL, keeps the pages of an
inode for good, and sends OPEN a while after the LOOKUP it rests on.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
import trio.testing

from s3mount.errors import S3MountError
from s3mount.refs import ObjectHeaders
from s3mount.tree.node import Node
from tests.sim.faults import Profile, SeededFaults
from tests.sim.mount import Mount
from tests.sim.world import World, small_blocks, small_requests

TTL_S = 1.0
WRITE_S = 4.0
CALM = Profile("calm", latency_s=0.01)
FLAKY = Profile("flaky", failed=0.05, lost=0.03, latency_s=0.01)


class Line(NamedTuple):
    """What a program believes to have written: close() had returned."""

    name: str
    text: bytes


class Kernel:
    """What Linux remembers of a mount: names for a while, and the pages of inodes."""

    def __init__(self, mount: Mount, rng: random.Random) -> None:
        self.mount = mount
        self.rng = rng
        self._names: dict[str, tuple[Node, float]] = {}
        self._pages: dict[int, bytes] = {}

    async def _lookup(self, name: str, *, is_anew: bool) -> Node:
        known = self._names.get(name)
        if known is not None and not is_anew and trio.current_time() < known[1]:
            return known[0]
        node = await self.mount.node(name)
        node.lookups += 1
        self._names[name] = node, trio.current_time() + TTL_S
        return node

    async def append(self, name: str, line: bytes) -> None:
        """open(O_RDWR), read all, write all and ``line``, close. Raises OSError, S3MountError."""
        contents = self.mount.fs.contents
        node, fd = await self._open(name)
        try:
            if node.inode not in self._pages:
                self._pages[node.inode] = await self.mount.pread(fd, node.size, 0)
            await self._pause()
            text = self._pages[node.inode] + line
            await self.mount.pwrite(fd, text, 0)
            self._pages[node.inode] = text
        finally:
            await contents.flush(contents.handle(fd))
            await self._pause()
            contents.release(fd)

    async def _open(self, name: str) -> tuple[Node, int]:
        for is_anew in (False, True):
            node = await self._lookup(name, is_anew=is_anew)
            await self._pause()
            try:
                return node, await self.mount.fs.contents.open_to_write(node, os.O_RDWR)
            except OSError as error:
                if error.errno != errno.ESTALE or is_anew:
                    raise
        raise AssertionError("not reached")

    async def _pause(self) -> None:
        await trio.sleep(self.rng.uniform(0.0, 0.003))


async def write_lines(kernel: Kernel, program: str, names: list[str]) -> list[Line]:
    """Append lines to files at random; those whose writing succeeded."""
    written = []
    until = trio.current_time() + WRITE_S
    number = 0
    while trio.current_time() < until:
        name = kernel.rng.choice(names)
        line = b"%s%d\n" % (program.encode(), number)
        number += 1
        try:
            await kernel.append(name, line)
            written.append(Line(name, line))
        except (OSError, S3MountError):
            # The version that was opened was replaced before it was read, or S3 failed: the program is told.
            await trio.sleep(0.01)
        await trio.sleep(kernel.rng.uniform(0.001, 0.02))
    return written


async def play(seed: int, folder: Path) -> None:
    """One bucket, two mounts, a program on each."""
    rng = random.Random(seed)
    worlds = [World(folder / side) for side in ("left", "right")]
    for number, world in enumerate(worlds):
        world.folder.mkdir()
        world.clock, world.bucket, world.s3 = worlds[0].clock, worlds[0].bucket, worlds[0].s3
        profile = rng.choice((CALM, FLAKY))
        world.faults = SeededFaults(profile, random.Random(f"{seed} {number}"))
    names = [f"file{number}" for number in range(rng.choice((5, 20, 50)))]
    for name in names:
        await worlds[0].s3.put(name, b"begun\n", ObjectHeaders())
    async with (
        worlds[0].mounted(metadata_ttl_s=TTL_S, upload_delay_s=rng.choice((0.0, 0.25))) as left,
        worlds[1].mounted(metadata_ttl_s=TTL_S, upload_delay_s=rng.choice((0.0, 0.25))) as right,
    ):
        mounts = {"left": left, "right": right}
        written: list[Line] = []

        async def work(program: str) -> None:
            kernel = Kernel(mounts[program], random.Random(f"{seed} {program}"))
            written.extend(await write_lines(kernel, program, names))

        async with trio.open_nursery() as nursery:
            for program in mounts:
                nursery.start_soon(work, program)
        for world in worlds:
            assert isinstance(world.faults, SeededFaults)
            world.faults.calm_down(True)
        for mount in mounts.values():
            await mount.sync()
        conflicts = sum(mount.fs.uploader.counters["conflicts"] for mount in mounts.values())
    there = {key: data.splitlines(keepends=True) for key, data in worlds[0].files().items()}
    lost = [line for line in written if not _is_there(line, there)]
    assert not lost
    assert len(written) > 100
    assert conflicts, "the two never met"


def _is_there(line: Line, there: dict[str, list[bytes]]) -> bool:
    return any(
        line.text in lines
        for key, lines in there.items()
        if key == line.name or key.startswith(f"{line.name}.conflict-")
    )


@pytest.mark.parametrize("seed", range(6))
def test_no_line_is_lost(seed: int, tmp_path: Path) -> None:
    random.seed(seed)
    with small_requests(), small_blocks():
        trio.run(play, seed, tmp_path, clock=trio.testing.MockClock(autojump_threshold=0))

"""Many who walk one tree while it is renamed, written, forgotten and cut off: nothing is shown wrong, nothing fails.

S3MOUNT_WALKER_SEEDS says how many seeds are played.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3mount.errors import S3MountError
from tests.sim.faults import PROFILES, SeededFaults
from tests.sim.mount import Mount
from tests.sim.world import World, simulated
from tests.unexpected import none_expected

SEEDS = int(os.environ.get("S3MOUNT_WALKER_SEEDS", "8"))
TREES = 8
THEIRS = "t7"
"""Only here others write past the mount, and nothing is renamed: a rename of what others replace is a conflict."""
FOLDERS = 8
WALKERS = 12
WALKS = 3
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTEMPTY, errno.EEXIST, errno.EXDEV)
"""What a program may be told whose file another one moved or removed just then."""


class InStep(SeededFaults):
    """Answers come at round times, so that several things happen in one step of the scheduler."""

    async def _travel(self) -> None:
        await trio.sleep(self._rng.choice((0.0, 0.02, 0.02, 0.04)))


Job = Callable[[random.Random], Awaitable[None]]


class Crowd:
    """Programs that use one mount without regard for each other."""

    def __init__(self, world: World, mount: Mount, faults: SeededFaults, seed: int) -> None:
        self.world = world
        self.mount = mount
        self.faults = faults
        self.seed = seed
        self.walking = WALKERS
        self.walked = 0

    async def play(self) -> None:
        """Until all walkers are through."""
        others = [self.rename, self.write, self.write_past, self.read, self.refresh, self.cut_off]
        async with trio.open_nursery() as nursery:
            for number in range(WALKERS):
                nursery.start_soon(self._walks, random.Random(f"{self.seed} walker {number}"))
            for job in others:
                nursery.start_soon(self._meanwhile, job, random.Random(f"{self.seed} {job}"))

    async def _walks(self, rng: random.Random) -> None:
        for _ in range(WALKS):
            await self._try(self.walk, rng)
        self.walking -= 1

    async def _meanwhile(self, job: Job, rng: random.Random) -> None:
        while self.walking:
            await trio.sleep(rng.expovariate(4))
            await self._try(job, rng)

    async def _try(self, job: Job, rng: random.Random) -> None:
        try:
            await job(rng)
        except S3MountError as error:
            if not error.retryable:
                raise
            await trio.sleep(0.5)
        except OSError as error:
            if error.errno not in GONE:
                raise

    def _tree(self, rng: random.Random) -> str:
        return f"t{rng.randrange(TREES)}"

    async def walk(self, rng: random.Random) -> None:
        """What ``find`` does; some stop half-way, some come in where another one is already."""
        waiting = [self._tree(rng)]
        while waiting and rng.random() > 0.01:
            path = waiting.pop()
            for name in await self.mount.listdir(path):
                below = f"{path}/{name}"
                node = await self.mount.find(below)
                if node is not None and node.is_directory:
                    waiting.append(below)
            waiting.sort(reverse=True)
            self.walked += 1

    async def rename(self, rng: random.Random) -> None:
        tree, other = rng.sample([f"t{number}" for number in range(TREES - 1)], 2)
        folders = [name for name in await self.mount.listdir(tree) if name.startswith("d")]
        if folders:
            name = rng.choice(folders)
            await self.mount.rename(
                f"{tree}/{name}", f"{rng.choice((tree, other))}/d{rng.randrange(99):03}"
            )

    async def write(self, rng: random.Random) -> None:
        tree = self._tree(rng)
        await self.mount.write(f"{tree}/d{rng.randrange(FOLDERS):03}/mine", b"m" * 100)

    async def write_past(self, rng: random.Random) -> None:
        place = f"{THEIRS}/d{rng.randrange(FOLDERS):03}/e/f{rng.randrange(8)}"
        self.world.put_now(place, b"t" * rng.randrange(1, 200))

    async def read(self, rng: random.Random) -> None:
        folder = f"{self._tree(rng)}/d{rng.randrange(FOLDERS):03}"
        for name in await self.mount.listdir(folder):
            node = await self.mount.find(f"{folder}/{name}")
            if node is not None and not node.is_directory:
                await self.mount.read(f"{folder}/{name}")

    async def refresh(self, rng: random.Random) -> None:
        await self.mount.fs.refresh([rng.choice(["", self._tree(rng)])])

    async def cut_off(self, rng: random.Random) -> None:
        self.faults.calm_down(False)
        await trio.sleep(rng.expovariate(0.5))
        self.faults.calm_down(True)
        await trio.sleep(rng.expovariate(0.5))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_walkers_meet_the_mount_stays_and_shows_what_there_is(
    seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    trio._core._run._r.seed(seed)

    @simulated
    async def run() -> None:
        faults = InStep(rng.choice(PROFILES), rng)
        world = World(tmp_path, faults=faults)
        faults.calm_down(True)
        for tree in range(TREES):
            for folder in range(FOLDERS):
                for file in range(rng.choice((2, 8))):
                    world.put_now(f"t{tree}/d{folder:03}/e/f{file}", b"first")
                world.put_now(f"t{tree}/d{folder:03}/f", b"first")
        async with world.mounted(
            metadata_ttl_s=rng.choice((0.2, 1.0, 5.0)), upload_delay_s=0.1
        ) as mount:
            mount.fs.state.nodes.bytes_max = rng.choice((0, 200_000, 1 << 30))
            crowd = Crowd(world, mount, faults, seed)
            await crowd.play()
            assert crowd.walked > 20
            faults.calm_down(True)
            await mount.sync()
            await trio.sleep(10)
            found = {path: data for path, data in (await mount.tree()).items() if data is not None}
            assert found == world.files()

    with none_expected():
        run()

"""The simulation: ``python -m tests.sim.run SEED [COUNT]`` plays seeds, each exactly as every time before.

One seed is a bucket with faults and a few lives of one mount, each used by two programs at once and
each but the last ended by a kill: at a random step of any task, or at a step that changes the
state folder. After every kill what was closed or synced must be there; at the end S3 must hold
exactly what the programs left, and the mount nothing.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from unittest import mock

import trio
import trio.testing

from tests.sim.faults import PROFILES, SeededFaults
from tests.sim.foreign import Rivals
from tests.sim.program import Program, Wrong
from tests.sim.world import STEPS, Mount, World, small_blocks, small_requests

LIVES_MAX = 4
OPERATIONS_MAX = 60
TASK_STEPS_MAX = 400_000
"""A life that takes more is going in circles."""
SETTLE_S = 120.0
"""What is done in the background (aborting uploads) gets so long, in virtual time."""


class Killer(trio.abc.Instrument):
    """Kills a mount at a chosen step: the n-th of any task, or the n-th of one name."""

    def __init__(self, rng: random.Random, *, is_last: bool) -> None:
        self.mount: Mount | None = None
        self.killed_at = ""
        self.task_steps = 0
        self.is_endless = False
        self._at_task_step = 0
        self._at_name = ""
        self._left = 0
        if is_last:
            return
        if rng.random() < 0.5:
            self._at_task_step = int(rng.lognormvariate(6.0, 1.2)) + 1
            return
        owner = rng.choice(sorted(STEPS))
        when = rng.choice(("before", "after"))
        self._at_name = f"{when} {owner}.{rng.choice(STEPS[owner])}"
        self._left = rng.choice((1, 1, 2, 3, 5, 10, 20))

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.task_steps += 1
        if self.task_steps == self._at_task_step:
            self._kill("a task's step")
        elif self.task_steps > TASK_STEPS_MAX and self.mount is not None:
            self.is_endless = True
            self.mount.kill()

    def step(self, name: str) -> None:
        """A step that changes the state folder is about to be, or was, done."""
        if name == self._at_name:
            self._left -= 1
            if self._left == 0:
                self._kill(name)

    def _kill(self, where: str) -> None:
        if self.mount is not None and not self.mount.is_dead:
            self.killed_at = where
            self.mount.kill()


class Simulation:
    """One seed. ``log`` is what happened, ``kills`` counts where the kills hit."""

    def __init__(self, seed: int, folder: Path, *, is_verbose: bool = False) -> None:
        self.seed = seed
        self.is_verbose = is_verbose
        self.folder = folder
        self.log: list[str] = []
        self.kills: Counter[str] = Counter()
        self._rng = random.Random(seed)

    def _also_log(self) -> None:
        """Show what the mount logs among what happens."""
        handler = logging.Handler()
        handler.emit = lambda record: self.say(f"log: {record.getMessage()}")  # type: ignore[method-assign]
        logging.getLogger("s3mount").handlers = [handler]
        logging.getLogger("s3mount").setLevel(logging.INFO)

    def say(self, text: str) -> None:
        """Note what happens, with the virtual time."""
        self.log.append(f"{trio.current_time():9.3f} {text}")

    async def run(self) -> None:
        """Play it. Raises Wrong."""
        rng = self._rng
        profile = rng.choice(PROFILES)
        world = World(self.folder, versioning=rng.choice(("off", "off", "enabled")))
        if self.is_verbose:
            world.on_request = self.say
            self._also_log()
        world.faults = faults = SeededFaults(profile, random.Random(rng.random()))
        programs = [Program(f"d{n}", random.Random(rng.random()), self.say) for n in range(2)]
        rivals = Rivals(random.Random(rng.random()), self.say) if rng.random() < 0.5 else None
        lives = rng.randint(1, LIVES_MAX)
        for life in range(lives):
            is_last = life == lives - 1
            self.say(f"life {life + 1} of {lives}, {profile.name}")
            await self._live(world, faults, programs, rivals, is_first=life == 0, is_last=is_last)
        world.faults = None
        await self._look_from_elsewhere(world, programs)

    async def _live(
        self,
        world: World,
        faults: SeededFaults,
        programs: list[Program],
        rivals: Rivals | None,
        *,
        is_first: bool,
        is_last: bool,
    ) -> None:
        rng = self._rng
        killer = Killer(rng, is_last=is_last)
        trio.lowlevel.add_instrument(killer)
        try:
            async with world.mounted(on_step=killer.step, is_settled=False) as mount:
                killer.mount = mount
                if not is_first:
                    is_sent = rng.random() < 0.5
                    for program in programs:
                        await program.recover(mount, is_sent=is_sent)
                async with trio.open_nursery() as nursery:
                    for program in programs:
                        count = rng.randint(0, OPERATIONS_MAX)
                        nursery.start_soon(program.run, mount, count)
                    if rivals is not None:
                        nursery.start_soon(rivals.write_past, world, rng.randint(0, 15))
                        nursery.start_soon(rivals.write_through, mount, rng.randint(0, 15))
                if is_last:
                    await self._end(world, mount, faults, programs)
                    if rivals is not None:
                        rivals.judge(world)
                else:
                    mount.kill()
        finally:
            trio.lowlevel.remove_instrument(killer)
        if killer.is_endless:
            raise Wrong(f"a life took more than {TASK_STEPS_MAX} steps")
        self.kills[killer.killed_at or "at the end"] += 1
        if killer.killed_at:
            self.say(f"killed at {killer.killed_at}")

    async def _end(
        self, world: World, mount: Mount, faults: SeededFaults, programs: list[Program]
    ) -> None:
        faults.calm_down(True)
        self.say("the end")
        await mount.sync()
        for program in programs:
            await program.compare_with_s3(world)
        await trio.sleep(SETTLE_S)
        await mount.sync()
        left = mount.leftovers()
        for upload in await world.s3.list_uploads(""):
            # One that was begun and never heard of holds nothing, and nobody can know it as ours.
            if await world.s3.list_parts(upload.key, upload.upload_id):
                left.append(f"multipart upload of {upload.key}")
        if left:
            raise Wrong(f"left over: {'; '.join(left)}")

    async def _look_from_elsewhere(self, world: World, programs: list[Program]) -> None:
        """A mount that knows nothing but S3 must show the same."""
        world.state = world.next_state()
        world.cache = world.folder / "another-cache"
        async with world.mounted() as mount:
            for program in programs:
                await program.run(mount, 0)
                found = await program.seen()
                wrong = program.tree.differences(found)
                if wrong:
                    raise Wrong(f"another mount shows: {'; '.join(wrong)}")


def play(seed: int, folder: Path, *, is_verbose: bool = False) -> Simulation:
    """Play one seed in ``folder``. ``simulation.log`` tells what happened. Raises Wrong and what else is broken."""
    simulation = Simulation(seed, folder, is_verbose=is_verbose)
    folder.mkdir(exist_ok=True)
    random.seed(seed)
    # trio shuffles tasks that could run at the same time: from the seed too, and from one order.
    trio._core._run._r.seed(seed)
    scheduling = mock.patch("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    with small_requests(), small_blocks(), scheduling:
        try:
            trio.run(simulation.run, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseException as error:
            error.simulation = simulation  # type: ignore[attr-defined]
            raise
    return simulation


def main(arguments: list[str]) -> int:
    """Play seeds; a failing one is told with its last steps. The exit status is 1 if one failed."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets must not depend on the run.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.run", *arguments])
    is_verbose = "-v" in arguments
    numbers = [int(argument) for argument in arguments if argument != "-v"]
    first, count = numbers[0], numbers[1] if len(numbers) > 1 else 1
    logging.basicConfig(level=logging.CRITICAL)
    kills: Counter[str] = Counter()
    failed = 0
    started = time.monotonic()
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory(
            dir="/dev/shm" if os.path.isdir("/dev/shm") else None
        ) as folder:
            try:
                simulation = play(seed, Path(folder), is_verbose=is_verbose)
                kills += simulation.kills
                if is_verbose:
                    print("\n".join(simulation.log))
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - any error of a seed is its finding
                failed += 1
                log = error.simulation.log  # type: ignore[union-attr]
                shown = log if is_verbose else log[-25:]
                print("\n".join(shown))
                print(f"seed {seed} FAILED: {_first_of(error)}", flush=True)
                if not isinstance(_first_of(error), Wrong):
                    traceback.print_exception(error)
    for where, number in sorted(kills.items()):
        print(f"{number:6} kills {where}")
    print(f"{count - failed} passed, {failed} failed in {time.monotonic() - started:.1f} s")
    return 1 if failed else 0


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

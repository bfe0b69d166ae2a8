"""The simulation: ``python -m tests.sim.run SEED [COUNT]`` plays seeds, each exactly as every time before.

So does ``SEED,SEED,...``; with ``-v`` all that happens is told.

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
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import trio
import trio.testing

from s3mount import crashpoints
from s3mount.errors import S3MountError
from s3mount.names import is_trial_key
from s3mount.spool.journal.changes import blob_id_of
from tests.sim.disk import Disk
from tests.sim.faults import PROFILES, SeededFaults
from tests.sim.foreign import Rivals
from tests.sim.mount import Mount
from tests.sim.program import TRIES_MAX, Program, Wrong
from tests.sim.recovery import recover, recover_from_power_cut
from tests.sim.world import Killed, World, small_blocks, small_requests, small_steps
from tests.unexpected import none_expected

LIVES_MAX = 4
SIMULATED_STEPS = tuple(
    name for name in crashpoints.STEPS if not name.startswith(("engine: ", "drain: "))
)
OPERATIONS_MAX = 60
TASK_STEPS_MAX = 400_000
"""A life that takes more is going in circles."""
SETTLE_S = 120.0
"""What is done in the background (aborting uploads) gets so long, in virtual time."""

COPY_GAP_S = 0.05
"""In every twentieth seed so much passes between S3's look at the source of a copy and its reading. Not in
those with opaque ETags: nothing but the condition protects a copy there."""
PACK_BELOW = 2 << 10
ALL_PACK = bool(os.environ.get("S3MOUNT_SIM_PACKS"))
"""In every sixth seed small files go into packs; with the variable in all."""
POWER_CUTS_SHARE = float(os.environ.get("S3MOUNT_SIM_POWER_CUTS", "0.5"))
"""In so many seeds lives may end by a power cut."""
RARE_STEPS = (
    "blob: cloned",
    "rename: exchange recorded",
    "rename: directory recorded",
    "step: written ahead",
    "step: settled in part",
    "recovery: blob removed",
    "recovery: parts confirmed",
    "change: earlier state is in S3",
    "change: content is in S3",
    "change: superseded",
    "part: copied",
    "zeros: put",
    "zeros: removed",
    "part: taken back",
    "conflict: recorded",
    "copy: answered",
    "fsync: journal forced",
    "abort: answered",
)
"""What few lives come to: of several of these the first one ends a life."""


LOSSES = ("BlobGoneError", "DamagedBlobError", "BaseGoneError")
"""How a power cut shows in what was never synced: the kinds of errors."""


class Killer(trio.abc.Instrument):
    """Ends a life at a chosen step: the n-th of any task, or the n-th of one name; by a kill or a power cut."""

    def __init__(self, world: World, rng: random.Random, turn: int, *, is_last: bool) -> None:
        self.mount: Mount | None = None
        self.killed_at = ""
        self.is_power_cut = world.disk is not None and rng.random() < 0.75
        self.reached: Counter[str] = Counter()
        self.task_steps = 0
        self.is_endless = False
        self._world = world
        self._at_task_step = 0
        self._wanted: set[str] = set()
        self._left = 1
        if is_last:
            return
        how = rng.choice(
            ("any time", "any time", "step", "step", "step", "rare steps", "rare steps")
        )
        if how == "any time":
            self._at_task_step = int(rng.lognormvariate(6.0, 1.2)) + 1
        elif how == "step":
            self._wanted = {SIMULATED_STEPS[turn % len(SIMULATED_STEPS)]}
            self._left = rng.choice((1, 1, 1, 1, 2, 4, 20))
        else:
            self._wanted = set(rng.sample(RARE_STEPS, 3))

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.task_steps += 1
        if self.task_steps == self._at_task_step and self.mount is not None:
            self._kill("a task's step")
        elif self.task_steps > TASK_STEPS_MAX and self.mount is not None:
            self.is_endless = True
            self.mount.kill()

    def step(self, name: str) -> None:
        """A named step is passed."""
        if self.killed_at or (self.mount is not None and self.mount.is_dead):
            return
        self.reached[name] += 1
        if self._world.disk is not None and name == "journal: committed":
            self._world.disk.committed()
        if name in self._wanted and self.reached[name] == self._left:
            self._kill(name)

    def made(self, mount: Mount) -> None:
        """The spool is open; from now on there is a mount to be killed."""
        self.mount = mount

    def end(self) -> None:
        """The life was not ended before its time: end it now."""
        assert self.mount is not None
        self.mount.kill(is_power_cut=self.is_power_cut)

    def _kill(self, where: str) -> None:
        self.killed_at = where
        if self.mount is None:
            self._world.die(is_power_cut=self.is_power_cut)
            raise Killed
        self.mount.kill(is_power_cut=self.is_power_cut)


class Simulation:
    """One seed. ``log`` is what happened, ``kills`` and ``cuts`` (of the power) count where those hit.

    ``reached`` counts in how many lives a step was passed.
    """

    def __init__(self, seed: int, folder: Path, *, is_verbose: bool = False) -> None:
        self.seed = seed
        self.is_verbose = is_verbose
        self.folder = folder
        self.log: list[str] = []
        self.kills: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.after = ""
        self.had_power_cut = False
        self._rng = random.Random(seed)
        self._turn = 0
        self._discarded: set[str] = set()

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
        world = World(
            self.folder,
            versioning=rng.choice(("off", "off", "enabled")),
            opaque_etags=self.seed % 4 == 3,
            copy_gap_s=COPY_GAP_S if self.seed % 20 == 1 else 0.0,
            pack_below=PACK_BELOW if ALL_PACK or self.seed % 6 == 4 else 0,
        )
        # As a directory bucket has them: no versions, ETags that are no MD5s.
        is_express = self.seed % 4 == 3 and world.bucket._bucket.versioning == "off"
        world.bucket.habits.renames = world.bucket.habits.appends = is_express
        if self.is_verbose:
            world.on_request = self.say
            self._also_log()
        if rng.random() < POWER_CUTS_SHARE:
            world.disk = Disk(random.Random(rng.random()))
            world.log_pages_max = rng.choice((10, 40, 2000))
        world.faults = faults = SeededFaults(profile, random.Random(rng.random()))
        programs = [Program(f"d{n}", random.Random(rng.random()), self.say) for n in range(2)]
        rivals = Rivals(random.Random(rng.random()), self.say) if rng.random() < 0.5 else None
        lives = rng.randint(1, LIVES_MAX)
        watched = world.disk.watched() if world.disk is not None else nullcontext()
        with watched:
            for life in range(lives):
                is_last = life == lives - 1
                self.say(f"life {life + 1} of {lives}, {profile.name}")
                await self._live(world, faults, programs, rivals, is_last=is_last)
        if world.disk is not None:
            world.disk.close()
            world.disk = None
        world.faults = None
        await self._look_from_elsewhere(world, programs)

    async def _live(
        self,
        world: World,
        faults: SeededFaults,
        programs: list[Program],
        rivals: Rivals | None,
        *,
        is_last: bool,
    ) -> None:
        # Seeds that follow each other go round the steps.
        self._turn += 1
        killer = Killer(world, self._rng, 3 * self.seed + self._turn, is_last=is_last)
        trio.lowlevel.add_instrument(killer)
        try:
            with crashpoints.listening(killer.step):
                async with world.mounted(on_made=killer.made, is_settled=False) as mount:
                    await self._use(world, mount, programs, rivals)
                    if is_last:
                        await self._end(world, mount, faults, programs)
                        if rivals is not None:
                            rivals.judge(world)
                    else:
                        killer.end()
        except Killed:
            self.say("killed before the mount was there")
        finally:
            trio.lowlevel.remove_instrument(killer)
        if killer.is_endless:
            raise Wrong(f"a life took more than {TASK_STEPS_MAX} steps")
        self._died(killer, rivals, is_last=is_last)

    def _died(self, killer: Killer, rivals: Rivals | None, *, is_last: bool) -> None:
        where = killer.killed_at or "the end"
        self.reached.update(killer.reached.keys())
        if is_last:
            return
        self.after = "cut" if killer.is_power_cut or self.after == "cut" else "kill"
        if killer.is_power_cut:
            self.cuts[where] += 1
            self.had_power_cut = True
            if rivals is not None:
                rivals.power_was_cut()
        else:
            self.kills[where] += 1
        self.say(f"{'power cut' if killer.is_power_cut else 'killed'} at {where}")

    async def _use(
        self, world: World, mount: Mount, programs: list[Program], rivals: Rivals | None
    ) -> None:
        """What a life consists of: is there what must be there? Then both programs at work."""
        rng = self._rng
        if self.after == "cut":
            await self._send_or_discard(mount, programs)
        if self.after:
            is_sent = rng.random() < 0.5
            for program in programs:
                if self.after == "cut":
                    await recover_from_power_cut(program, mount, self._discarded)
                else:
                    await recover(program, mount, is_sent=is_sent)
        self.after = ""
        self._discarded.clear()
        async with trio.open_nursery() as nursery:
            for program in programs:
                nursery.start_soon(program.run, mount, rng.randint(0, OPERATIONS_MAX))
            if rivals is not None:
                nursery.start_soon(rivals.write_past, world, rng.randint(0, 15))
                nursery.start_soon(rivals.write_through, mount, rng.randint(0, 15))

    async def _send_or_discard(self, mount: Mount, programs: list[Program]) -> None:
        """As a person would: what was never synced may have lost its content in a power cut."""
        synced = {blob_id for program in programs for blob_id in program.ledger.blobs}
        for _ in range(TRIES_MAX):
            try:
                await mount.sync()
                return
            except S3MountError as error:
                self.say(f"after the power cut: {error}")
            gone = [
                change for change in mount.spool.changes.values() if change.error_kind in LOSSES
            ]
            for change in gone:
                if blob_id_of(change) in synced:
                    raise Wrong(f"{change.key} was synced: {change.error}")
            if gone:
                self._discarded |= set(
                    await mount.fs.discard([change.key for change in gone], is_rehearsal=False)
                )
        raise Wrong("what is left cannot be sent")

    async def _end(
        self, world: World, mount: Mount, faults: SeededFaults, programs: list[Program]
    ) -> None:
        faults.calm_down(True)
        self.say("the end")
        try:
            await mount.sync()
        except S3MountError as error:
            raise Wrong(f"what is left cannot be sent: {error}") from error
        for program in programs:
            await program.compare_with_s3(world)
        await trio.sleep(SETTLE_S)
        await mount.sync()
        left = mount.leftovers()
        if not self.had_power_cut:
            left += [f"temporary object {key}" for key in world.contents() if is_trial_key(key)]
        for upload in await world.s3.list_uploads(""):
            # One that was begun and never heard of holds nothing, and nobody can know it as ours.
            # After a power cut nor can one whose note was lost.
            has_parts = await world.s3.list_parts(upload.key, upload.upload_id)
            if has_parts and not self.had_power_cut:
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


class CountedTime:
    """Stands for the module ``time``: what is done between two looks at the clock takes a millisecond."""

    def __init__(self) -> None:
        self._looks = 0

    def perf_counter(self) -> float:
        self._looks += 1
        return self._looks / 1000


def play(seed: int, folder: Path, *, is_verbose: bool = False) -> Simulation:
    """Play one seed in ``folder``. ``simulation.log`` tells what happened. Raises Wrong and what else is broken."""
    simulation = Simulation(seed, folder, is_verbose=is_verbose)
    folder.mkdir(exist_ok=True)
    random.seed(seed)
    # trio shuffles tasks that could run at the same time: from the seed too, and from one order.
    trio._core._run._r.seed(seed)
    with (
        small_requests(),
        small_blocks(),
        small_steps() if seed % 2 else nullcontext(),
        none_expected(),
        mock.patch("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True),
        # The names of blobs.
        mock.patch("secrets.token_hex", lambda count: random.randbytes(count).hex()),
        # Where long work lets others go on must not depend on the machine.
        mock.patch("s3mount.slices.time", CountedTime()),
    ):
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
    named, *counted = [argument for argument in arguments if argument != "-v"]
    first, *others = [int(seed) for seed in named.split(",")]
    seeds = [*range(first, first + (int(counted[0]) if counted else 1)), *others]
    logging.basicConfig(level=logging.CRITICAL)
    totals: dict[str, Counter[str]] = {"kills": Counter(), "cuts": Counter(), "reached": Counter()}
    failed = 0
    started = time.monotonic()
    for seed in seeds:
        with tempfile.TemporaryDirectory(
            dir="/dev/shm" if os.path.isdir("/dev/shm") else None
        ) as folder:
            try:
                simulation = play(seed, Path(folder), is_verbose=is_verbose)
                for name, total in totals.items():
                    total.update(getattr(simulation, name))
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
    for where in sorted({where for total in totals.values() for where in total}):
        print(
            "".join(f"{total[where]:6} {name}" for name, total in totals.items()) + f" at {where}"
        )
    print(f"{len(seeds) - failed} passed, {failed} failed in {time.monotonic() - started:.1f} s")
    return 1 if failed else 0


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

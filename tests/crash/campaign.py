"""Kill after kill on one mount under load, and what was acknowledged looked for after each.

A life of the mount ends at a named step that it was told to kill itself at, or at a random time by
SIGKILL to its process, to its engine, or to both. Now and then everything is sent and compared with S3.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence

from s3mount import crashpoints
from tests.crash.load import Hot, Large, Program, Small, what_s3_has
from tests.crash.rival import Rival
from tests.fuse.bucket_contents import S3Contents
from tests.fuse.mounts import kill_engines
from tests.mounting import Mount, MountFailed

LIFE_S = 6.0
"""A life that has not come to its step by then is ended at a random time."""
COMPARE_EVERY = 12
KILLED = re.compile(r"killed at the step '([^']+)'")
AT_RANDOM = ("the mount at random", "the engine, then the mount", "the engine alone")


class Lost(AssertionError):
    """A promise is broken; the message says which."""


class Campaign:
    """Rounds of load and kills. ``kills`` counts where they hit."""

    def __init__(self, mount: Mount, contents: S3Contents, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self._mount = mount
        self._contents = contents
        self._rng = random.Random(seed)
        self._round = 0
        self._log_read = 0
        self._rival = Rival(mount.path / "rival", seed + 4, contents)
        self._trees: list[Program] = [
            Small(mount.path / "small", seed + 1),
            Large(mount.path / "large", seed + 2),
            Hot(mount.path / "hot", seed + 3),
        ]

    @property
    def _programs(self) -> list[Program]:
        return [*self._trees, self._rival]

    def run(self, kills: int, wanted: Sequence[str], *, must_hit: bool) -> None:
        """At least ``kills`` kills; those at named steps go round those of ``wanted`` that were hit least.

        Where all of them ``must_hit``, up to twice as many.
        """
        while (total := sum(self.kills.values())) < kills or (
            must_hit and total < 2 * kills and not set(wanted) <= set(self.kills)
        ):
            self._round += 1
            if self._rng.random() < 0.25:
                self._life(None)
            else:
                order = self._rng.sample(wanted, len(wanted))
                self._life(min(order, key=self.kills.__getitem__))
            if self._round % COMPARE_EVERY == 0:
                self.compare()
        self.compare()

    # ------------------------------------------------------------------ one life

    def _life(self, step: str | None) -> None:
        """Mount, look, use, die."""
        if not self._begin(step):
            return
        if step is not None and step.startswith("drain: "):
            self._use_and_unmount()
        else:
            self._use_and_kill(self._rng.uniform(0.3, LIFE_S if step else LIFE_S / 2), step)
        self._mount.kill9()
        self._count()

    def _begin(self, step: str | None) -> bool:
        """Is it mounted, and is there what must be there? False when it died before that was seen."""
        environment = self._mount.environment
        environment.pop(crashpoints.VARIABLE, None)
        if step is not None:
            # An engine that never gets anywhere makes requests fail, after eight tries.
            # Some steps are passed only once in a life: first they are to be hit at all.
            later = (1, 1, 2, 3, 5, 9) if self.kills[step] else (1,)
            count = self._rng.choice((30, 60, 90) if step.startswith("engine: ") else later)
            environment[crashpoints.VARIABLE] = f"{step}:{count}"
        try:
            self._mount.mount()
            self._look()
        except (MountFailed, OSError) as error:
            self._mount.kill9()
            if not self._count():
                raise Lost(f"round {self._round}: {error}") from error
            return False
        return True

    def _look(self) -> None:
        """Compare what the mount shows with what programs were told. Raises OSError."""
        wrong = []
        for program in self._trees:
            found = program.found()
            wrong += [f"{program.top.name}: {each}" for each in program.told.settle(found)]
            if wrong:
                wrong.append(f"last done there: {program.told.log[-6:]}")
        shown = {data for data in self._rival.found().values() if data is not None}
        self._rival.known |= {data for data in shown if not data.strip(b"\0")}
        wrong += self._rival.lost(shown)
        self._must_be_right(wrong, "the mount")

    def _must_be_right(self, wrong: list[str], where: str) -> None:
        if wrong:
            raise Lost(
                f"round {self._round}, kills {dict(self.kills)}: {where} shows otherwise than told: "
                + "; ".join(wrong)
            )

    def _use_and_kill(self, life_s: float, step: str | None) -> None:
        """Load, until the mount dies by itself or is killed when its time is over."""
        dies = threading.Event()
        for program in self._programs:
            program.start(lambda: dies.is_set() or not self._is_alive())
        end = time.monotonic() + life_s
        while time.monotonic() < end and self._is_alive():
            time.sleep(0.02)
        how = ""
        if self._is_alive():
            how = self._rng.choice(AT_RANDOM)
            if how != AT_RANDOM[0] and not kill_engines(self._mount):
                # It killed itself in between, or its engine is just being started.
                how = AT_RANDOM[0]
            if how == AT_RANDOM[2]:
                # The mount goes on with a new engine, and is killed only after that was seen.
                time.sleep(self._rng.random())
            dies.set()
            self._mount.kill_process()
        for program in self._programs:
            program.stop()
        for program in self._programs:
            program.join()
        if how:
            self.kills[how] += 1

    def _use_and_unmount(self) -> None:
        """Load that ends in order, and an unmount that does not."""
        for program in self._programs:
            program.start(lambda: not self._is_alive())
        time.sleep(self._rng.random())
        for program in self._programs:
            program.stop()
        for program in self._programs:
            program.join()
        self._mount.command("unmount", str(self._mount.path), "--timeout", "60", limit_s=60)

    def _is_alive(self) -> bool:
        return self._mount.runs

    def _count(self) -> int:
        """Count the steps at which processes killed themselves since the last look; how many there were."""
        with self._mount.log_path.open("rb") as log:
            log.seek(self._log_read)
            data = log.read()
        self._log_read += len(data)
        hits = KILLED.findall(data.decode(errors="replace"))
        if hits:
            # An engine that kills itself again and again is counted once.
            self.kills[hits[0]] += 1
        return len(hits)

    # ------------------------------------------------------------------ comparing

    def compare(self) -> None:
        """Let everything be sent, and compare with S3; then with what a mount shows that knows only S3."""
        self._mount.environment.pop(crashpoints.VARIABLE, None)
        self._mount.mount()
        self._look()
        self._mount.wait(timeout_s=120)
        self._look()
        self._mount.unmount(timeout_s=120)
        self._compare_with_s3()
        self._mount.remount(fresh_state=True, fresh_cache=True)
        self._look()
        self._mount.unmount()

    def _compare_with_s3(self) -> None:
        wrong = []
        for program in self._trees:
            prefix = f"{program.top.name}/"
            there = what_s3_has(self._contents, prefix)
            wrong += [f"{prefix}{each}" for each in program.told.settle(there)]
        listing = self._contents.listing("rival/")
        found = {self._contents.read(key) for key in listing if not key.endswith("/")}
        wrong += self._rival.lost(found)
        wrong += [f"unfinished upload of {upload['Key']}" for upload in self._unfinished_uploads()]
        self._must_be_right(wrong, "S3")

    def _unfinished_uploads(self) -> list[dict[str, str]]:
        """Uploads with parts in them. One that was begun and never heard of is empty, and nobody's to know."""
        client, bucket = self._contents.client, self._contents.bucket
        uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        return [
            upload
            for upload in uploads
            if client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]).get(
                "Parts"
            )
        ]

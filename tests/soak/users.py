"""Those who only look: walks over many trees, and the commands of a person."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

from tests.mounting import Mount
from tests.soak.crew import Crew, Member
from tests.soak.strangers import FILES, FOLDERS, TREES, WALKED

WALK_LIMIT_S = 400.0
COMMAND_LIMIT_S = 120.0
EXCUSES = re.compile(
    "No such file or directory|Input/output error|Connection timed out|Stale file handle|Not a directory"
)
"""What a walk may be told where S3 cannot be reached, or others move and remove what it walks."""
WALKS = (
    ("find", "-type", "f", "-printf", "%p %s %m\\n"),
    ("ls", "-lR"),
    ("du", "-a"),
    ("find",),
)


class Walker(Member):
    """A program that walks a tree, again and again."""

    def __init__(self, number: int, crew: Crew, seed: int, root: Path) -> None:
        super().__init__(f"walker {number}", crew, seed, pause_s=2.5)
        self._root = root

    def turn(self) -> None:
        """One walk; of a tree that stays as it is, all must be seen when nothing was told."""
        program, *options = self.rng.choice(WALKS)
        still = self.rng.random() < 0.5
        if still:
            part = self.rng.choice(["", *(f"/t{number:02}" for number in range(TREES))])
            top = f"{WALKED}{part}"
        else:
            top = self.rng.choice(
                [".", *(name for name in os.listdir(self._root) if name != WALKED)]
            )
        command = [program, top, *options] if program == "find" else [program, *options, top]
        try:
            done = subprocess.run(
                command, cwd=self._root, capture_output=True, timeout=WALK_LIMIT_S, check=False,
                stdin=subprocess.DEVNULL, env=os.environ | {"LC_ALL": "C"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            self.crew.is_wrong(f"{self.name}: {' '.join(command)} does not return")
            return
        self.crew.count("walks")
        told = done.stderr.decode(errors="replace").splitlines()
        self.crew.count("walks that were told of an error", bool(told))
        for line in told:
            if not EXCUSES.search(line):
                self.crew.is_wrong(f"{self.name}: {' '.join(command)}: {line}")
                return
        if still and not told:
            seen = len(re.findall(rb"\bf\d\b", done.stdout))
            wanted = FOLDERS * FILES * (1 if part else TREES)
            if seen != wanted or done.returncode:
                self.crew.is_wrong(
                    f"{self.name}: {' '.join(command)} shows {seen} of {wanted} files and no error"
                )


class Person(Member):
    """status, refresh, wait, retry, and looks at the past."""

    def __init__(self, crew: Crew, seed: int, mount: Mount) -> None:
        super().__init__("a person", crew, seed, pause_s=5.0)
        self._mount = mount

    def turn(self) -> None:
        """One command."""
        top = self._mount.path
        some = top / self.rng.choice(sorted(os.listdir(top)))
        command = self.rng.choice(
            (self.status, self.status, self.refresh, self.wait, self.retry, self.look_back)
        )
        command(some)
        self.crew.count("commands")

    def status(self, some: Path) -> None:
        """Of the mount and of one name in it."""
        told = json.loads(self._done("status", str(self._mount.path), "--json", statuses=(0,)))
        if told["phase"] != "serving":
            self.crew.is_wrong(f"status says {told['phase']}")
        if told["damaged"]:
            self.crew.is_wrong(f"status speaks of damage: {told['damaged']}")
        self._done("status", str(some), statuses=(0, 1))

    def refresh(self, some: Path) -> None:
        """Of all or of one name."""
        names = self.rng.choice(([], [str(some)]))
        self._done("refresh", str(self._mount.path), *names, statuses=(0, 1))

    def wait(self, some: Path) -> None:
        """For two seconds."""
        self._done("wait", str(self._mount.path), "--timeout", "2", statuses=(0, 1))

    def retry(self, some: Path) -> None:
        """Everything that is parked."""
        self._done("retry", str(self._mount.path), statuses=(0, 1))

    def look_back(self, some: Path) -> None:
        """A listing of what was there a while ago."""
        then = time.strftime(
            "%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - self.rng.randrange(5, 60))
        )
        subprocess.run(
            ["ls", "-l", str(self._mount.path / ".snapshots" / then / some.name)],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=COMMAND_LIMIT_S, check=False,
        )  # fmt: skip
        self.crew.count("looks at the past")

    def _done(self, *arguments: str, statuses: tuple[int, ...]) -> str:
        done = self._mount.command(*arguments, limit_s=COMMAND_LIMIT_S)
        if done.returncode not in statuses or "Traceback" in done.stderr:
            self.crew.is_wrong(
                f"s3mount {' '.join(arguments)}: {done.returncode}: {done.stderr[-2000:]}"
            )
        return done.stdout

"""Everybody at once on one mount for as long as asked, and then: is everything there?

One mount, its state on a disk of 64 MiB and its cache on one of 32 MiB, both filled by somebody else now and
then; a relay in front of the server that cuts, stalls and refuses. Whoever is refused is told so, and what was
accepted must be in S3 at the end, in the mount, and in a fresh one; nothing else may be there.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tests.crash.load import what_s3_has
from tests.crash.told import Paths
from tests.faults.disks import Ballast, small_disk
from tests.fuse.bucket_contents import S3Contents
from tests.fuse.mounts import pending_of
from tests.mounting import Mount, MountFailed
from tests.servers import S3Server
from tests.servers.faulty import FaultyRelay
from tests.soak.crew import Crew, Member
from tests.soak.figures import Figures, growth, look
from tests.soak.strangers import (
    SHARED,
    TOP,
    Lines,
    LineStranger,
    LineWriter,
    Reader,
    Stranger,
    Tosser,
    plant,
)
from tests.soak.trouble import Filler, Weather
from tests.soak.users import Person, Walker
from tests.soak.writers import RECOVERY_S, Enduring, writers

STATE_MIB = 64
CACHE_MIB = 32
WALKERS = 10
READERS = 3
OVERDUE_S = 420.0
DRAIN_S = 600.0
TROUBLE_IN_LOG = re.compile(r"Traceback \(most recent call last\)|internal error", re.IGNORECASE)
OPTIONS = ("--part-size", "5M", "--offline-wait", "3s", "--spool-wait", "3s", "--snapshots")

HEAD = "minute  mount MiB  engine MiB  descriptors  threads  pending  operations  told  "


def reason_to_skip() -> str:
    """Why it cannot be done here; empty when it can."""
    if os.geteuid() != 0:
        return "only root may mount a small disk"
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/fuse", os.O_RDWR))
        return ""
    return "no /dev/fuse"


class Soak:
    """One run in ``folder``, which must be on a disk that is neither of the two."""

    def __init__(
        self, server: S3Server, bucket: str, folder: Path, *, minutes: float, seed: int
    ) -> None:
        self.crew = Crew()
        self._server = server
        self._bucket = bucket
        self._folder = folder
        self._minutes = minutes
        self._seed = seed
        self._contents = S3Contents(server.boto3_client(), bucket)
        self._samples: list[Figures] = []

    def run(self) -> int:
        """All of it; 0 when nothing was wrong, else 1 after saying what was."""
        with (
            small_disk(self._folder / "state-disk", STATE_MIB) as state,
            small_disk(self._folder / "cache-disk", CACHE_MIB) as cache,
            FaultyRelay(self._server.endpoint_url) as relay,
        ):
            place = self._folder / "mount"
            place.mkdir()
            mount = Mount(
                self._server, self._bucket, place, options=OPTIONS, endpoint_url=relay.url
            )
            mount.state_dir, mount.cache_dir = state / "state", cache / "cache"
            try:
                self._play(mount, relay, Ballast(state), Ballast(cache))
            except (AssertionError, MountFailed, OSError) as error:
                self.crew.wrong.append(str(error))
            finally:
                self._read_log(mount)
                mount.close()
        return self._result()

    # ------------------------------------------------------------------ the time of trouble

    def _play(self, mount: Mount, relay: FaultyRelay, state: Ballast, cache: Ballast) -> None:
        crew, seed, contents = self.crew, self._seed, self._contents
        plant(contents)
        mount.mount()
        pid = mount.pid
        (mount.path / SHARED).mkdir()
        trees = writers(mount.path, seed, crew)
        stranger = Stranger(crew, seed, contents)
        lines = Lines()
        collector = LineStranger(crew, seed, contents, lines)
        tosser = Tosser(crew, seed, mount.path, contents)
        weather = Weather(crew, seed, relay)
        members: list[Member] = [
            stranger,
            collector,
            tosser,
            weather,
            LineWriter(crew, seed, mount.path, lines),
            Person(crew, seed, mount),
            Filler("state", crew, seed, state, (2, 15)),
            Filler("cache", crew, seed, cache, (5, 60)),
            *(Reader(number, crew, seed, mount.path, stranger) for number in range(READERS)),
            *(Walker(number, crew, seed, mount.path) for number in range(WALKERS)),
        ]
        everybody: list[Member | Enduring] = [*members, *trees]
        for each in everybody:
            each.start()
        self._watch(mount)
        crew.ending.set()
        weather.heal()
        self._end_all(mount, everybody)
        if crew.wrong:
            return
        weather.heal()
        if not mount.runs or mount.pid != pid:
            crew.is_wrong("the mount is not the one of the beginning")
            return
        self._decide(mount, lines)
        self._compare(mount, trees, stranger)
        collector.collect_all()
        crew.wrong += [f"lost: the line '{line}'" for line in lines.lost()]
        tosser.check()

    def _watch(self, mount: Mount) -> None:
        """A line of figures a minute, until the time is over or something is wrong."""
        began = time.monotonic()
        print(HEAD, flush=True)
        for minute in range(1, max(1, round(self._minutes)) + 1):
            until = began + min(minute, self._minutes) * 60
            while time.monotonic() < until and not self.crew.wrong:
                time.sleep(0.5)
                if not mount.runs:
                    self.crew.is_wrong("the mount's process has ended")
                for what in self.crew.overdue(OVERDUE_S):
                    self.crew.is_wrong(what)
            if self.crew.wrong:
                if mount.runs:
                    os.kill(mount.pid, signal.SIGUSR1)
                    time.sleep(2)
                return
            self._sample(mount, minute)

    def _sample(self, mount: Mount, minute: int) -> None:
        figures = look(mount)
        self._samples.append(figures)
        print(
            f"{minute:6}  {figures.mount_mib:9.0f}  {figures.engine_mib:10.0f}  {figures.descriptors:11}"
            f"  {figures.threads:7}  {pending_of(mount)['changes']:7}"
            f"  {sum(self.crew.done.values()) - self.crew.done['bytes read and compared']:10}"
            f"  {sum(self.crew.told.values()):4}",
            flush=True,
        )

    def _end_all(self, mount: Mount, everybody: Sequence[Member | Enduring]) -> None:
        for each in everybody:
            if self.crew.wrong:
                # Whoever waits in the kernel is freed; what went wrong is known.
                mount.kill_process()
            each.join(RECOVERY_S + 60)

    # ------------------------------------------------------------------ the end

    def _decide(self, mount: Mount, lines: Lines) -> None:
        """What only a person can decide (SEMANTICS.md, 4): a file that was changed in part while S3 was away, and
        whose former bytes are nowhere any more. What was written is exported, and the rest given up.
        """
        # Which changes are such shows when each was tried.
        mount.command("wait", str(mount.path), "--timeout", str(DRAIN_S), limit_s=DRAIN_S)
        waiting = [
            change["key"]
            for change in pending_of(mount)["list"]
            if change["error_kind"] == "BaseGoneError" and ".conflict-" in change["key"]
        ]
        if not waiting:
            return
        folder = self._folder / "exported"
        mount.command("export", str(mount.path), str(folder))
        for key in waiting:
            for path in folder.glob(f"{key}*"):
                # Where the former bytes were is a hole.
                lines.find(path.read_bytes().replace(b"\0", b""))
        places = [str(mount.path / key) for key in waiting]
        given_up = mount.command("discard", "--yes", str(mount.path), *places)
        if given_up.returncode:
            self.crew.is_wrong(f"discard: {given_up.stderr}")
        self.crew.count("changes of versions that are gone, exported and given up", len(waiting))

    def _compare(self, mount: Mount, trees: list[Enduring], stranger: Stranger) -> None:
        crew = self.crew
        done = mount.command("wait", str(mount.path), "--timeout", str(DRAIN_S), limit_s=DRAIN_S)
        pending = pending_of(mount)
        if done.returncode or pending["changes"]:
            crew.wrong.append(f"not all is in S3: {done.stderr}{pending}")
        there = what_s3_has(self._contents, "")
        for tree in trees:
            prefix = f"{tree.top.name}/"
            own = {
                f"{path}/".removeprefix(prefix).rstrip("/"): data
                for path, data in there.items()
                if f"{path}/".startswith(prefix)
            }
            crew.wrong += [f"in S3: {prefix}{each}" for each in tree.told.settle(own)]
        crew.wrong += _differences("in S3", stranger.wanted(), there, TOP)
        mount.command("refresh", str(mount.path))
        shown, before = _shown(mount.path), _described(mount.path)
        crew.wrong += _differences("in the mount", _with_folders(there), shown, "")
        crew.wrong += growth(self._samples)
        self._read_log(mount)
        if crew.wrong:
            return
        mount.unmount(DRAIN_S)
        fresh = Mount(self._server, self._bucket, self._fresh_folder(), options=OPTIONS)
        try:
            fresh.mount()
            crew.wrong += _differences(
                "in a fresh mount", _with_folders(there), _shown(fresh.path), ""
            )
            after = _described(fresh.path)
            crew.wrong += [
                f"attributes of {path} in a fresh mount: {after.get(path)}, were {told}"
                for path, told in before.items()
                if after.get(path) != told
            ]
            fresh.unmount()
        finally:
            self._read_log(fresh)
            fresh.close()

    def _fresh_folder(self) -> Path:
        folder = self._folder / "fresh"
        folder.mkdir()
        return folder

    def _read_log(self, mount: Mount) -> None:
        if not mount.log_path.exists():
            return
        lines = mount.log_path.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if TROUBLE_IN_LOG.search(line):
                self.crew.is_wrong(
                    "in the log: " + "\n  ".join(lines[max(0, number - 3) : number + 40])
                )
                return

    def _result(self) -> int:
        done, told = self.crew.done, self.crew.told
        for name, number in sorted(done.items()):
            print(f"{number:12,} {name}")
        print(
            "  told: "
            + (", ".join(f"{number} {name}" for name, number in sorted(told.items())) or "nothing")
        )
        if self.crew.wrong:
            kept = self._folder.parent / f"s3mount-soak-{self._seed}.log"
            with contextlib.suppress(FileNotFoundError):
                kept.write_bytes((self._folder / "mount" / "mount.log").read_bytes())
            print(
                f"soak: {len(self.crew.wrong)} WRONG with seed {self._seed}; the mount's log is {kept}"
            )
            for each in self.crew.wrong[:20]:
                print(f"- {each}")
            return 1
        print(
            f"soak: {self._minutes:g} minutes on {self._server.name}, seed {self._seed}: one mount, alive to the end;"
            " S3, the mount and a fresh one hold exactly what was accepted"
        )
        return 0


def _differences(
    where: str, wanted: Mapping[str, bytes | None], found: Paths, top: str
) -> Iterator[str]:
    """How ``found`` below ``top`` differs from ``wanted``, whose paths begin there."""
    prefix = f"{top}/" if top else ""
    here = {
        path.removeprefix(prefix): data for path, data in found.items() if path.startswith(prefix)
    }
    for path in sorted(wanted.keys() | here.keys()):
        if path not in here:
            yield f"{where} {prefix}{path} is missing"
        elif path not in wanted:
            yield f"{where} {prefix}{path} is there but must not be"
        elif wanted[path] != here[path]:
            yield f"{where} {prefix}{path} has other bytes"


def _with_folders(paths: Paths) -> Paths:
    """``paths`` with the folders that they imply."""
    implied = {str(each) for path in paths for each in PurePosixPath(path).parents}
    return dict.fromkeys(implied - {"."}) | paths


def _shown(root: Path) -> Paths:
    """Everything that a mount shows. Raises OSError."""
    found: Paths = {}
    for place, told in _walked(root):
        path = str(place.relative_to(root))
        if stat.S_ISDIR(told.st_mode):
            found[path] = None
        else:
            is_link = stat.S_ISLNK(told.st_mode)
            try:
                found[path] = os.fsencode(place.readlink()) if is_link else place.read_bytes()
            except OSError as error:
                # Of a read() it does not tell which file.
                raise OSError(error.errno, error.strerror, path) from error
    return found


def _described(root: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, size and time of every file. Raises OSError."""
    return {
        str(place.relative_to(root)): (told.st_mode, told.st_size, told.st_mtime_ns)
        for place, told in _walked(root)
        if not stat.S_ISDIR(told.st_mode)
    }


def _walked(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for name in sorted(os.listdir(root)):
        place = root / name
        told = place.lstat()
        yield place, told
        if stat.S_ISDIR(told.st_mode):
            yield from _walked(place)

"""Writers, each with a folder of its own, so that what must be there is known whatever they were told."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.crash.load import MIB, Hot, Large, Program, Small, write_all
from tests.crash.told import Doing, may_be
from tests.soak.crew import TOLD, Crew

RECOVERY_S = 150.0
"""After the end, when everything is healed, what was refused before must succeed within this time."""

MAP = """
import mmap, os, sys
place, offset, data = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
try:
    fd = os.open(place, os.O_RDWR)
    with mmap.mmap(fd, 0) as pages:
        pages[offset : offset + len(data)] = data
        pages.flush()
    os.fsync(fd)
    os.close(fd)
except OSError as error:
    sys.exit(error.errno)
"""
"""In a process of its own: a page that cannot be read or written is a SIGBUS, not an error."""


class Enduring(Program):
    """A program that goes on after errors, and puts right what they left in doubt.

    An operation that was refused may have happened or not, as the mount then says; a file that it was
    writing holds pages of before and after, and is removed. Everything else must be as it was told.
    """

    kind = ""

    def __init__(self, top: Path, seed: int, crew: Crew) -> None:
        super().__init__(top, seed)
        self._crew = crew
        self._removing = ""

    def start(self, is_dead: Callable[[], bool] = lambda: False) -> None:
        """Begin; the mount does not die."""
        super().start(is_dead)

    def join(self, timeout_s: float = 60.0) -> None:
        """Wait until it has stopped; wrong when it does not."""
        assert self._thread is not None
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._crew.is_wrong(f"{self.top.name}: {self.told.log[-1:]} does not return")

    def _run(self) -> None:
        crew, name = self._crew, self.top.name
        while not crew.ending.is_set():
            self._guarded(self._turn)
            crew.ending.wait(self.rng.random() * 2 * self.pause_s)
        end = time.monotonic() + RECOVERY_S
        while self.told.doing is not None and not crew.wrong:
            self._guarded(self._recover)
            if time.monotonic() > end:
                crew.is_wrong(
                    f"{name}: {self.told.log[-1]}: nothing can be put right after the end"
                )
        self._guarded(self._finish)

    def _finish(self) -> None:
        """Close what is open."""

    def _guarded(self, turn: Callable[[], None]) -> None:
        crew, name = self._crew, self.top.name
        try:
            with crew.doing(name, turn.__name__):
                if self.told.doing is not None:
                    self._recover()
                turn()
            crew.count(f"operations on {self.kind} files")
        except OSError as error:
            crew.was_told(f"{name}: {self.told.log[-1:]}", error, TOLD)
            crew.ending.wait(0.5)
        except Exception as error:  # noqa: BLE001 - whatever it is, the soak has to end with it
            log = "\n  ".join(self.told.log)
            crew.is_wrong(f"{name}: {error!r}\n  {log}")
            crew.ending.wait()

    def _turn(self) -> None:
        if not self.told.now:
            self._do(Doing("mkdir", {"": None}), self.top.mkdir)
        self.rng.choice(self.operations())()

    # ------------------------------------------------------------------ after an error

    def _recover(self) -> None:
        """Find out what became of the operation that was refused. Raises OSError, AssertionError."""
        doing, now = self.told.doing, self.told.now
        if doing is None:
            return
        names = {path for path in now.keys() ^ doing.after.keys() if path not in doing.states}
        if names:
            there = {path for path in names if _is_there(self.top / path)}
            assert there in (names & now.keys(), names & doing.after.keys()), (
                f"{doing.what} was refused and is half done: {sorted(there)} of {sorted(names)}"
            )
            if there == names & now.keys():
                self.told.doing = None
            else:
                self.told.end()
            return
        self._remove_doubtful(doing)

    def _remove_doubtful(self, doing: Doing) -> None:
        now = self.told.now
        states: dict[str, Sequence[bytes]] = {
            path: [data for data in (now[path], doing.after[path]) if data is not None]
            for path in now.keys() & doing.after.keys()
            if now[path] != doing.after[path]
        } | dict(doing.states)
        self.told.doing = Doing(doing.what, doing.after, states)
        for path, possible in states.items():
            self._remove_checked(path, possible)
            self.told.now = self.with_({}, path)
        self.told.doing = None

    def _remove_checked(self, path: str, states: Sequence[bytes]) -> None:
        place = self.top / path
        if _is_there(place):
            data = self.read(path)
            assert may_be(data, states), f"{path} has bytes of nobody after {self.told.log[-1]}"
            self._removing = path
            place.unlink()
        else:
            # Its removal may have been refused and done.
            is_known = path in self.told.now and path != self._removing
            assert not is_known, f"{path} is gone after {self.told.log[-1]}"
        self._removing = ""

    # ------------------------------------------------------------------ looking

    def _look(self) -> None:
        """What one file, or the folder, is, against what it must be. Raises AssertionError, OSError."""
        if self.rng.random() < 0.3 or not self.files():
            folder = self.rng.choice(["", *self.folders()])
            here = {path for path in self.told.now if path and os.path.dirname(path) == folder}
            shown = {
                os.path.normpath(os.path.join(folder, name))
                for name in os.listdir(self.top / folder)
            }
            assert shown == here, (
                f"{folder or 'the top'}: {shown - here} too many, {here - shown} missing"
            )
            return
        path = self.rng.choice(self.files())
        wanted, data = self.content(path), self.read(path)
        if data != wanted:
            raise AssertionError(f"{path}: {_difference(wanted, data)}")
        assert os.lstat(self.top / path).st_size == len(wanted)


def _is_there(place: Path) -> bool:
    try:
        os.lstat(place)
    except FileNotFoundError:
        return False
    return True


def _difference(wanted: bytes, data: bytes) -> str:
    at = next((n for n, (a, b) in enumerate(zip(wanted, data, strict=False)) if a != b), -1)
    return f"{len(data)} bytes instead of {len(wanted)}, other from {at} on: {data[at : at + 8]!r}"


class Odd(Program):
    """Files with holes, mapped files, links, files that are unlinked or moved while open, long-lived handles."""

    NAMES = tuple("pqrstuvw")

    def __init__(self, top: Path, seed: int) -> None:
        super().__init__(top, seed)
        self._journal: int | None = None

    def operations(self) -> list[Callable[[], None]]:
        making = [
            self._sparse,
            self._link,
            self._write_unlinked,
            self._write_moved,
            self._journal_line,
        ]
        if not self._plain():
            return making
        return (
            making
            + [self._map] * 2
            + [self._append] * 2
            + [self._hole, self._drop, self._journal_line]
        )

    def _plain(self) -> list[str]:
        return [path for path in self.files() if path in self.NAMES]

    def _sparse(self) -> None:
        path, size, head = self.rng.choice(self.NAMES), self.rng.randrange(3 * MIB), self.data(100)
        tail = self.data(100)
        data = head.ljust(size, b"\0") + tail
        old = self.told.now.get(path)
        at = len(data) - len(tail)

        def perform() -> None:
            fd = os.open(self.top / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                write_all(fd, head, 0)
                write_all(fd, tail, at)
                if self.rng.random() < 0.5:
                    os.fsync(fd)
            finally:
                os.close(fd)

        states = (b"", data) if old is None else (b"", old, data)
        self._do(
            Doing(f"sparse {path}: {len(data)}", self.with_({path: data}), {path: states}), perform
        )

    def _hole(self) -> None:
        path = self.rng.choice(self._plain())
        old = self.content(path)
        size = len(old) + self.rng.randrange(MIB)
        after = self.with_({path: old.ljust(size, b"\0")})
        self._do(
            Doing(f"lengthen {path} to {size}", after), lambda: os.truncate(self.top / path, size)
        )

    def _append(self) -> None:
        path, more = self.rng.choice(self._plain()), self.data(self.rng.randrange(1, 9000))
        old = self.content(path)

        def perform() -> None:
            fd = os.open(self.top / path, os.O_WRONLY | os.O_APPEND)
            try:
                done = 0
                while done < len(more):
                    done += os.write(fd, more[done:])
            finally:
                os.close(fd)

        doing = Doing(
            f"append {len(more)} to {path}",
            self.with_({path: old + more}),
            {path: (old, old + more)},
        )
        self._do(doing, perform)

    def _map(self) -> None:
        path = self.rng.choice(self._plain())
        old, new = self.content(path), self.data(50)
        if len(old) < len(new):
            return
        at = self.rng.randrange(len(old) - len(new) + 1)
        after = old[:at] + new + old[at + len(new) :]

        def perform() -> None:
            command = [
                sys.executable,
                "-I",
                "-S",
                "-c",
                MAP,
                str(self.top / path),
                str(at),
                new.hex(),
            ]
            status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
            if status:
                raise OSError(
                    errno.EIO if status < 0 else status, f"a mapped file: status {status}"
                )

        doing = Doing(f"map {path}, change {at}", self.with_({path: after}), {path: (old, after)})
        self._do(doing, perform)

    def _link(self) -> None:
        path, target = f"link{self.rng.randrange(3)}", f"nowhere/{self.rng.randrange(1000)}"
        if path in self.told.now:
            self.unlink(path)
        after = self.with_({path: target.encode()})
        self._do(Doing(f"symlink {path}", after), lambda: (self.top / path).symlink_to(target))

    def _write_unlinked(self) -> None:
        """A file that is no more when it is closed must not come back."""
        path, data = "gone", self.data(10_000)
        here = self.told.now

        def perform() -> None:
            fd = os.open(self.top / path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                write_all(fd, data, 0)
                (self.top / path).unlink()
                write_all(fd, data, len(data))
                assert os.pread(fd, len(data), len(data)) == data
            finally:
                os.close(fd)

        self._do(
            Doing("write a file that is unlinked", dict(here), {path: (b"", data, data + data)}),
            perform,
        )

    def _write_moved(self) -> None:
        """What is written through a handle after a rename belongs to the new name."""
        new, data = self.rng.choice(self.NAMES), self.data(20_000)
        old = self.told.now.get(new)
        states = [b"", data[:10_000], data, *([] if old is None else [old])]

        def perform() -> None:
            fd = os.open(self.top / "moving", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                write_all(fd, data[:10_000], 0)
                (self.top / "moving").rename(self.top / new)
                write_all(fd, data[10_000:], 10_000)
                os.fsync(fd)
            finally:
                os.close(fd)

        doing = Doing(
            f"write while moved to {new}", self.with_({new: data}), {new: states, "moving": states}
        )
        self._do(doing, perform)

    def _journal_line(self) -> None:
        """One handle over many turns: each fsync that returns promises all before it; rotated while open."""
        path, line = "journal", self.data(300)
        old = self.told.now.get(path)
        if old is None and self._journal is not None:
            os.close(self._journal_taken())
        if old is not None and self._journal is not None and len(old) > 30_000:
            self.rename(path, "journal.1")
            os.close(self._journal_taken())
            return
        before = old or b""

        def perform() -> None:
            if self._journal is None:
                self._journal = os.open(
                    self.top / path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
                )
            done = 0
            while done < len(line):
                done += os.write(self._journal, line[done:])
            os.fsync(self._journal)

        doing = Doing(
            "a line of the journal",
            self.with_({path: before + line}),
            {path: (before, before + line)},
        )
        self._do(doing, perform)

    def _journal_taken(self) -> int:
        fd, self._journal = self._journal, None
        assert fd is not None
        return fd

    def _drop(self) -> None:
        self.unlink(self.rng.choice(self._plain()))


class EnduringSmall(Enduring, Small):
    """Small files and folders."""

    kind = "small"
    pause_s = 0.15
    FILES_MAX = 40

    def operations(self) -> list[Callable[[], None]]:
        return [*super().operations(), *[self._look] * 6]


class EnduringLarge(Enduring, Large):
    """Files of several parts."""

    kind = "large"
    pause_s = 3.0

    def operations(self) -> list[Callable[[], None]]:
        return [*super().operations(), *[self._look] * 2]


class EnduringHot(Enduring, Hot):
    """Files that change while they are sent."""

    kind = "hot"
    pause_s = 0.5

    def operations(self) -> list[Callable[[], None]]:
        return [*super().operations(), *[self._look] * 2]


class EnduringOdd(Enduring, Odd):
    """Holes, maps, links, handles."""

    kind = "odd"
    pause_s = 0.3

    def operations(self) -> list[Callable[[], None]]:
        return [*super().operations(), *[self._look] * 3]

    def _recover(self) -> None:
        """See ``Enduring``; the journal's handle has told its error, and a new one is opened."""
        if self.told.doing is not None:
            self._finish()
        super()._recover()

    def _finish(self) -> None:
        if self._journal is not None:
            os.close(self._journal_taken())


PLAN: Mapping[type[Enduring], int] = {
    EnduringSmall: 4,
    EnduringLarge: 1,
    EnduringHot: 2,
    EnduringOdd: 3,
}
"""How many of each take part."""


def writers(root: Path, seed: int, crew: Crew) -> list[Enduring]:
    """All of them, each in a folder of its own below ``root``."""
    found: list[Enduring] = []
    for kind, number in PLAN.items():
        for each in range(number):
            top = root / f"{kind.__name__.removeprefix('Enduring').lower()}{each}"
            found.append(kind(top, seed + len(found), crew))
    return found

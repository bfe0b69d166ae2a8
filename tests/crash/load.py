"""Programs that use a mount until it dies under them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.crash.told import Doing, Paths, Told
from tests.fuse.bucket_contents import S3Contents
from tests.fuse.outcomes import RENAME_EXCHANGE, renameat2

MIB = 1 << 20
PART_BYTES = 5 * MIB
"""S3's smallest."""
DEATH_TIMEOUT_S = 20.0


class Program:
    """Operations below one folder of the mount, by one thread, until ``stop`` or the mount's death."""

    pause_s = 0.02

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.told = Told()
        self.rng = random.Random(seed)
        self.trouble = ""
        self._number = 0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._is_dead: Callable[[], bool] = lambda: False

    def operations(self) -> list[Callable[[], None]]:
        """What it may do next, each as often in the list as it shall be done; each kind of load has its own."""
        raise NotImplementedError

    # ------------------------------------------------------------------ running

    def start(self, is_dead: Callable[[], bool]) -> None:
        """Begin. ``is_dead`` tells whether errors have to be expected from now on."""
        self._stop.clear()
        self._is_dead = is_dead
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the present operation, and wait for that."""
        self._stop.set()

    def join(self) -> None:
        """Wait until it has stopped. Raises AssertionError when something failed on a living mount."""
        if self._thread is not None:
            self._thread.join(60)
            assert not self._thread.is_alive(), f"{self.top}: {self.told.log[-1:]} does not return"
        assert not self.trouble, self.trouble

    def _run(self) -> None:
        try:
            if not self.told.now:
                self._do(Doing("mkdir", {"": None}), lambda: self.top.mkdir())
            while not self._stop.is_set():
                self.rng.choice(self.operations())()
                time.sleep(self.rng.random() * self.pause_s * 2)
        except OSError as error:
            if not self._dies():
                self.trouble = f"{self.top}: {self.told.log[-1]}: {error!r}"

    def _dies(self) -> bool:
        """The mount may be found dead a moment after its first error."""
        end = time.monotonic() + DEATH_TIMEOUT_S
        while not self._is_dead():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def _do(self, doing: Doing, perform: Callable[[], object]) -> None:
        self.told.begin(doing)
        perform()
        self.told.end()

    # ------------------------------------------------------------------ what is there

    def found(self) -> Paths:
        """What the mount shows. Raises OSError."""
        if not self.top.is_dir():
            return {}
        found: Paths = {"": None}
        for folder, folders, files in os.walk(self.top, onerror=_raise):
            place = os.path.relpath(folder, self.top)
            for name in folders:
                found[os.path.normpath(os.path.join(place, name))] = None
            for name in files:
                path = os.path.normpath(os.path.join(place, name))
                found[path] = self.read(path)
        return found

    def read(self, path: str) -> bytes:
        """What the mount shows of a file, or a link's target. Raises OSError."""
        place = self.top / path
        return os.fsencode(place.readlink()) if place.is_symlink() else place.read_bytes()

    # ------------------------------------------------------------------ tools

    def data(self, size: int) -> bytes:
        """Bytes that occur nowhere else."""
        return self.rng.randbytes(size)

    def with_(self, changes: Paths, *without: str) -> Paths:
        """What is there now, changed."""
        now = {path: data for path, data in self.told.now.items() if path not in without}
        return now | changes

    def files(self) -> list[str]:
        return sorted(path for path, data in self.told.now.items() if data is not None)

    def folders(self) -> list[str]:
        return sorted(path for path, data in self.told.now.items() if path and data is None)

    def content(self, path: str) -> bytes:
        data = self.told.now[path]
        assert data is not None
        return data

    def save(self, path: str, data: bytes, *, in_pieces_of: int = MIB) -> None:
        """As cp does."""
        old = self.told.now.get(path)
        states = (data, b"") if old is None else (old, b"", data)

        def perform() -> None:
            fd = os.open(self.top / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                for at in range(0, len(data), in_pieces_of):
                    write_all(fd, data[at : at + in_pieces_of], at)
            finally:
                os.close(fd)

        what = f"save {path}: {len(data)} bytes"
        self._do(Doing(what, self.with_({path: data}), {path: states}), perform)

    def change(self, path: str, offset: int, data: bytes) -> None:
        """A pwrite() into what is there."""
        old = self.content(path)
        new = old.ljust(offset, b"\0")
        new = new[:offset] + data + new[offset + len(data) :]

        def perform() -> None:
            fd = os.open(self.top / path, os.O_WRONLY)
            try:
                write_all(fd, data, offset)
            finally:
                os.close(fd)

        what = f"write {len(data)} bytes at {offset} of {path}"
        self._do(Doing(what, self.with_({path: new}), {path: (old, new)}), perform)

    def unlink(self, path: str) -> None:
        """unlink()."""
        self._do(Doing(f"unlink {path}", self.with_({}, path)), (self.top / path).unlink)

    def rename(self, old: str, new: str) -> None:
        """rename() of a file or of a folder with all that is below."""
        below = [path for path in self.told.now if path == old or path.startswith(f"{old}/")]
        moved = {new + path[len(old) :]: self.told.now[path] for path in below}
        self._do(
            Doing(f"rename {old} -> {new}", self.with_(moved, *below)),
            lambda: (self.top / old).rename(self.top / new),
        )

    def chmod(self, path: str) -> None:
        """chmod()."""
        mode = self.rng.choice((0o600, 0o640, 0o644))
        self._do(Doing(f"chmod {path}", dict(self.told.now)), lambda: (self.top / path).chmod(mode))


class Small(Program):
    """Small files and folders: written, replaced, moved and removed."""

    FILES_MAX = 60

    def operations(self) -> list[Callable[[], None]]:
        making = [self._save] * 6 + [self._save_durably] * 3 + [self._make_folder] * 2
        changing = [self._change, self._truncate, self._move, self._swap, self._mode]
        removing = [self._remove, self._move_folder, self._remove_folder]
        if len(self.files()) > self.FILES_MAX:
            return [self._remove_folder, self._remove]
        if len(self.files()) < 5:
            return making
        return making + changing + removing

    def _place(self) -> str:
        folder = self.rng.choice(["", *self.folders()])
        return os.path.join(folder, self.rng.choice("abcdefgh"))

    def _save(self) -> None:
        path = self._place()
        if path not in self.folders():
            self.save(path, self.data(self.rng.choice((0, 10, 5000, 100_000))), in_pieces_of=4000)

    def _save_durably(self) -> None:
        path, data = self._place(), self.data(self.rng.choice((100, 9000)))
        fresh = f"{path}.new"
        if path in self.folders():
            return

        def perform() -> None:
            fd = os.open(self.top / fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                write_all(fd, data, 0)
                os.fsync(fd)
            finally:
                os.close(fd)

        after = self.with_({fresh: data})
        self._do(Doing(f"write and sync {fresh}", after, {fresh: (b"", data)}), perform)
        self.rename(fresh, path)

    def _change(self) -> None:
        path = self.rng.choice(self.files())
        size = len(self.content(path))
        self.change(path, self.rng.choice((0, size, size // 2)), self.data(300))

    def _truncate(self) -> None:
        path = self.rng.choice(self.files())
        size = self.rng.randrange(6000)
        new = self.content(path)[:size].ljust(size, b"\0")
        self._do(
            Doing(f"truncate {path} to {size}", self.with_({path: new})),
            lambda: os.truncate(self.top / path, size),
        )

    def _move(self) -> None:
        old, new = self.rng.choice(self.files()), self._place()
        if new != old and new not in self.folders():
            self.rename(old, new)

    def _swap(self) -> None:
        one, other = self.rng.sample(self.files(), 2)
        after = self.with_({one: self.told.now[other], other: self.told.now[one]})
        self._do(
            Doing(f"exchange {one} and {other}", after),
            lambda: renameat2(self.top / one, self.top / other, RENAME_EXCHANGE),
        )

    def _mode(self) -> None:
        self.chmod(self.rng.choice(self.files()))

    def _remove(self) -> None:
        self.unlink(self.rng.choice(self.files()))

    def _make_folder(self) -> None:
        parent = self.rng.choice(["", *(each for each in self.folders() if each.count("/") < 2)])
        self._number += 1
        path = os.path.join(parent, f"folder{self._number}")
        self._do(Doing(f"mkdir {path}", self.with_({path: None})), (self.top / path).mkdir)

    def _move_folder(self) -> None:
        if self.folders():
            self._number += 1
            self.rename(self.rng.choice(self.folders()), f"moved{self._number}")

    def _remove_folder(self) -> None:
        if not self.folders():
            return
        folder = self.rng.choice(self.folders())
        for path in sorted(self.told.now, reverse=True):
            if path.startswith(f"{folder}/"):
                self._take_away(path)
        self._take_away(folder)

    def _take_away(self, path: str) -> None:
        if self.told.now[path] is None:
            self._do(Doing(f"rmdir {path}", self.with_({}, path)), (self.top / path).rmdir)
        else:
            self.unlink(path)


class Large(Program):
    """Files of several parts: streamed, with fsync on the way, changed in the middle, moved, removed."""

    NAMES = ("film", "music")

    def operations(self) -> list[Callable[[], None]]:
        return [self._stream] * 3 + [self._patch] * 3 + [self._move, self._remove, self._rest]

    def _stream(self) -> None:
        path = self.rng.choice(self.NAMES)
        if self.rng.random() < 0.5 and path in self.told.now:
            self.unlink(path)
        data = self.data(self.rng.randrange(11 * MIB, 17 * MIB))
        old = self.told.now.get(path)
        states = [data, b""] if old is None else [old, b"", data]
        self.told.begin(
            Doing(f"stream {path}: {len(data)} bytes", self.with_({path: data}), {path: states})
        )
        fd = os.open(self.top / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for at in range(0, len(data), MIB):
                write_all(fd, data[at : at + MIB], at)
                if self.rng.random() < 0.1:
                    self._sync(fd, path, data, at + MIB)
                if at >= 2 * PART_BYTES and self.rng.random() < 0.3:
                    # Into a part that may have left already.
                    data = data[:100] + self.data(200) + data[300:]
                    self._promise_less(path, data)
                    write_all(fd, data[100:300], 100)
        finally:
            os.close(fd)
        self.told.end()

    def _sync(self, fd: int, path: str, data: bytes, size: int) -> None:
        os.fsync(fd)
        self.told.now = self.with_({path: data[:size]})
        doing = Doing(f"go on with {path}", self.with_({path: data}), {path: (data[:size], data)})
        self.told.begin(doing)

    def _promise_less(self, path: str, data: bytes) -> None:
        assert self.told.doing is not None
        states = {path: [*self.told.doing.states[path], data]}
        self.told.begin(Doing(f"go back in {path}", self.with_({path: data}), states))

    def _patch(self) -> None:
        if self.files():
            path = self.rng.choice(self.files())
            size = len(self.content(path))
            self.change(path, self.rng.choice((size, self.rng.randrange(size + 1))), self.data(500))

    def _move(self) -> None:
        if self.files():
            new = self.rng.choice(("film", "music", "other"))
            old = self.rng.choice(self.files())
            if old != new:
                self.rename(old, new)

    def _remove(self) -> None:
        if self.files():
            self.unlink(self.rng.choice(self.files()))

    def _rest(self) -> None:
        time.sleep(0.5)


class Hot(Program):
    """Files that are written again, opened, moved or removed while they are on their way to S3."""

    NAMES = ("one", "two", "three")
    SIZE = 3 * MIB // 2
    """Sent from the spool's own file, in one piece."""

    def operations(self) -> list[Callable[[], None]]:
        return [self._save] * 3 + [self._poke] * 4 + [self._mode, self._move, self._remove]

    def _save(self) -> None:
        self.save(self.rng.choice(self.NAMES), self.data(self.SIZE))
        time.sleep(0.25)

    def _poke(self) -> None:
        if self.files():
            path = self.rng.choice(self.files())
            self.change(path, self.rng.randrange(1000), self.data(100))

    def _mode(self) -> None:
        if self.files():
            self.chmod(self.rng.choice(self.files()))

    def _move(self) -> None:
        one, other = self.rng.sample(self.NAMES, 2)
        if one in self.told.now:
            self.rename(one, other)

    def _remove(self) -> None:
        if self.files():
            self.unlink(self.rng.choice(self.files()))


def what_s3_has(contents: S3Contents, prefix: str) -> Paths:
    """All below ``prefix`` (empty, or ending in a slash), by path below it: folders by their markers."""
    there: Paths = {}
    for key in contents.listing(prefix):
        path = key.removeprefix(prefix).rstrip("/")
        there[path] = None if key.endswith("/") else contents.read(key)
    return there


def write_all(fd: int, data: bytes, offset: int) -> None:
    """``pwrite()`` until all of ``data`` is taken: a full disk may take a part first. Raises OSError."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _raise(error: OSError) -> None:
    raise error

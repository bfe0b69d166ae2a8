"""A program that uses the mount at random, and knows what must come of it."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from s3mount.errors import S3MountError
from s3mount.vfs.namespace.renaming import RENAME_EXCHANGE
from tests.sim.model import File, Tree, as_paths, brief
from tests.sim.mount import Mount
from tests.sim.synced import Ledger
from tests.sim.world import INLINE_BYTES_MAX, KIB, PART_BYTES, World

T = TypeVar("T")
Effect = Callable[[Tree], None]

NAMES = ("a", "b", "c", "film.mkv", ".t")
FOLDERS = ("x", "y")
DEPTH_MAX = 3
HANDLES_MAX = 4
HOLE_PARTS = 5
SIZE_MAX = 30 * PART_BYTES
TRIES_MAX = 200
"""Requests fail at random, so the same operation succeeds sooner or later."""


class Wrong(AssertionError):
    """A promise is broken; the message says which."""


@dataclass
class Open:
    """A descriptor that the program holds."""

    fd: int
    file: File
    writes: bool


class Program:
    """Random operations below one top directory. ``tree`` is what must be there after those that returned."""

    def __init__(self, top: str, rng: random.Random, say: Callable[[str], None]) -> None:
        self.top = top
        self.tree = Tree(top)
        self.tree.folders.clear()
        self.may_be: list[Tree] = []
        self.ledger = Ledger()
        self.implied: set[str] = set()
        self.known: set[bytes] = {b""}
        self._rng = rng
        self._say = say
        self._opened: list[Open] = []
        self._byte = 0
        self._mount: Mount | None = None

    @property
    def mount(self) -> Mount:
        assert self._mount is not None
        return self._mount

    # ------------------------------------------------------------------ steps

    async def step(
        self, what: str, perform: Callable[[], Awaitable[T]], effect: Effect | None = None
    ) -> T:
        """One operation that takes effect wholly or, when it fails, not at all."""
        mount = self.mount
        self._say(f"{self.top}: {what}")
        if effect is not None:
            later = self.tree.copied()
            effect(later)
            self.may_be = [self.tree, later]
        for _ in range(TRIES_MAX):
            try:
                result = await perform()
                break
            except S3MountError as error:
                self._say(f"{self.top}: {what}: {error}")
                await trio.sleep(0.05)
            except OSError as error:
                if mount.is_dead:
                    await trio.sleep_forever()
                raise Wrong(f"{what}: {error!r}") from error
        else:
            raise Wrong(f"{what} failed {TRIES_MAX} times")
        if mount.is_dead:
            await trio.sleep_forever()
        if effect is not None:
            effect(self.tree)
            self.may_be = []
            self.ledger.follow(self.tree)
        return result

    def _data(self) -> bytes:
        around = self._rng.choice(
            (0, 40, INLINE_BYTES_MAX, PART_BYTES, 2 * PART_BYTES, 5 * PART_BYTES)
        )
        size = max(0, around + self._rng.choice((-1, 0, 0, 1, self._rng.randrange(-500, 500))))
        return self._fresh(size)

    def _copied(self) -> bytes:
        """What some file holds now, which S3 may have already."""
        path = self._a_file()
        return self._data() if path is None else self.tree.files[path].now

    def _fresh(self, size: int) -> bytes:
        self._byte = self._byte % 255 + 1
        return bytes([self._byte]) * size

    def _note(self, data: bytes) -> bytes:
        self.known.add(data)
        return data

    # ------------------------------------------------------------------ choosing

    def _a_file(self) -> str | None:
        files = sorted(path for path, file in self.tree.files.items() if not file.is_link)
        return self._rng.choice(files) if files else None

    def _a_folder(self) -> str:
        return self._rng.choice(sorted(self.tree.folders))

    def _a_place(self, names: tuple[str, ...] = NAMES) -> str:
        return f"{self._a_folder()}/{self._rng.choice(names)}"

    def _path_of(self, file: File) -> str | None:
        for path, other in self.tree.files.items():
            if other is file:
                return path
        return None

    def _writers(self, file: File) -> int:
        return sum(each.file is file and each.writes for each in self._opened)

    # ------------------------------------------------------------------ running

    def begin(self, mount: Mount) -> None:
        """From now on it uses ``mount``, and has nothing open."""
        self._mount = mount
        self._opened = []

    async def run(self, mount: Mount, count: int) -> None:
        """``count`` operations, then everything closed."""
        self.begin(mount)
        if self.top not in self.tree.folders:
            await self.step(
                f"mkdir {self.top}",
                lambda: mount.mkdir(self.top),
                lambda tree: tree.folders.add(self.top),
            )
        operations = [operation for operation, weight in self._operations() for _ in range(weight)]
        for _ in range(count):
            await self._rng.choice(operations)()
        await self.close_all()

    def _operations(self) -> list[tuple[Callable[[], Awaitable[None]], int]]:
        return [
            (self._save, 20),
            (self._save_durably, 14),
            (self._save_and_patch, 5),
            (self._patch, 12),
            (self._open, 7),
            (self._write_open, 14),
            (self._close_one, 8),
            (self._sync_one, 4),
            (self._read_open, 6),
            (self._truncate, 6),
            (self._unlink, 8),
            (self._rename_file, 14),
            (self._exchange, 3),
            (self._rename_folder, 6),
            (self._mkdir, 7),
            (self._remove_folder, 5),
            (self._symlink, 2),
            (self._chmod, 5),
            (self._utime, 2),
            (self._read, 8),
            (self._look, 4),
            (self._pause, 14),
            (self._sync, 3),
        ]

    async def close_all(self) -> None:
        """Close every descriptor."""
        while self._opened:
            await self._close(self._opened[-1])

    # ---------------------------------------------------------------- content

    async def _save(self) -> None:
        """Write a whole file as cp does: a new one, or over what is there."""
        path = self._a_place()
        if path in self.tree.folders:
            return
        data = self._note(self._copied() if self._rng.random() < 0.3 else self._data())
        file = self.tree.files.get(path)
        if file is not None and file.is_link:
            return
        opened = await self._create(path) if file is None else await self._open_to_replace(path)
        # At random several writes, so that parts leave meanwhile.
        at = 0
        while at < len(data):
            length = self._rng.choice((len(data), 3 * KIB, 1000))
            await self._write(opened, data[at : at + length], at)
            at += length
            if self._rng.random() < 0.2:
                await self._pause()
        await self._close(opened)

    async def _save_and_patch(self) -> None:
        """A write that comes while the whole file is on its way, from its blob."""
        path = self._a_place()
        if path in self.tree.files or path in self.tree.folders:
            return
        opened = await self._create(path)
        await self._write(opened, self._note(self._fresh(INLINE_BYTES_MAX + 700)), 0)
        await self._close(opened)
        await trio.sleep(self._rng.uniform(0.25, 0.4))
        opened = await self._open_file(path, writes=True)
        await self._write(opened, self._fresh(30), self._rng.randrange(700))
        await self._close(opened)

    async def _save_durably(self) -> None:
        """As editors and databases do: write, fsync, close; at random under another name that is moved then."""
        path = self._a_place()
        place = f"{path}.new" if self._rng.random() < 0.5 else path
        if path in self.tree.folders or place in self.tree.files:
            return
        data = self._note(self._data())
        opened = await self._create(place)
        await self._write(opened, data, 0)
        await self._sync_open(opened)
        await self._close(opened)
        if place != path:
            await self.step(
                f"rename {place} -> {path}",
                lambda: self.mount.rename(place, path),
                lambda tree: tree.rename(place, path),
            )

    async def _create(self, path: str) -> Open:
        fd = await self.step(
            f"create {path}",
            lambda: self.mount.create(path),
            lambda tree: tree.files.__setitem__(path, File(since=[b""])),
        )
        self._opened.append(Open(fd, self.tree.files[path], True))
        return self._opened[-1]

    async def _open_to_replace(self, path: str) -> Open:
        fd = await self.step(
            f"open {path} O_TRUNC",
            lambda: self.mount.open(path, os.O_RDWR | os.O_TRUNC),
            lambda tree: tree.files[path].became(b""),
        )
        self._opened.append(Open(fd, self.tree.files[path], True))
        return self._opened[-1]

    async def _write(self, opened: Open, data: bytes, offset: int) -> None:
        file = opened.file
        path = self._path_of(file)
        old = file.now
        grown = old + bytes(max(0, offset - len(old)))
        new = self._note(grown[:offset] + data + grown[offset + len(data) :])
        if not data:
            new = old
        effect: Effect | None = None
        if path is not None:
            linked = path
            effect = lambda tree: tree.files[linked].became(new)  # noqa: E731
        await self.step(
            f"write {path} {brief(data)} at {offset}",
            lambda: self.mount.pwrite(opened.fd, data, offset),
            effect,
        )
        if path is None:
            file.became(new)

    async def _close(self, opened: Open) -> None:
        path = self._path_of(opened.file)
        effect: Effect | None = None
        if opened.writes and path is not None:
            linked = path
            effect = lambda tree: tree.files[linked].settle()  # noqa: E731
        await self.step(f"close {path}", lambda: self.mount.close(opened.fd), effect)
        self._opened.remove(opened)

    async def _patch(self) -> None:
        """Open, a few writes anywhere, close."""
        path = self._a_file()
        if path is None:
            return
        opened = await self._open_file(path, writes=True)
        for _ in range(self._rng.randint(1, 3)):
            await self._write_somewhere(opened)
        await self._close(opened)

    async def _write_somewhere(self, opened: Open) -> None:
        size = len(opened.file.now)
        offset = self._rng.choice((0, size, self._rng.randrange(size + 1), size + 100))
        length = self._rng.choice((1, 30, 1000, PART_BYTES, 3 * PART_BYTES))
        await self._write(opened, self._fresh(length), offset)

    async def _open_file(self, path: str, *, writes: bool) -> Open:
        flags = os.O_RDWR if writes else os.O_RDONLY
        fd = await self.step(f"open {path}", lambda: self.mount.open(path, flags))
        self._opened.append(Open(fd, self.tree.files[path], writes))
        return self._opened[-1]

    async def _open(self) -> None:
        if len(self._opened) >= HANDLES_MAX:
            return
        path = self._a_file()
        if path is not None and self._rng.random() < 0.6:
            await self._open_file(path, writes=self._rng.random() < 0.6)
            return
        place = self._a_place()
        if place not in self.tree.files and place not in self.tree.folders:
            await self._create(place)

    async def _write_open(self) -> None:
        writers = [opened for opened in self._opened if opened.writes]
        if writers:
            await self._write_somewhere(self._rng.choice(writers))

    async def _close_one(self) -> None:
        if self._opened:
            await self._close(self._rng.choice(self._opened))

    async def _sync_one(self) -> None:
        writers = [opened for opened in self._opened if opened.writes]
        if writers:
            await self._sync_open(self._rng.choice(writers))

    async def _sync_open(self, opened: Open) -> None:
        path = self._path_of(opened.file)
        effect: Effect | None = None
        if path is not None:
            linked = path
            effect = lambda tree: tree.files[linked].settle()  # noqa: E731
        blob_id = self.mount.blob_of(opened.fd)
        await self.step(f"fsync {path}", lambda: self.mount.fsync(opened.fd), effect)
        if path is not None:
            self.ledger.synced(opened.file, self.tree, blob_id)

    async def _read_open(self) -> None:
        if not self._opened:
            return
        opened = self._rng.choice(self._opened)
        data = await self.step(
            f"read open {self._path_of(opened.file)}", lambda: self.mount.read_all(opened.fd)
        )
        self._must_be(data, opened.file, "open file")

    async def _read(self) -> None:
        path = self._a_file()
        if path is not None:
            data = await self.step(f"read {path}", lambda: self.mount.read(path))
            self._must_be(data, self.tree.files[path], path)

    def _must_be(self, data: bytes, file: File, what: str) -> None:
        if data != file.now:
            raise Wrong(f"{what} reads as {brief(data)}, must be {brief(file.now)}")

    async def _truncate(self) -> None:
        path = self._a_file()
        if path is None:
            return
        file = self.tree.files[path]
        longer = len(file.now) + HOLE_PARTS * PART_BYTES
        size = self._rng.choice(
            (0, 10, PART_BYTES, self._rng.randrange(len(file.now) + 300), longer)
        )
        size = min(size, SIZE_MAX)
        new = self._note((file.now + bytes(max(0, size - len(file.now))))[:size])
        has_writer = self._writers(file) > 0

        def effect(tree: Tree) -> None:
            tree.files[path].became(new)
            if not has_writer:
                tree.files[path].settle()

        await self.step(
            f"truncate {path} to {size}", lambda: self.mount.truncate(path, size), effect
        )

    # ------------------------------------------------------------------- names

    async def _unlink(self) -> None:
        path = self._a_file()
        if path is not None:
            await self.step(
                f"unlink {path}",
                lambda: self.mount.unlink(path),
                lambda tree: drop(tree, path),
            )

    async def _rename_file(self) -> None:
        path = self._a_file()
        new = self._a_place()
        if path is None or new in self.tree.folders:
            return
        await self.step(
            f"rename {path} -> {new}",
            lambda: self.mount.rename(path, new),
            lambda tree: tree.rename(path, new),
        )

    async def _exchange(self) -> None:
        one, other = self._a_file(), self._a_file()
        if one is None or other is None or one == other:
            return

        def effect(tree: Tree) -> None:
            tree.files[one], tree.files[other] = tree.files[other], tree.files[one]

        await self.step(
            f"exchange {one} <-> {other}",
            lambda: self.mount.rename(one, other, RENAME_EXCHANGE),
            effect,
        )

    async def _rename_folder(self) -> None:
        folders = sorted(self.tree.folders - {self.top})
        if not folders:
            return
        old = self._rng.choice(folders)
        parent = self._a_folder()
        new = f"{parent}/{self._rng.choice(FOLDERS)}"
        inside = f"{parent}/".startswith(f"{old}/")
        if inside or new == old or new in self.tree.files or new.count("/") > DEPTH_MAX:
            return
        if new in self.tree.folders and not self.tree.is_empty(new):
            return
        if old.startswith(f"{new}/"):
            return
        await self.step(
            f"rename {old}/ -> {new}/",
            lambda: self.mount.rename(old, new),
            lambda tree: tree.rename(old, new),
        )

    async def _mkdir(self) -> None:
        path = self._a_place(FOLDERS)
        if path in self.tree.folders or path in self.tree.files or path.count("/") > DEPTH_MAX:
            return
        await self.step(
            f"mkdir {path}", lambda: self.mount.mkdir(path), lambda tree: tree.folders.add(path)
        )

    async def _remove_folder(self) -> None:
        """``rm -r``, and at random the folder again at once."""
        folders = sorted(self.tree.folders - {self.top})
        if not folders:
            return
        path = self._rng.choice(folders)
        below = [each for each in self.tree.names() if each.startswith(f"{path}/")]
        for each in sorted(below, reverse=True):
            await self._remove(each)
        await self._remove(path)
        if self._rng.random() < 0.4:
            await self.step(
                f"mkdir {path}", lambda: self.mount.mkdir(path), lambda tree: tree.folders.add(path)
            )

    async def _remove(self, path: str) -> None:
        if path in self.tree.files:
            await self.step(
                f"unlink {path}", lambda: self.mount.unlink(path), lambda tree: drop(tree, path)
            )
        else:
            await self.step(
                f"rmdir {path}",
                lambda: self.mount.rmdir(path),
                lambda tree: tree.folders.discard(path),
            )

    async def _symlink(self) -> None:
        path = self._a_place()
        if path in self.tree.files or path in self.tree.folders:
            return
        target = self._rng.choice(("a", "../b", "/nowhere"))
        data = self._note(target.encode())
        await self.step(
            f"symlink {path} -> {target}",
            lambda: self.mount.symlink(target, path),
            lambda tree: tree.files.__setitem__(
                path, File(data, data, mode=0o777, stable_mode=0o777, is_link=True)
            ),
        )

    # -------------------------------------------------------------- attributes

    async def _chmod(self) -> None:
        path = self._a_file()
        if path is None:
            return
        mode = self._rng.choice((0o600, 0o640, 0o755))

        def effect(tree: Tree) -> None:
            tree.files[path].mode = tree.files[path].stable_mode = mode

        await self.step(f"chmod {path} {mode:o}", lambda: self.mount.chmod(path, mode), effect)

    async def _utime(self) -> None:
        path = self._a_file()
        if path is not None:
            when_ns = self._rng.randrange(10**18)
            await self.step(f"utime {path}", lambda: self.mount.utime(path, when_ns))

    # ------------------------------------------------------------------ looking

    async def _pause(self) -> None:
        await trio.sleep(self._rng.choice((0.0, 0.01, 0.1, 0.3, 1.5)))

    async def _look(self) -> None:
        """List everything and compare."""
        found = await self.step(f"look at {self.top}", lambda: self.seen())
        for opened in self._opened:
            self._path_of(opened.file)
        self._must_match(found, "the mount shows")

    async def seen(self) -> dict[str, bytes | None]:
        """What the mount shows below the top, and that modes are right."""
        if not await self.mount.exists(self.top):
            return {}
        found = {self.top: None, **await self.mount.tree(self.top)}
        for path, file in self.tree.files.items():
            if path in found and not self.may_be:
                mode = stat.S_IMODE((await self.mount.stat(path)).st_mode)
                if mode != file.mode:
                    raise Wrong(f"{path} has mode {mode:o}, must be {file.mode:o}")
        return found

    def _must_match(self, found: dict[str, bytes | None], what: str) -> None:
        wrong = self.tree.differences(found)
        if wrong:
            raise Wrong(f"{what}: {'; '.join(wrong)}")

    async def _sync(self) -> None:
        """Close everything, wait, and compare with S3."""
        await self.close_all()
        await self.step("wait until all is in S3", self.mount.sync)
        await self.compare_with_s3(self.mount.world)
        for file in self.tree.files.values():
            file.is_moved = False

    async def compare_with_s3(self, world: World) -> None:
        """S3 must hold exactly the tree, with its modes. All is closed and sent."""
        found = as_paths(world.contents(), self.top)
        for folder in self.implied:
            if any(path.startswith(f"{folder}/") for path in found):
                found.setdefault(folder, None)
        self._must_match(found, "S3 holds")
        for path, file in self.tree.files.items():
            mode = int((await world.metadata(path))["mode"])
            if stat.S_IMODE(mode) != file.mode:
                raise Wrong(f"S3 has mode {mode:o} with {path}, must be {file.mode:o}")


def drop(tree: Tree, path: str) -> None:
    """``unlink`` in the model."""
    del tree.files[path]

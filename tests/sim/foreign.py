"""Two writers of the same keys, one through the mount and one past it: no version may get lost unseen."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from s3mount.errors import S3MountError
from tests.sim.model import brief
from tests.sim.mount import Mount
from tests.sim.program import Wrong
from tests.sim.world import World

T = TypeVar("T")

TOP = "shared"
KEYS = tuple(f"{TOP}/{name}" for name in ("one", "two", "three"))
SIZES = (30, 3000, 9000)
TRIES_MAX = 200


class Rivals:
    """Both writers. A content may be gone only when somebody replaced it who had read it, or who never asks."""

    def __init__(self, rng: random.Random, say: Callable[[str], None]) -> None:
        self._rng = rng
        self._say = say
        self._written: list[bytes] = []
        self._replaced: set[bytes] = set()

    def _fresh(self, writer: str) -> bytes:
        number = len(self._written)
        return f"{writer} {number} ".encode().ljust(self._rng.choice(SIZES), b".")

    def power_was_cut(self) -> None:
        """What was written through the mount was not synced: it may be lost."""
        self._written = [data for data in self._written if data.startswith(b"theirs")]

    # -------------------------------------------------------------- the foreigner

    async def write_past(self, world: World, count: int) -> None:
        """``count`` writes to the bucket by somebody who looks at nothing."""
        for _ in range(count):
            await trio.sleep(self._rng.choice((0.0, 0.1, 0.5, 2.0)))
            key = self._rng.choice(KEYS)
            data = self._fresh("theirs")
            there = world.put_now(key, data)
            self._say(f"foreign put {key} {data[:12]!r} over {(there or b'nothing')[:12]!r}")
            self._written.append(data)
            if there is not None:
                self._replaced.add(there)

    # -------------------------------------------------------------- through the mount

    async def write_through(self, mount: Mount, count: int) -> None:
        """``count`` files written through the mount: new ones, or others read and then replaced."""
        if not await self._try(mount, lambda: mount.exists(TOP)):
            await self._try(mount, lambda: self._make_top(mount))
        for _ in range(count):
            await trio.sleep(self._rng.choice((0.0, 0.1, 0.3, 1.5)))
            await self._replace(mount, self._rng.choice(KEYS))

    @staticmethod
    async def _make_top(mount: Mount) -> None:
        if not await mount.exists(TOP):
            await mount.mkdir(TOP)

    async def _replace(self, mount: Mount, key: str) -> None:
        data = self._fresh("ours")
        if await self._try(mount, lambda: mount.exists(key)):
            try:
                fd = await self._try(mount, lambda: mount.open(key, os.O_RDWR))
            except OSError as error:
                # It was removed, or replaced twice while it was opened: the program is told.
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
                return
            try:
                read = await self._read_whole(mount, fd)
            except S3MountError:
                # What was opened is gone meanwhile; a program would open it again.
                await mount.close(fd)
                return
            self._say(f"ours: replace {key} {read[:12]!r} by {data[:12]!r}")
            self._replaced.add(read)
            await self._try(mount, lambda: mount.ftruncate(fd, 0))
        else:
            try:
                fd = await self._try(mount, lambda: mount.create(key))
            except FileExistsError:
                return
            self._say(f"ours: create {key} {data[:12]!r}")
        await self._try(mount, lambda: mount.pwrite(fd, data, 0))
        await self._try(mount, lambda: mount.close(fd))
        if not mount.is_dead:
            self._written.append(data)

    async def _read_whole(self, mount: Mount, fd: int) -> bytes:
        for _ in range(TRIES_MAX):
            try:
                return await mount.read_all(fd)
            except S3MountError as error:
                if not error.retryable:
                    raise
                await trio.sleep(0.05)
            except OSError as error:
                raise S3MountError(str(error)) from error
        raise Wrong("a read failed too often")

    async def _try(self, mount: Mount, perform: Callable[[], Awaitable[T]]) -> T:
        for _ in range(TRIES_MAX):
            if mount.is_dead:
                await trio.sleep_forever()
            try:
                return await perform()
            except S3MountError as error:
                if not error.retryable:
                    raise
                await trio.sleep(0.05)
        raise Wrong("an operation failed too often")

    # ------------------------------------------------------------------- the judge

    def judge(self, world: World) -> None:
        """All is sent: every content that nobody replaced knowingly must be in the bucket, under some name."""
        there = set(world.contents().values())
        lost = [data for data in self._written if data not in there and data not in self._replaced]
        if lost:
            names = [key for key in world.contents() if key.startswith(TOP)]
            shown = ", ".join(f"{data[:12]!r} {brief(data)[:12]}" for data in lost)
            raise Wrong(f"lost without being seen: {shown}; there are {names}")

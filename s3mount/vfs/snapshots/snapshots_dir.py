"""``.snapshots``: the snapshots of a mounted bucket, each a folder named by its time, opened when it is looked at."""

from __future__ import annotations

import errno
import logging
import stat
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from s3mount.errors import UsageError
from s3mount.manifest.times import parse_time
from s3mount.refs import Attributes
from s3mount.vfs.missing_versions import MissingVersions
from s3mount.vfs.snapshots.snapshot import SnapshotView
from s3mount.vfs.view import FOREVER_S, SLOT_BITS, Entry, ForgetEntry, View

log = logging.getLogger(__name__)

SNAPSHOTS_INODE = 1 << 62
SNAPSHOTS_MAX = 64
"""Snapshots that are open at a time, each with a catalog and its cache: four descriptors."""

Open = Callable[
    [int, int, str, MissingVersions], Awaitable[tuple[SnapshotView, Callable[[], None]]]
]
"""Opens the snapshot of a time (ns): with the number of the first inode, how people are told of it, and where
its missing versions are noted. Returns it and what frees all that it holds. Raises S3MountError."""


class SnapshotsDirectory:
    """The view of the folder itself. Each snapshot below it is a view of its own, put into the table ``views``.

    ``name`` is the folder's at the mount's top. It is not listed there, so that no program walks into all of the
    past by accident; keys below it are not shown.
    """

    def __init__(
        self,
        views: dict[int, View],
        open_snapshot: Open,
        name: str,
        *,
        uid: int,
        gid: int,
        mounted_ns: int,
    ) -> None:
        self.name = name
        self.missing_versions = MissingVersions()
        self._views = views
        self._views[SNAPSHOTS_INODE >> SLOT_BITS] = self
        self._open_snapshot = open_snapshot
        attributes = Attributes(stat.S_IFDIR | 0o555, uid, gid, mounted_ns, mounted_ns, mounted_ns)
        self._own = Entry(SNAPSHOTS_INODE, attributes, 0, FOREVER_S, FOREVER_S)
        self._open: dict[str, tuple[int, SnapshotView, Callable[[], None]]] = {}
        """By name, that which was looked at longest ago first: the slot, the view, and what closes it."""
        self._opening = trio.Lock()
        self._next_slot = 1
        self._is_crowded = trio.Event()

    def close(self) -> None:
        """Close all snapshots. Repeatable."""
        for name in list(self._open):
            self._close(name)

    # --------------------------------------------------------------- snapshots

    async def _named(self, name: str) -> SnapshotView:
        """The snapshot of this name. Raises OSError (ENOENT: it is no time), S3MountError."""
        if name not in self._open:
            at_ns = _time_of(name)
            async with self._opening:
                if name not in self._open:
                    self._make_room()
                    slot = self._next_slot
                    self._next_slot += 1
                    place = f"{self.name}/{name}: "
                    opened = await self._open_snapshot(
                        at_ns, slot << SLOT_BITS, place, self.missing_versions
                    )
                    self._open[name] = (slot, *opened)
                    self._views[slot] = opened[0]
                    log.info("the snapshot of %s is shown", name)
                    if len(self._open) > SNAPSHOTS_MAX * 3 // 4:
                        self._is_crowded.set()
        self._open[name] = found = self._open.pop(name)
        return found[1]

    async def keep_room(self, forget_entry: ForgetEntry) -> None:
        """Before there are too many, have the kernel forget what was looked at longest ago, for ever.

        The kernel remembers a name as long as it has memory, and what it remembers counts as in use. It cannot be
        asked while it waits for a lookup in the same folder; so not in ``_make_room``.
        """
        while True:
            await self._is_crowded.wait()
            self._is_crowded = trio.Event()
            for name in list(self._open)[: len(self._open) - SNAPSHOTS_MAX // 2]:
                if name in self._open and not self._open[name][1].open_files:
                    await forget_entry(SNAPSHOTS_INODE, name)

    def _make_room(self) -> None:
        """Close what was looked at longest ago and is not in use, if there is too much. Raises OSError."""
        if len(self._open) < SNAPSHOTS_MAX:
            return
        for name, (_, view, _) in self._open.items():
            if not view.references and not view.open_files:
                self._close(name)
                return
        raise OSError(errno.EMFILE, f"{SNAPSHOTS_MAX} snapshots are in use")

    def _close(self, name: str) -> None:
        slot, _, close = self._open.pop(name)
        self._views.pop(slot, None)
        close()

    # ------------------------------------------------------------------ looking

    async def lookup(self, parent_inode: int, name: str) -> Entry | None:
        """See ``View.lookup``; a name is a time."""
        view = await self._named(name)
        with _in_use(view):
            found = await view.getattr(view.top_inode)
            view.references += 1
            return found

    def absent_for_s(self, parent_inode: int) -> float:
        """See ``View.absent_for_s``; never asked, as such a lookup raises ENOENT."""
        return 0.0

    def forget(self, inode: int, count: int) -> None:
        """See ``View.forget``: it stays as long as the mount."""

    async def getattr(self, inode: int) -> Entry:
        """See ``View.getattr``."""
        await trio.lowlevel.checkpoint()
        return self._own

    def open_directory(self, inode: int) -> OpenSnapshotsDirectory:
        """See ``View.open_directory``."""
        return OpenSnapshotsDirectory(self)

    async def tops(self) -> list[tuple[str, SnapshotView, Entry]]:
        """The snapshots that were looked at, by name. Raises OSError, S3MountError."""
        found = []
        for name in sorted(self._open):
            if name in self._open:
                view = self._open[name][1]
                with _in_use(view):
                    found.append((name, view, await view.getattr(view.top_inode)))
        return found

    # ------------------------------------------------------- it is a folder only

    async def readlink(self, inode: int) -> bytes:
        """Raise OSError (EINVAL)."""
        raise OSError(errno.EINVAL, "not a symbolic link")

    async def open(self, inode: int, flags: int, pid: int) -> int:
        """Raise OSError (EISDIR)."""
        raise OSError(errno.EISDIR, "is a directory")

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        """Raise OSError (EBADF): nothing here has a handle."""
        raise OSError(errno.EBADF, "no such handle")

    async def flush(self, handle: int) -> None:
        """Nothing here has a handle."""

    async def fsync(self, handle: int) -> None:
        """Nothing here has a handle."""

    def release(self, handle: int) -> None:
        """Nothing here has a handle."""

    async def getxattr(self, inode: int, name: str) -> bytes:
        """Raise OSError (ENODATA)."""
        raise OSError(errno.ENODATA, "no such attribute")

    async def listxattr(self, inode: int) -> list[str]:
        """None."""
        return []

    # -------------------------------------------------------------------- telling

    async def status_of(self, names: Sequence[str]) -> dict[str, Any]:
        """One file, by the names that lead there. Raises S3MountError, OSError."""
        if names:
            view = await self._named(names[0])
            with _in_use(view):
                return await view.status_of("/".join(names[1:]))
        await trio.lowlevel.checkpoint()
        attributes = self._own.attributes
        return {"size": 0, "mode": oct(attributes.mode), "mtime_ns": attributes.mtime_ns}

    def status(self) -> dict[str, Any]:
        """What is told of the snapshots: which were looked at, and what of them cannot be read."""
        return {"snapshots": sorted(self._open), "missing": self.missing_versions.status()}


class OpenSnapshotsDirectory:
    """The folder while a program reads it: the snapshots that had been looked at when it began."""

    __slots__ = ("_directory", "_tops")

    def __init__(self, directory: SnapshotsDirectory) -> None:
        self._directory = directory
        self._tops: list[tuple[str, SnapshotView, Entry]] = []

    async def rewind(self) -> None:
        """See ``OpenDirectory.rewind``."""
        self._tops = await self._directory.tops()

    async def dots(self) -> tuple[Entry, Entry]:
        """See ``OpenDirectory.dots``."""
        own = await self._directory.getattr(SNAPSHOTS_INODE)
        return own, own

    async def entries(self, place: int) -> AsyncGenerator[tuple[str, Entry | None]]:
        """See ``OpenDirectory.entries``."""
        for name, view, entry in self._tops[place:]:
            yield name, entry
            view.references += 1


@contextmanager
def _in_use(view: SnapshotView) -> Iterator[None]:
    """Keep a snapshot open while something here waits for it."""
    view.references += 1
    try:
        yield
    finally:
        view.references -= 1


def _time_of(name: str) -> int:
    """The time that a folder's name says. Raises OSError (ENOENT) for what is none, or is yet to come.

    A time relative to now is none: a name must mean the same tomorrow.
    """
    now_ns = time.time_ns()
    try:
        at_ns = parse_time(name, now_ns)
    except (UsageError, ValueError):
        at_ns = now_ns + 1
    if at_ns > now_ns or name.startswith(("-", "+")):
        raise OSError(errno.ENOENT, "no time in the past")
    return at_ns

"""``.snapshots``: the pasts of a mounted bucket, each a folder named by its time, opened when it is looked at."""

from __future__ import annotations

import errno
import logging
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from s3mount.errors import UsageError
from s3mount.manifest.times import parse_time
from s3mount.refs import Attributes
from s3mount.vfs.snapshot import FOREVER_S, Shown, SnapshotFiles
from s3mount.vfs.troubles import Troubles

log = logging.getLogger(__name__)

SLOT_BITS = 40
FIRST_INODE = 1 << SLOT_BITS
"""Inodes from here on are of the past: the slot of a past, then the number in its catalog."""
HALL_INODE = 1 << 62
PASTS_MAX = 64
"""Pasts that are open at a time, each with a catalog and its cache."""


class OpenPast:
    """One open past. ``close`` frees what it holds; ``references`` counts what the kernel knows of it."""

    def __init__(self, files: SnapshotFiles, close: Callable[[], None]) -> None:
        self.files = files
        self.close = close
        self.references = 0


Open = Callable[[int, int, str, Troubles], Awaitable[OpenPast]]
"""Opens the past of a time (ns): with the number of the first inode, how people are told of it, and where
its troubles are noted. Raises S3MountError."""


class SnapshotHall:
    """All pasts by inode numbers; the face is that of one (``SnapshotFiles``).

    ``name`` is the folder's at the mount's top. It is not listed there, so that no program walks into all of the
    past by accident; keys below it are not shown.
    """

    def __init__(self, open_past: Open, name: str, *, uid: int, gid: int, mounted_ns: int) -> None:
        self.name = name
        self.troubles = Troubles()
        self._open_past = open_past
        self._attributes = Attributes(
            stat.S_IFDIR | 0o555, uid, gid, mounted_ns, mounted_ns, mounted_ns
        )
        self._slots: dict[int, OpenPast] = {}
        self._names: dict[str, int] = {}
        self._opening = trio.Lock()
        self._next_slot = 1

    def close(self) -> None:
        """Close all pasts. Repeatable."""
        for past in self._slots.values():
            past.close()
        self._slots.clear()
        self._names.clear()

    # ------------------------------------------------------------------- pasts

    def _past(self, inode: int) -> OpenPast:
        try:
            return self._slots[inode >> SLOT_BITS]
        except KeyError:
            raise OSError(errno.ESTALE, "that past is closed") from None

    async def _named(self, name: str) -> OpenPast:
        """The past of this name. Raises OSError (ENOENT: it is no time), S3MountError."""
        if name not in self._names:
            at_ns = _time_of(name)
            async with self._opening:
                if name not in self._names:
                    self._make_room()
                    slot = self._next_slot
                    self._next_slot += 1
                    place = f"{self.name}/{name}: "
                    past = await self._open_past(at_ns, slot << SLOT_BITS, place, self.troubles)
                    self._slots[slot] = past
                    self._names[name] = slot
                    log.info("the past of %s is shown", name)
        slot = self._names[name]
        self._names[name] = self._names.pop(name)
        return self._slots[slot]

    def _make_room(self) -> None:
        """Close the past looked at longest ago that nobody is in, if there are too many. Raises OSError."""
        if len(self._slots) < PASTS_MAX:
            return
        for name, slot in self._names.items():
            past = self._slots[slot]
            if not past.references and not past.files.open_files:
                past.close()
                del self._slots[slot], self._names[name]
                return
        raise OSError(errno.EMFILE, f"{PASTS_MAX} pasts are in use")

    # ------------------------------------------------------------------ looking

    async def lookup(self, parent_inode: int, name: str) -> Shown | None:
        """See ``SnapshotFiles.lookup``; below the hall itself a name is a time."""
        if parent_inode == HALL_INODE:
            past = await self._named(name)
            return await past.files.shown(past.files.top_inode)
        return await self._past(parent_inode).files.lookup(parent_inode, name)

    async def shown(self, inode: int) -> Shown:
        """See ``SnapshotFiles.shown``."""
        if inode == HALL_INODE:
            await trio.lowlevel.checkpoint()
            return Shown(HALL_INODE, self._attributes, 0, FOREVER_S)
        return await self._past(inode).files.shown(inode)

    async def entries(self, inode: int, after: str) -> list[tuple[str, Shown | None]]:
        """See ``SnapshotFiles.entries``; in the hall those that were looked at."""
        if inode != HALL_INODE:
            return await self._past(inode).files.entries(inode, after)
        found: list[tuple[str, Shown | None]] = []
        for name, slot in sorted(self._names.items()):
            if name > after and slot in self._slots:
                files = self._slots[slot].files
                found.append((name, await files.shown(files.top_inode)))
        return found

    def name_at(self, inode: int, place: int) -> str:
        """See ``SnapshotFiles.name_at``."""
        if inode != HALL_INODE:
            return self._past(inode).files.name_at(inode, place)
        return dict(enumerate(sorted(self._names))).get(place, "")

    def refer(self, inode: int) -> None:
        """The kernel was told of the inode once more."""
        past = self._slots.get(inode >> SLOT_BITS)
        if past is not None:
            past.references += 1

    def forget(self, inode: int, count: int) -> None:
        """The kernel dropped some of its references."""
        past = self._slots.get(inode >> SLOT_BITS)
        if past is not None:
            past.references = max(0, past.references - count)

    # ------------------------------------------------------------------ reading

    async def open(self, inode: int) -> int:
        """See ``SnapshotFiles.open``."""
        number = await self._past(inode).files.open(inode)
        return inode >> SLOT_BITS << SLOT_BITS | number

    async def read(self, number: int, offset: int, length: int) -> bytes:
        """See ``SnapshotFiles.read``."""
        return await self._past(number).files.read(number % FIRST_INODE, offset, length)

    def release(self, number: int) -> None:
        """See ``SnapshotFiles.release``."""
        past = self._slots.get(number >> SLOT_BITS)
        if past is not None:
            past.files.release(number % FIRST_INODE)

    async def link_target(self, inode: int) -> bytes:
        """See ``SnapshotFiles.link_target``."""
        return await self._past(inode).files.link_target(inode)

    async def xattr(self, inode: int, name: str) -> bytes:
        """See ``SnapshotFiles.xattr``."""
        if inode == HALL_INODE:
            raise OSError(errno.ENODATA, "no such attribute")
        return await self._past(inode).files.xattr(inode, name)

    async def xattr_names(self, inode: int) -> list[str]:
        """See ``SnapshotFiles.xattr_names``."""
        return [] if inode == HALL_INODE else await self._past(inode).files.xattr_names(inode)

    async def status_of(self, names: Sequence[str]) -> dict[str, Any]:
        """One file, by the names that lead there. Raises S3MountError, OSError."""
        if names:
            past = await self._named(names[0])
            return await past.files.status_of("/".join(names[1:]))
        await trio.lowlevel.checkpoint()
        return {
            "size": 0,
            "mode": oct(self._attributes.mode),
            "mtime_ns": self._attributes.mtime_ns,
        }

    def status(self) -> dict[str, Any]:
        """What is told of the pasts: which were looked at, and what of them cannot be read."""
        return {"snapshots": sorted(self._names), "missing": self.troubles.status()}


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

"""Making room: entries that nobody uses go first, then blocks of open ones that nobody needs soon."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from s3mount.background import PAUSE_MAX_S, contained
from s3mount.cache.blocks import PRESENT, BlockMap, sums_room
from s3mount.cache.cache_catalog import CacheCatalog, Update, Victim
from s3mount.cache.disk_cache import DiskCache
from s3mount.cache.entry import Entry
from s3mount.cache.folder import CacheFolder
from s3mount.cache.maintenance import CacheMaintenance
from s3mount.config import MIB
from s3mount.errors import LocalDiskError
from s3mount.refs import Evicted

EVICT_COUNT_MAX = 256
"""Entries per job: some ten milliseconds of unlinking."""
STUCK_S = 0.1
"""When a round could free nothing, whoever wants room is refused at once for so long."""
ROOM_WAIT_S = 5.0
"""A read waits no longer for a round of eviction; then it goes past the cache."""
SHAVE_BYTES_MIN = 8 * MIB
"""An entry that exceeds what is needed by more than this is not removed but made shorter."""


class _Hole(NamedTuple):
    """Blocks that are taken away from an open entry; the descriptor is the hole's own."""

    entry: Entry
    descriptor: int
    update: Update | None
    byte_ranges: list[tuple[int, int]]
    freed_bytes: int


class Evictor:
    """Keeps one disk cache below its cap."""

    def __init__(self, disk_cache: DiskCache, maintenance: CacheMaintenance) -> None:
        self.evicted_bytes = 0
        self.on_evicted: Callable[[int], None] = lambda size_bytes: None
        self._disk_cache = disk_cache
        self._maintenance = maintenance
        self._round_over = trio.Event()
        self._stuck_until_s = 0.0

    async def run(self) -> None:
        """Evict whenever it gets narrow, until cancelled."""
        while True:
            await self._disk_cache.room_wanted.wait()
            if not await self.evict():
                await trio.sleep(STUCK_S)

    async def make_room(self, needed: int) -> bool:
        """Wait until ``needed`` bytes more fit, for at most some rounds of eviction; do they?"""
        for _ in range(3):
            if self._disk_cache.has_room(needed):
                break
            if (
                trio.current_time() < self._stuck_until_s
                or needed > self._disk_cache.size_bytes_max
            ):
                break
            self._disk_cache.want_room(needed)
            with trio.move_on_after(ROOM_WAIT_S):
                await self._round_over.wait()
        await trio.lowlevel.checkpoint()
        return self._disk_cache.has_room(needed)

    async def evict(self) -> bool:
        """One round: down to the headroom below the cap, if possible. False when it is narrow still.

        That is: nothing could be freed though the goal was not reached.
        """
        disk_cache = self._disk_cache
        urgent, disk_cache.room_needed = disk_cache.room_needed, 0
        disk_cache.room_wanted = trio.Event()
        goal = disk_cache.size_bytes_max - max(disk_cache.headroom_bytes, urgent)
        before, had_room = self.evicted_bytes, False
        try:
            if self._maintenance.is_open:
                # Other mounts may have stored or removed something since our latest save.
                disk_cache.recorded_total = await self._maintenance.with_catalog(CacheCatalog.total)
                had_room = disk_cache.total_bytes <= goal
                await self._evict_unused(goal)
                limit = disk_cache.size_bytes_max - max(disk_cache.headroom_bytes // 2, urgent)
                if disk_cache.total_bytes > limit:
                    await self._trim_open(goal)
        except (OSError, sqlite3.Error) as error:
            disk_cache.disk_failed(error)
        except Exception:
            # Reads go past the cache until the next round.
            self._stuck_until_s = trio.current_time() + PAUSE_MAX_S
            raise
        finally:
            self._round_over.set()
            self._round_over = trio.Event()
        await trio.lowlevel.checkpoint()
        if self.evicted_bytes > before:
            self.on_evicted(self.evicted_bytes - before)
        if self.evicted_bytes > before or had_room:
            return True
        self._stuck_until_s = trio.current_time() + STUCK_S
        return False

    async def _evict_unused(self, goal: int) -> None:
        disk_cache = self._disk_cache
        after = (-1, b"")
        while disk_cache.total_bytes > goal:
            await self._maintenance.save()
            found = await self._maintenance.with_catalog(
                functools.partial(CacheCatalog.victims, after=after, limit=EVICT_COUNT_MAX)
            )
            if not found:
                return
            after = (found[-1].used_ns, found[-1].digest)
            excess = disk_cache.total_bytes - goal
            chosen = []
            for victim in found:
                if victim.digest not in disk_cache.entries and excess > 0:
                    chosen.append(victim)
                    excess -= victim.allocated
            await self._remove(chosen, max(0, -excess))

    async def _trim_open(self, goal: int) -> None:
        """Take blocks from entries in use: those that no reader is about to ask for."""
        disk_cache = self._disk_cache
        holes: list[_Hole] = []
        excess = disk_cache.total_bytes - goal
        candidates = await self._not_pinned(disk_cache.in_use())
        try:
            for entry in sorted(candidates, key=lambda entry: -entry.held_bytes):
                if excess <= 0:
                    break
                ranges = _unneeded(entry, excess)
                if ranges and disk_cache.files.lock_alone(entry.descriptor):
                    holes.append(self._cut(entry, ranges))
                    excess -= holes[-1].freed_bytes
            if holes:
                results, disk_cache.recorded_total = await self._maintenance.with_catalog(
                    functools.partial(_punch, files=disk_cache.files, holes=holes)
                )
                for hole, result in zip(holes, results, strict=True):
                    if result is not None:
                        disk_cache.shrunk(hole.entry, *result)
        except Exception:
            for hole in holes:
                with contained("giving up a content that was to be made shorter"):
                    disk_cache.abandon_file(hole.entry)
            raise
        finally:
            for hole in holes:
                with contained("making room in the cache"):
                    self._close_hole(hole)

    async def _not_pinned(self, entries: list[Entry]) -> list[Entry]:
        """Of entries in use, those that are in use still and not pinned."""
        digests = [entry.digest for entry in entries if entry.digest is not None]
        pinned = await self._maintenance.with_catalog(
            functools.partial(CacheCatalog.pinned_of, digests=digests)
        )
        now = set(self._disk_cache.in_use())
        return [entry for entry in entries if entry in now and entry.digest not in pinned]

    async def drop(self, digests: Sequence[bytes]) -> Evicted:
        """Remove these contents now, but for what is open or pinned. Raises LocalDiskError."""
        disk_cache = self._disk_cache
        if not self._maintenance.is_open:
            disk_cache.require_disk()
        try:
            await self._maintenance.save()
            found = await self._maintenance.with_catalog(
                functools.partial(CacheCatalog.entries_of, digests=digests)
            )
            here = [each.digest for each in found]
            pinned = await self._maintenance.with_catalog(
                functools.partial(CacheCatalog.pinned_of, digests=here)
            )
            chosen = [
                each
                for each in found
                if each.digest not in pinned and each.digest not in disk_cache.entries
            ]
            freed = await self._remove(chosen, 0)
        except (OSError, sqlite3.Error) as error:
            disk_cache.disk_failed(error)
            raise LocalDiskError(f"the cache cannot be changed: {error}") from error
        in_use = len(found) - len(chosen) - len(pinned)
        return Evicted(len(chosen), freed, max(0, in_use), len(pinned))

    async def _remove(self, chosen: Sequence[Victim], spare: int) -> int:
        """Remove entries that nobody uses; of the last one, ``spare`` bytes may stay. What was freed."""
        disk_cache = self._disk_cache
        disk_cache.evicting = {victim.digest for victim in chosen}
        try:
            removal = functools.partial(
                _remove, files=disk_cache.files, victims=chosen, spare=spare
            )
            freed, disk_cache.recorded_total = await self._maintenance.with_catalog(removal)
        finally:
            disk_cache.evicting = set()
        self.evicted_bytes += freed
        return freed

    def _cut(self, entry: Entry, ranges: list[tuple[int, int]]) -> _Hole:
        byte_ranges = [
            (entry.map.byte_start(first), entry.map.byte_start(stop)) for first, stop in ranges
        ]
        descriptor = os.dup(entry.descriptor)
        try:
            freed = sum(self._disk_cache.empty(entry, first, stop) for first, stop in ranges)
            update = None
            if entry.row_digest is not None:
                # Of an entry that is private by now as well: the row still counts its file.
                update = self._disk_cache.update_of(entry, entry.row_digest, replace=True)
        except BaseException:
            os.close(descriptor)
            raise
        entry.punching = trio.Event()
        return _Hole(entry, descriptor, update, byte_ranges, freed)

    def _close_hole(self, hole: _Hole) -> None:
        self._disk_cache.freeing_bytes -= hole.freed_bytes
        self.evicted_bytes += hole.freed_bytes
        event, hole.entry.punching = hole.entry.punching, None
        if event is not None:
            event.set()
        with contextlib.suppress(OSError):
            self._disk_cache.files.lock_shared(hole.descriptor)
        os.close(hole.descriptor)
        self._disk_cache.let_go(hole.entry)


def _punch(
    catalog: CacheCatalog, *, files: CacheFolder, holes: Sequence[_Hole]
) -> tuple[list[tuple[int, int] | None], int]:
    results: list[tuple[int, int] | None] = []
    for hole in holes:
        results.append(None if hole.update is None else catalog.shrink(hole.update))
        for start, stop in hole.byte_ranges:
            files.punch(hole.descriptor, start, stop - start)
    return results, catalog.total()


def _remove(
    catalog: CacheCatalog, *, files: CacheFolder, victims: Sequence[Victim], spare: int
) -> tuple[int, int]:
    """Remove entries that no other mount uses; of the last one, ``spare`` bytes may stay."""
    freed = 0
    with contextlib.ExitStack() as stack:
        locked = [victim for victim in victims if stack.enter_context(files.alone(victim.file))]
        if spare >= SHAVE_BYTES_MIN and locked and locked[-1] is victims[-1]:
            shaved = _shave(catalog, files, locked[-1], locked[-1].allocated - spare)
            if shaved:
                freed += shaved
                del locked[-1]
        catalog.forget_many([(victim.digest, victim.file) for victim in locked])
        for victim in locked:
            files.discard(victim.file)
            freed += victim.allocated
    return freed, catalog.total()


def _shave(catalog: CacheCatalog, files: CacheFolder, victim: Victim, wanted: int) -> int:
    """Take ``wanted`` bytes from an entry's end, where readers come last; what was freed."""
    row = catalog.look_up(victim.digest)
    if row is None or row.file != victim.file or row.doubtful:
        return 0
    blocks = BlockMap(row.size, row.shift)
    if row.snapshot is None:
        blocks.fill_all()
    elif not blocks.restore(row.snapshot):
        return 0
    freed, cut = 0, len(blocks.states)
    while freed < wanted and (last := blocks.states.rfind(PRESENT, 0, cut)) >= 0:
        freed += blocks.disk_bytes(last, last + 1)
        blocks.empty(last, last + 1)
        cut = last
    if not blocks.present_count:
        return 0
    update = Update(
        digest=victim.digest,
        file=row.file,
        size=row.size,
        shift=row.shift,
        snapshot=blocks.snapshot(),
        crc=None,
        allocated=blocks.disk_bytes_held() + (sums_room(row.size, row.shift) if row.sums else 0),
        used_ns=victim.used_ns,
        revision=row.revision,
        replace=True,
        sums=row.sums,
    )
    catalog.shrink(update)
    descriptor = os.open(files.path_of(row.file), os.O_RDWR | os.O_CLOEXEC)
    try:
        files.punch(descriptor, cut << row.shift, row.size - (cut << row.shift))
    finally:
        os.close(descriptor)
    return max(0, victim.allocated - update.allocated)


def _unneeded(entry: Entry, excess: int) -> list[tuple[int, int]]:
    """Runs of present blocks, some ``excess`` bytes in all, that no reader needs soon."""
    kept = [
        entry.map.span(max(start, 0), min(max(stop, 1), entry.size))
        for holder in entry.holders
        for start, stop in holder.kept_ranges()
        if start < entry.size
    ]
    kept += [(waiter.first, waiter.stop) for waiter in entry.waiters]
    # A request that is under way may bring blocks once more that are there already.
    kept += [(fetch.first, fetch.stop) for fetch in entry.fetches]
    kept.sort()
    count = len(entry.map.states)
    found: list[tuple[int, int]] = []
    position = 0
    for keep_first, keep_stop in [*kept, (count, count)]:
        while position < keep_first and excess > 0:
            run = entry.map.next_run(PRESENT, position, keep_first)
            if run is None:
                break
            first = run[0]
            stop = min(run[1], first + (excess >> entry.map.shift) + 1)
            found.append((first, stop))
            excess -= entry.map.disk_bytes(first, stop)
            position = stop
        position = max(position, keep_stop)
    return found

"""What keeps the shelf in order, off the loop: saving, evicting, settling, sweeping.

One job at a time runs in a thread; it gets plain values and gives plain values back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import trio

from s3mount.cache.blocks import PRESENT
from s3mount.cache.catalog import Catalog, Update, Victim, boot_id, remove_catalog
from s3mount.cache.entry import Entry
from s3mount.cache.shelf import RETRY_DISK_S, Save, Shelf
from s3mount.errors import LocalDiskError

logger = logging.getLogger(__name__)
T = TypeVar("T")

SAVE_INTERVAL_S = 0.25
"""Changes are gathered for so long before they are written; a kill costs that much refetching."""
SAVE_COUNT_MAX = 512
EVICT_COUNT_MAX = 256
"""Entries per job: some ten milliseconds of unlinking."""
STUCK_S = 0.1
"""When a round of eviction freed nothing, the next is not tried before."""
SETTLE_INTERVAL_S = 60.0
SETTLE_COUNT_MAX = 16


class Worker(Protocol):
    """Runs a function where it may block."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """The function's result. Not cancelled half-way."""
        ...


def thread_worker() -> Worker:
    """A worker that uses one thread at a time, apart from trio's common limit."""
    limiter = trio.CapacityLimiter(1)

    async def work(function: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(function, limiter=limiter)

    return work


class _Chore(NamedTuple):
    """One round of saving."""

    relabels: list[tuple[bytes, bytes]]
    unwanted: list[tuple[bytes | None, str]]
    touched: list[tuple[bytes, int]]
    saves: list[Save]


class _Done(NamedTuple):
    """What came of a round: ``results`` holds (revision, allocated, crc) per save, revision 0: failed."""

    kept: list[tuple[bytes | None, str]]
    results: list[tuple[int, int, int | None]]
    failure: OSError | None
    total: int


class _Hole(NamedTuple):
    """Blocks to be taken away from an open entry."""

    entry: Entry
    descriptor: int
    update: Update | None
    ranges: list[tuple[int, int]]


class Upkeep:
    """The background work on one shelf."""

    def __init__(self, shelf: Shelf, worker: Worker) -> None:
        self.shelf = shelf
        self.evicted_bytes = 0
        self._work = worker
        self._writer: Catalog | None = None
        self._boot_id = boot_id()
        self._room_needed = 0
        self._round_over = trio.Event()
        self._rebuilt = False
        self._stuck_until_s = 0.0

    async def open(self) -> None:
        """Open or make the catalog. A disk that cannot be used is the shelf's to note, no error."""
        try:
            self._writer, self.shelf.catalog, total = await self._work(self._open_catalogs)
        except (OSError, sqlite3.Error, LocalDiskError) as error:
            self.shelf.disk_failed(error)
            return
        self.shelf.recorded_total = total
        self.shelf.has_room(0)

    async def close(self) -> None:
        """Write what is unsaved and close everything. Afterwards the shelf only serves memory."""
        shelf = self.shelf
        while self._writer is not None and (shelf.dirty or shelf.unwanted or shelf.touched):
            before = len(shelf.dirty), len(shelf.unwanted)
            await self.save()
            if (len(shelf.dirty), len(shelf.unwanted)) == before:
                break
        for catalog in (self._writer, shelf.catalog):
            if catalog is not None:
                catalog.close()
        self._writer = shelf.catalog = None

    async def run(self) -> None:
        """Save, evict, settle and sweep until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_saving)
            nursery.start_soon(self._keep_room)
            nursery.start_soon(self._keep_settling)
            if self._writer is not None:
                nursery.start_soon(self._sweep)

    async def make_room(self, needed: int) -> bool:
        """Wait until ``needed`` bytes more fit, for at most some rounds of eviction; do they?"""
        for _ in range(3):
            if self.shelf.has_room(needed):
                return True
            if trio.current_time() < self._stuck_until_s or needed > self.shelf.size_bytes_max:
                break
            self._room_needed = max(self._room_needed, needed)
            self.shelf.room_wanted.set()
            await self._round_over.wait()
        await trio.lowlevel.checkpoint()
        return self.shelf.has_room(needed)

    # -- saving

    async def _keep_saving(self) -> None:
        while True:
            if self._writer is None:
                await trio.sleep(RETRY_DISK_S)
                await self.open()
                continue
            await self.shelf.upkeep_wanted.wait()
            await trio.sleep(SAVE_INTERVAL_S)
            self.shelf.upkeep_wanted = trio.Event()
            await self.save()
            if self.shelf.dirty or self.shelf.relabels:
                self.shelf.upkeep_wanted.set()

    async def save(self) -> None:
        """Write one round of changes."""
        shelf = self.shelf
        chore = _Chore(
            shelf.relabels,
            shelf.unwanted,
            list(shelf.touched.items()),
            shelf.take_dirty(SAVE_COUNT_MAX),
        )
        shelf.relabels, shelf.unwanted = [], []
        shelf.touched.clear()
        if not any(chore):
            await trio.lowlevel.checkpoint()
            return
        with trio.CancelScope(shield=True):
            try:
                done = await self._work(lambda: self._do_chore(chore))
            except (OSError, sqlite3.Error) as error:
                shelf.disk_failed(error)
                for save in chore.saves:
                    shelf.save_failed(save)
                return
        shelf.unwanted += done.kept
        shelf.recorded_total = done.total
        for save, (revision, allocated, crc) in zip(chore.saves, done.results, strict=True):
            if revision:
                shelf.saved(save, revision, crc, allocated)
            else:
                shelf.save_failed(save)
        if done.failure is not None:
            shelf.disk_failed(done.failure)
        elif done.results:
            shelf.disk_worked()

    def _do_chore(self, chore: _Chore) -> _Done:
        catalog = self._catalog
        files = self.shelf.files
        for old, new in chore.relabels:
            catalog.relabel(old, new)
        kept = []
        for digest, file in chore.unwanted:
            forget = None if digest is None else _forgetter(catalog, digest, file)
            if not files.remove(file, forget):
                kept.append((digest, file))
        failure: OSError | None = None
        updates: list[Update] = []
        for save in chore.saves:
            update = save.update
            if save.body is not None:
                try:
                    update = update._replace(crc=files.write_whole(update.file, save.body))
                except OSError as error:
                    failure = error
                    files.discard(update.file)
                    continue
            updates.append(update)
        written = catalog.update(updates)
        if chore.touched:
            catalog.touch(chore.touched)
        results = {
            update.digest: (*numbers, update.crc)
            for update, numbers in zip(updates, written, strict=True)
        }
        done = [results.get(save.update.digest, (0, 0, None)) for save in chore.saves]
        return _Done(kept, done, failure, catalog.total())

    # -- evicting

    async def _keep_room(self) -> None:
        while True:
            await self.shelf.room_wanted.wait()
            await self.evict()

    async def evict(self) -> None:
        """Bring the total below the cap by the headroom (or what somebody waits for), if possible.

        First entries that nobody uses, the longest unused first; then blocks of open ones.
        """
        shelf = self.shelf
        urgent, self._room_needed = self._room_needed, 0
        shelf.room_wanted = trio.Event()
        goal = shelf.size_bytes_max - max(shelf.headroom_bytes, urgent)
        before = shelf.total_bytes
        try:
            if self._writer is not None:
                await self._evict_unused(goal)
                if shelf.total_bytes > shelf.size_bytes_max - max(
                    shelf.headroom_bytes // 2, urgent
                ):
                    await self._trim_open(goal)
            if shelf.total_bytes >= before:
                self._stuck_until_s = trio.current_time() + STUCK_S
        finally:
            self._round_over.set()
            self._round_over = trio.Event()
        await trio.lowlevel.checkpoint()

    async def _evict_unused(self, goal: int) -> None:
        shelf = self.shelf
        after = (-1, b"")
        while shelf.total_bytes > goal:
            await self.save()
            excess = shelf.total_bytes - goal
            position = after
            try:
                found = await self._work(lambda: self._catalog.victims(position, EVICT_COUNT_MAX))  # noqa: B023
            except sqlite3.Error as error:
                shelf.disk_failed(error)
                return
            if not found:
                return
            chosen = []
            for victim in found:
                after = (victim.used_ns, victim.digest)
                if victim.digest not in shelf.entries:
                    chosen.append(victim)
                    excess -= victim.allocated
                    if excess <= 0:
                        break
            shelf.evicting = {victim.digest for victim in chosen}
            try:
                with trio.CancelScope(shield=True):
                    shelf.recorded_total = await self._work(lambda: self._remove(chosen))  # noqa: B023
            except (OSError, sqlite3.Error) as error:
                shelf.disk_failed(error)
                return
            finally:
                shelf.evicting = set()

    def _remove(self, victims: Sequence[Victim]) -> int:
        files, catalog = self.shelf.files, self._catalog
        with contextlib.ExitStack() as stack:
            locked = [victim for victim in victims if stack.enter_context(files.alone(victim.file))]
            catalog.forget_many([(victim.digest, victim.file) for victim in locked])
            for victim in locked:
                files.discard(victim.file)
                self.evicted_bytes += victim.allocated
        return catalog.total()

    async def _trim_open(self, goal: int) -> None:
        """Take blocks from entries in use: those that no reader is about to ask for."""
        shelf = self.shelf
        holes: list[_Hole] = []
        try:
            for entry in sorted(shelf.in_use(), key=lambda entry: -entry.held_bytes):
                excess = shelf.total_bytes - goal
                if excess <= 0:
                    break
                ranges = _unneeded(entry, excess)
                if ranges and shelf.files.lock_alone(entry.descriptor):
                    holes.append(self._cut(entry, ranges))
            if holes:
                with trio.CancelScope(shield=True):
                    results, total = await self._work(lambda: self._punch(holes))
                shelf.recorded_total = total
                for hole, result in zip(holes, results, strict=True):
                    if result is not None:
                        shelf.shrunk(hole.entry, *result)
        except (OSError, sqlite3.Error) as error:
            shelf.disk_failed(error)
            for hole in holes:
                shelf.abandon_file(hole.entry)
        finally:
            for hole in holes:
                if hole.entry.descriptor == hole.descriptor:
                    shelf.files.lock_shared(hole.descriptor)
                event, hole.entry.punching = hole.entry.punching, None
                if event is not None:
                    event.set()
                shelf.mark_dirty(hole.entry)
                shelf.let_go(hole.entry)
        await trio.lowlevel.checkpoint()

    def _cut(self, entry: Entry, ranges: list[tuple[int, int]]) -> _Hole:
        for first, stop in ranges:
            self.evicted_bytes += self.shelf.empty(entry, first, stop)
        entry.punching = trio.Event()
        update = None
        if entry.row_digest is not None:
            update = self.shelf.update_of(entry, replace=True)._replace(digest=entry.row_digest)
        byte_ranges = [
            (entry.map.byte_start(first), entry.map.byte_start(stop)) for first, stop in ranges
        ]
        return _Hole(entry, entry.descriptor, update, byte_ranges)

    def _punch(self, holes: list[_Hole]) -> tuple[list[tuple[int, int] | None], int]:
        results = []
        for hole in holes:
            result = None if hole.update is None else self._catalog.shrink(hole.update)
            results.append(result)
            for start, stop in hole.ranges:
                self.shelf.files.punch(hole.descriptor, start, stop - start)
        return results, self._catalog.total()

    # -- settling and sweeping

    async def _keep_settling(self) -> None:
        while True:
            await trio.sleep(SETTLE_INTERVAL_S)
            if self._writer is not None:
                with contextlib.suppress(OSError, sqlite3.Error):
                    before_ns = self.shelf.clock.now_ns() - int(SETTLE_INTERVAL_S * 1e9)
                    await self._work(lambda: self._settle(before_ns))  # noqa: B023

    def _settle(self, used_before_ns: int) -> None:
        for digest, file, revision in self._catalog.unsettled(used_before_ns, SETTLE_COUNT_MAX):
            try:
                descriptor = os.open(self.shelf.files.path_of(file), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._catalog.forget(digest, file)
                continue
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            self._catalog.settle(digest, revision)

    async def _sweep(self) -> None:
        """Remove files that the catalog does not know: what a kill left behind."""
        for shard in range(256):
            try:
                await self._work(lambda: self._sweep_shard(shard))  # noqa: B023
            except (OSError, sqlite3.Error) as error:
                logger.debug("sweeping the cache ended early: %s", error)
                return

    def _sweep_shard(self, shard: int) -> None:
        known = self._catalog.files(f"{shard:02x}")
        self.shelf.files.sweep(shard, known, all_ages=self._rebuilt)

    # -- the catalog

    @property
    def _catalog(self) -> Catalog:
        if self._writer is None:
            raise sqlite3.OperationalError("the catalog is closed")
        return self._writer

    def _open_catalogs(self) -> tuple[Catalog, Catalog, int]:
        files = self.shelf.files
        files.prepare()
        try:
            writer = Catalog(files.root, self._boot_id)
            total = writer.total()
        except (sqlite3.Error, LocalDiskError) as error:
            if not any(word in str(error) for word in ("malformed", "not a database", "no such")):
                raise
            logger.warning("the cache catalog in %s is damaged; starting with none", files.root)
            remove_catalog(files.root)
            self._rebuilt = True
            writer = Catalog(files.root, self._boot_id)
            total = writer.total()
        return writer, Catalog(files.root, self._boot_id, reader=True), total


def _forgetter(catalog: Catalog, digest: bytes, file: str) -> Callable[[], None]:
    return lambda: catalog.forget(digest, file)


def _unneeded(entry: Entry, excess: int) -> list[tuple[int, int]]:
    """Runs of present blocks, of ``excess`` bytes at most or a little more, that no reader needs soon."""
    kept = [
        entry.map.span(max(start, 0), min(max(stop, 1), entry.size))
        for holder in entry.holders
        for start, stop in holder.kept_ranges()
        if start < entry.size
    ]
    kept += [(waiter.first, waiter.stop) for waiter in entry.waiters]
    kept.sort()
    count = len(entry.map.states)
    found: list[tuple[int, int]] = []
    position = 0
    for keep_first, keep_stop in [*kept, (count, count)]:
        while position < keep_first and excess > 0:
            run = entry.map.next_run(PRESENT, position, keep_first)
            if run is None:
                break
            first, stop = run
            stop = min(stop, first + (excess >> entry.map.shift) + 1)
            found.append((first, stop))
            excess -= entry.map.disk_bytes(first, stop)
            position = stop
        position = max(position, keep_stop)
    return found

"""Maintenance of the cache's catalog, off the loop: saving, settling, sweeping.

One job at a time runs in a thread; it gets plain values and gives plain values back.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
import zlib
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import trio

from s3mount.background import Background, contained
from s3mount.boot_id import boot_id
from s3mount.cache.cache_catalog import CacheCatalog, Unsettled, Update, is_row_name, remove_catalog
from s3mount.cache.disk_cache import DiskCache, Save, Unwanted
from s3mount.cache.folder import ORPHAN_AGE_S
from s3mount.cache.quota import RETRY_DISK_S
from s3mount.errors import LocalDiskError

logger = logging.getLogger(__name__)
T = TypeVar("T")

SAVE_INTERVAL_S = 0.25
"""Changes are gathered for so long before they are written; a kill costs that much refetching."""
SAVE_COUNT_MAX = 512
DISK_ROOM_INTERVAL_S = 5.0
"""How often the disk's free space is looked at while nothing is saved: others fill it as well."""
SETTLE_INTERVAL_S = 60.0
SETTLE_COUNT_MAX = 16


SWEEP_DELAY_S = ORPHAN_AGE_S + 1
"""Then all that a predecessor left is old enough."""


class Worker(Protocol):
    """Runs a function where it may block."""

    async def __call__(self, function: Callable[[], T], /) -> T:
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

    unwanted: list[Unwanted]
    touched: list[tuple[bytes, int]]
    saves: list[Save]


class _Done(NamedTuple):
    """What came of a round: ``results`` holds (revision, allocated, crc) per save, revision 0: failed."""

    kept: list[Unwanted]
    results: list[tuple[int, int, int | None]]
    failure: OSError | None
    total: int


class CacheMaintenance:
    """The background work on one disk cache."""

    def __init__(self, disk_cache: DiskCache, worker: Worker, slow_worker: Worker) -> None:
        self.disk_cache = disk_cache
        self._work = worker
        self._slow_work = slow_worker
        self._writer: CacheCatalog | None = None
        self._boot_id = boot_id()
        self._rebuilt = False

    async def open(self) -> None:
        """Open or make the catalog. A disk that cannot be used is noted by the disk cache, and no error."""
        try:
            self._writer, self.disk_cache.catalog, total = await self._work(self._open_catalogs)
        except Exception as error:  # noqa: BLE001 - reads go past a cache that cannot be opened
            self.disk_cache.disk_failed(error)
            return
        self.disk_cache.recorded_total = total
        self.disk_cache.has_room(0)

    @property
    def is_open(self) -> bool:
        """There is a catalog."""
        return self._writer is not None

    async def with_catalog(self, job: Callable[[CacheCatalog], T]) -> T:
        """Run a job on the catalog in the thread, to its end. Raises what the job raises."""
        catalog = self._writer
        if catalog is None:
            raise sqlite3.OperationalError("the catalog is closed")
        with trio.CancelScope(shield=True):
            result = await self._work(lambda: job(catalog))
        return result  # noqa: RET504 - a scope may swallow Cancelled, as far as types can tell

    async def close(self) -> None:
        """Write what is unsaved and close everything. Afterwards the disk cache serves from memory alone."""
        disk_cache = self.disk_cache
        with contained("saving the cache"):
            while self._writer is not None and (
                disk_cache.dirty or disk_cache.unwanted or disk_cache.touched
            ):
                before = len(disk_cache.dirty), len(disk_cache.unwanted)
                await self.save()
                if (len(disk_cache.dirty), len(disk_cache.unwanted)) == before:
                    break
        with contained("closing the cache"):
            disk_cache.close()
        for catalog in (self._writer, disk_cache.catalog):
            if catalog is not None:
                with contained("closing the cache"):
                    catalog.close()
        self._writer = disk_cache.catalog = None

    def start(self, background: Background) -> None:
        """Save, settle and sweep in the background from now on."""
        background.keep(self._keep_saving)
        background.keep(self._keep_settling)
        background.keep(self._keep_disk_room)
        if self._writer is not None:
            background.start(self._sweep)

    # -- saving

    async def _keep_saving(self) -> None:
        while True:
            if self._writer is None:
                await trio.sleep(RETRY_DISK_S)
                await self.open()
                continue
            await self.disk_cache.maintenance_wanted.wait()
            await trio.sleep(SAVE_INTERVAL_S)
            self.disk_cache.maintenance_wanted = trio.Event()
            await self.save()
            if self.disk_cache.dirty:
                self.disk_cache.maintenance_wanted.set()

    async def save(self) -> None:
        """Write one round of changes."""
        disk_cache = self.disk_cache
        if disk_cache.dirty:
            await self.look_at_disk()
        # From here on to its end it is not cancelled, or what was taken would be forgotten.
        chore = _Chore(
            disk_cache.unwanted,
            list(disk_cache.touched.items()),
            disk_cache.take_dirty(SAVE_COUNT_MAX),
        )
        disk_cache.unwanted = []
        disk_cache.touched.clear()
        if not any(chore):
            await trio.lowlevel.checkpoint()
            return
        try:
            done = await self.with_catalog(functools.partial(self._do_chore, chore))
        except Exception as error:  # noqa: BLE001 - what is not saved is fetched again
            disk_cache.disk_failed(error)
            disk_cache.unwanted += chore.unwanted
            for save in chore.saves:
                self._conclude(save, 0, 0, None)
            return
        disk_cache.freeing_bytes -= sum(one.unrecorded_bytes for one in chore.unwanted)
        disk_cache.freeing_bytes += sum(one.unrecorded_bytes for one in done.kept)
        disk_cache.unwanted += done.kept
        disk_cache.recorded_total = done.total
        for save, (revision, allocated, crc) in zip(chore.saves, done.results, strict=True):
            self._conclude(save, revision, allocated, crc)
        if done.failure is not None:
            disk_cache.disk_failed(done.failure)
        elif done.results:
            disk_cache.disk_worked()

    def _conclude(self, save: Save, revision: int, allocated: int, crc: int | None) -> None:
        """Note what came of one save; ``revision`` 0: it failed."""
        try:
            if revision:
                self.disk_cache.saved(save, revision, crc, allocated)
            else:
                self.disk_cache.save_failed(save)
        except Exception as error:  # noqa: BLE001 - one entry's fault is its own
            self.disk_cache.give_up(save.entry, error)

    def _do_chore(self, chore: _Chore, catalog: CacheCatalog) -> _Done:
        files = self.disk_cache.files
        failure: OSError | None = None
        kept = []
        for unwanted in chore.unwanted:
            if is_row_name(unwanted.file):
                if unwanted.digest is None:
                    catalog.forget_body(unwanted.file)
                else:
                    catalog.forget(unwanted.digest, unwanted.file)
                continue
            try:
                if not files.remove(unwanted.file, _forgetter(catalog, unwanted)):
                    kept.append(unwanted)
            except OSError as error:
                failure = error
                kept.append(unwanted)
        updates: list[Update] = []
        bodies: list[tuple[str, bytes]] = []
        for save in chore.saves:
            update = save.update
            try:
                if save.body is not None and is_row_name(update.file):
                    bodies.append((update.file, save.body))
                    update = update._replace(crc=zlib.crc32(save.body))
                elif save.body is not None:
                    update = update._replace(crc=files.write_whole(update.file, save.body))
                elif not save.entry.small:
                    measured = files.disk_bytes(update.file)
                    held = max(update.allocated - save.slack_bytes, measured)
                    update = update._replace(allocated=held)
                elif update.crc is None:
                    body = files.read_whole(update.file, update.size, None)
                    update = update._replace(crc=zlib.crc32(body))
            except OSError as error:
                failure = error
                continue
            updates.append(update)
        written = catalog.update(updates, bodies)
        if chore.touched:
            catalog.touch(chore.touched)
        results = {
            update.digest: (*numbers, update.crc)
            for update, numbers in zip(updates, written, strict=True)
        }
        done = [results.get(save.update.digest, (0, 0, None)) for save in chore.saves]
        return _Done(kept, done, failure, catalog.total())

    # -- the disk's free space

    async def _keep_disk_room(self) -> None:
        while True:
            await self.look_at_disk()
            await trio.sleep(DISK_ROOM_INTERVAL_S)

    async def look_at_disk(self) -> None:
        """Tell the disk cache how much of the disk is free."""
        try:
            room = await self._work(self.disk_cache.files.disk_room)
        except OSError as error:
            logger.debug("the free space below the cache is not known: %s", error)
            return
        self.disk_cache.note_disk_room(*room)

    # -- settling and sweeping

    async def _keep_settling(self) -> None:
        while True:
            await trio.sleep(SETTLE_INTERVAL_S)
            if self.is_open:
                try:
                    await self.settle()
                except (OSError, sqlite3.Error) as error:
                    logger.debug("settling the cache ended early: %s", error)

    async def settle(self) -> None:
        """Force the data of entries that rest to the disk, and note that in the catalog."""
        before_ns = self.disk_cache.clock.now_ns() - int(SETTLE_INTERVAL_S * 1e9)
        found = await self.with_catalog(
            lambda catalog: catalog.unsettled(before_ns, SETTLE_COUNT_MAX)
        )
        for entry in found:
            # Apart from the other jobs: it may take seconds, and readers may wait for room.
            is_there, sums = await self._slow_work(functools.partial(self._force, entry))
            await self.with_catalog(
                functools.partial(_settle, entry=entry, sums=sums, is_gone=not is_there)
            )

    def _force(self, entry: Unsettled) -> tuple[bool, bool]:
        """To the disk, with checksums where it has none; is it there, and did it get some?"""
        files = self.disk_cache.files
        sums = bool(entry.lacks_sums) and files.add_sums(entry.file, entry.size, entry.shift)
        return files.force(entry.file), sums

    async def _sweep(self) -> None:
        """Remove files that the catalog does not know: what a kill left behind.

        Until then they take room beyond the cap: at most what was fetched within SAVE_INTERVAL_S.
        """
        await trio.sleep(SWEEP_DELAY_S)
        for shard in range(256):
            try:
                await self.with_catalog(functools.partial(self._sweep_shard, shard))
            except (OSError, sqlite3.Error) as error:
                logger.debug("sweeping the cache ended early: %s", error)
                return

    def _sweep_shard(self, shard: int, catalog: CacheCatalog) -> None:
        prefix = f"{shard:02x}"
        catalog.sweep_bodies(prefix)
        known = catalog.files(prefix)
        self.disk_cache.files.sweep(shard, known, all_ages=self._rebuilt)

    # -- the catalog

    @property
    def _catalog(self) -> CacheCatalog:
        if self._writer is None:
            raise sqlite3.OperationalError("the catalog is closed")
        return self._writer

    def _open_catalogs(self) -> tuple[CacheCatalog, CacheCatalog, int]:
        files = self.disk_cache.files
        files.prepare()
        try:
            writer = CacheCatalog(files.root, self._boot_id)
            total = writer.total()
        except (sqlite3.Error, LocalDiskError) as error:
            if not any(word in str(error) for word in ("malformed", "not a database", "no such")):
                raise
            logger.warning("the cache catalog in %s is damaged; starting with none", files.root)
            remove_catalog(files.root)
            self._rebuilt = True
            writer = CacheCatalog(files.root, self._boot_id)
            total = writer.total()
        return writer, CacheCatalog(files.root, self._boot_id, reader=True), total


def _settle(catalog: CacheCatalog, *, entry: Unsettled, sums: bool, is_gone: bool) -> None:
    if is_gone:
        catalog.forget(entry.digest, entry.file)
    else:
        catalog.settle(entry.digest, entry.revision, sums=sums)


def _forgetter(catalog: CacheCatalog, unwanted: Unwanted) -> Callable[[], None] | None:
    digest, file = unwanted.digest, unwanted.file
    return None if digest is None else lambda: catalog.forget(digest, file)

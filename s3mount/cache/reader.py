"""Reading objects through the disk cache: what ``vfs`` sees of it.

**Sharing.** Several processes may use one cache folder at the same time, also for the same
bucket: the catalog is one SQLite database in WAL mode, whoever uses a file holds a lock on it,
and nobody takes bytes from a file that somebody else has locked. Two mounts that fetch the
same content at the same moment do so separately; the later one's copy ends with its last
reader. The cap counts what all mounts have stored in the namespace; each mount knows of the
others' additions a moment later (when both have saved), so together they may exceed it by what
they fetch in half a second.

**Versions.** Every request names the ETag (and the version id where there is one), so a file of
the cache only ever holds bytes of one version. When the object was replaced meanwhile, what is
local stays readable, and the rest fails with PreconditionFailedError or NoSuchKeyError.

**A failing disk** (full, broken, removed) costs one warning and the caching, not the reads:
they go through memory, and the disk is tried again after half a minute.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from s3mount.background import Background, contained
from s3mount.cache.blocks import MISSING, PRESENT, SUM_BYTES, page_rounded, sums_offset
from s3mount.cache.cache_catalog import CacheCatalog
from s3mount.cache.disk_cache import DiskCache
from s3mount.cache.entry import Entry, Waiter, digest_of
from s3mount.cache.eviction import Evictor
from s3mount.cache.fetcher import BlockFetcher
from s3mount.cache.maintenance import CacheMaintenance, Worker, thread_worker
from s3mount.cache.prefetched import PrefetchedContent, prefetch_bytes
from s3mount.cache.readahead import (
    RANGE_BYTES_MAX,
    WINDOW_BYTES_MAX,
    ReadaheadWindow,
    ReadStream,
    plan,
)
from s3mount.clock import SystemClock, WallClock
from s3mount.errors import LocalDiskError, S3MountError
from s3mount.refs import ContentRef, Evicted
from s3mount.s3.checksums import block_sums
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

logger = logging.getLogger(__name__)
T = TypeVar("T")

ACTIVE_S = 2.0
"""A stream that asked for nothing this long does not count when the prefetch budget is shared."""
LOCAL_TRIES = 3
"""Blocks that came but are not there are fetched anew; after this often, they go through memory."""
MATERIALIZE_RANGES_MAX = 8
"""Ranges in flight for one content that is wanted whole."""


class CacheReader:
    """The contents of one bucket (``namespace``: a digest of endpoint and bucket), cached in ``folder``.

    ``size_bytes_max`` is the cap of what the namespace takes on disk, also while files are being
    read; it falls when less than ``free_bytes_min`` (at most a tenth) of the disk would be left free.
    ``prefetch_bytes_max`` bounds what is asked for ahead of the readers, all together.
    ``worker`` runs what may block; by default a thread.
    """

    def __init__(
        self,
        store: Readable,
        folder: Path,
        *,
        namespace: str,
        size_bytes_max: int,
        prefetch_bytes_max: int,
        free_bytes_min: int = 0,
        clock: WallClock | None = None,
        worker: Worker | None = None,
    ) -> None:
        self._disk_cache = DiskCache(
            folder / namespace,
            namespace,
            size_bytes_max,
            clock or SystemClock(),
            free_bytes_min=free_bytes_min,
        )
        self._maintenance = CacheMaintenance(
            self._disk_cache, worker or thread_worker(), worker or thread_worker()
        )
        self._evictor = Evictor(self._disk_cache, self._maintenance)
        # Half of a small cache at most: what is fetched ahead must not push out what is being read.
        self._prefetch_bytes_max = min(prefetch_bytes_max, size_bytes_max // 2)
        self._fetcher = BlockFetcher(
            store, self._disk_cache, self._evictor, prefetch_bytes_max=self._prefetch_bytes_max
        )
        self._streams: dict[ReadStream, float] = {}
        self.hits = 0
        self.misses = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch, save and evict until cancelled; handles can be read once this has started.

        At the end, what is on the disk is written to the catalog, and reads that still wait fail.
        """
        await self._maintenance.open()
        try:
            async with trio.open_nursery() as nursery:
                background = Background(nursery)
                self._fetcher.start(background)
                try:
                    self._maintenance.start(background)
                    background.keep(self._evictor.run)
                    task_status.started()
                    await trio.sleep_forever()
                finally:
                    # Before the nursery closes: whoever reads from now on is told that the cache is closed.
                    self._fetcher.stop()
        finally:
            with trio.CancelScope(shield=True):
                await self._maintenance.close()

    def open(self, ref: ContentRef) -> ReadHandle:
        """A handle that reads this version. Asks S3 for nothing; close the handle when done."""
        return ReadHandle(self, self._disk_cache.find(ref) if ref.size else None)

    def prefetch_bytes(self, ref: ContentRef) -> int:
        """How much of this content ``prefetch`` would bring."""
        return prefetch_bytes(ref.size, ref.size <= INLINE_BODY_BYTES_MAX)

    def prefetch(
        self, ref: ContentRef, on_arrival: Callable[[PrefetchedContent], None]
    ) -> PrefetchedContent | None:
        """Fetch a content that will probably be opened next: a small one whole, of others the beginning.

        ``None`` when there is no room for it now: too many requests are under way, or bytes. What is
        local already is only kept at hand. ``on_arrival`` is called at the end of a request, well or not.
        """
        try:
            return self._prefetch(ref, on_arrival)
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody waits for it
            self._disk_cache.disk_failed(error)
            return None

    def _prefetch(
        self, ref: ContentRef, on_arrival: Callable[[PrefetchedContent], None]
    ) -> PrefetchedContent | None:
        entry = self._disk_cache.find(ref)
        prefetched = PrefetchedContent(
            entry, self._fetcher, self._disk_cache, self.prefetch_bytes(ref)
        )
        if not entry.small:
            stop = prefetched.held_bytes
            if not entry.map.covered(*entry.map.span(0, stop)):
                prefetched.is_asked = True
                if not self._fetcher.ahead(entry, 0, stop, prefetched):
                    prefetched.close()
                    return None
        elif entry.body is None and self._disk_cache.load_body(entry) is None:
            fetch = entry.small_fetch or self._fetcher.small_ahead(entry)
            if fetch is None:
                prefetched.close()
                return None
            prefetched.follow(fetch, on_arrival)
        return prefetched

    async def materialize(self, ref: ContentRef) -> None:
        """Bring the whole content into the cache and keep it there until ``unpin(ref)``.

        Raises StoreError, and LocalDiskError when it cannot be stored or does not fit; then it
        is not pinned. Cancelling it unpins as well; what has arrived stays. May be nested.
        """
        if ref.size == 0:
            await trio.lowlevel.checkpoint()
            return
        entry = self._disk_cache.find(ref)
        entry.pins += 1
        try:
            if entry.small:
                await self._whole_body(entry)
            else:
                await self._all_blocks(entry)
        except BaseException as error:
            entry.pins -= 1
            self._disk_cache.let_go(entry)
            if isinstance(error, (S3MountError, trio.Cancelled)) or not isinstance(
                error, Exception
            ):
                raise
            self._disk_cache.give_up(entry, error)
            raise LocalDiskError(f"the cache cannot take {ref.key!r}") from error

    async def bring(self, ref: ContentRef) -> None:
        """Have the whole content on the disk, where eviction may take it again. Raises as ``materialize``."""
        if not ref.etag:
            raise LocalDiskError(f"{ref.key!r} has no ETag by which it could be kept")
        await self.materialize(ref)
        try:
            entry = self._disk_cache.active(ref)
            if entry is not None and entry.small:
                await self._have_saved(entry)
        finally:
            self.unpin(ref)

    async def _have_saved(self, entry: Entry) -> None:
        """Have a small content, which is in memory, on its way to the disk."""
        for _ in range(LOCAL_TRIES):
            if entry.file or entry.unsaved:
                return
            self._disk_cache.require_disk()
            await self._maintenance.save()
            await self._evictor.make_room(page_rounded(entry.size))
            if entry.body is not None:
                self._disk_cache.put_body(entry, entry.body)
        raise LocalDiskError(f"{entry.ref.key!r} does not fit into the cache")

    def on_evicted(self, tell: Callable[[int], None]) -> None:
        """Have ``tell`` called with the bytes of each round of eviction."""
        self._evictor.on_evicted = tell

    async def evict(self, refs: Iterable[ContentRef]) -> Evicted:
        """Remove these contents from the disk now, but for what is open or pinned. Raises LocalDiskError."""
        return await self._evictor.drop(self._digests(refs))

    async def pin(self, refs: Iterable[ContentRef], owner: str, since_ns: int) -> None:
        """Do not evict these contents, here already or not, until ``unpin``. Raises LocalDiskError. Repeatable."""
        digests = self._digests(refs)
        await self._in_catalog(lambda catalog: catalog.pin(digests, owner, since_ns))

    async def unpin_older(self, owner: str, before_ns: int) -> None:
        """Let eviction take what ``owner`` pinned before that time, and not since. Raises LocalDiskError."""
        await self._in_catalog(lambda catalog: catalog.unpin(owner, before_ns))

    async def pin_owners(self) -> list[str]:
        """Who has pinned something. Raises LocalDiskError."""
        return await self._in_catalog(CacheCatalog.pin_owners)

    def _digests(self, refs: Iterable[ContentRef]) -> list[bytes]:
        namespace = self._disk_cache.namespace
        return [digest_of(namespace, ref) for ref in refs if ref.etag and ref.size]

    async def _in_catalog(self, job: Callable[[CacheCatalog], T]) -> T:
        try:
            return await self._maintenance.with_catalog(job)
        except sqlite3.Error as error:
            raise LocalDiskError(f"the catalog of the cache cannot be used: {error}") from error

    @property
    def size_bytes_max(self) -> int:
        """How much the cache may hold now."""
        return self._disk_cache.size_bytes_max

    def is_whole(self, ref: ContentRef) -> bool:
        """Is every byte of it on the disk, or in memory? Asks S3 for nothing."""
        if ref.size == 0:
            return True
        entry = self._disk_cache.find(ref)
        with contained("looking into the cache"):
            try:
                if entry.small:
                    return entry.body is not None or self._disk_cache.load_body(entry) is not None
                return entry.whole
            finally:
                self._disk_cache.let_go(entry)
        return False

    def unpin(self, ref: ContentRef) -> None:
        """Undo one ``materialize`` of this content. No effect when it is not pinned."""
        entry = self._disk_cache.active(ref)
        if entry is not None and entry.pins:
            entry.pins -= 1
            with contained("letting go of a cached content"):
                self._disk_cache.let_go(entry)

    def adopt(self, ref: ContentRef, path: Path, crc: int | None = None) -> bool:
        """Make a complete local file, whose CRC-32 may be known, the cached copy of ``ref``, by rename.

        False when it is not taken (another file system, no room, no ETag, cached already, not of
        that size): then the file is untouched and the caller's.
        """
        return self._disk_cache.adopt(ref, path, crc)

    def relabel(self, old: ContentRef, new: ContentRef) -> None:
        """The bytes of ``old`` are now also (or only) to be had as ``new``, after a server-side copy.

        What is cached becomes ``new``'s; open handles of ``old`` go on and ask for ``new``.
        """
        with contained("giving a cached content its new name"):
            self._disk_cache.relabel(old, new)

    def statistics(self) -> dict[str, float]:
        """Counters since the start and present sizes, by name."""
        return {
            "cache_hits": self.hits,
            "cache_misses": self.misses,
            "cache_bytes": self._disk_cache.total_bytes,
            "cache_bytes_max": self._disk_cache.size_bytes_max,
            "cache_evicted_bytes": self._evictor.evicted_bytes,
            "cache_damaged": self._disk_cache.damaged,
            "cache_requests": self._fetcher.requests,
            "cache_fetched_bytes": self._fetcher.fetched_bytes,
            "cache_prefetch_bytes": self._fetcher.ahead_bytes,
            "cache_prefetch_failures": self._fetcher.ahead_failures,
            "cache_open_entries": len(self._disk_cache.entries) + len(self._disk_cache.private),
        }

    # -- for the handles

    def _look_ahead(
        self, handle: ReadHandle, entry: Entry, offset: int, stop: int, is_lost: bool
    ) -> None:
        """Note a read and ask for what will probably be read next; ``is_lost``: some of it is missing."""
        window = handle.window
        stream = window.observe(offset, stop)
        if window.dropped is not None:
            self._forget(handle, entry, window.dropped)
        if stream is None:
            return
        if is_lost and stream.requested > offset:
            # It was asked for, but did not come or was taken away again: ask once more from here.
            stream.requested = offset
        ranges = plan(stream, offset, entry.size, self._share(stream), 1 << entry.map.shift)
        for start, end in ranges:
            if not self._fetcher.ahead(entry, start, end, stream):
                stream.requested = start
                return

    def _share(self, stream: ReadStream) -> int:
        """What this stream may have in its window: its fair part of the budget."""
        now = trio.current_time()
        streams = self._streams
        streams[stream] = now
        if len(streams) > 1:
            for other in [one for one, last in streams.items() if last < now - ACTIVE_S]:
                del streams[other]
        return min(WINDOW_BYTES_MAX, self._prefetch_bytes_max // len(streams))

    def _proven(self, entry: Entry, first: int, stop: int) -> bytes | None:
        """The bytes of blocks of which some are not proven yet; ``None`` when any is not what it was."""
        before = entry.map.present_count
        data = self._prove(entry, first, stop)
        if data is not None and entry.map.present_count < before:
            # Damage comes in stretches: what is lost is known in time to be fetched in large pieces.
            further = min(stop + (RANGE_BYTES_MAX >> entry.map.shift), len(entry.map.states))
            if entry.unproven is not None and entry.unproven.find(1, stop, further) >= 0:
                self._prove(entry, stop, further)
            return None
        return data

    def _prove(self, entry: Entry, first: int, stop: int) -> bytes | None:
        """Hold blocks against their checksums: spoilt ones are missing then. ``None``: it cannot be read."""
        start, end = entry.map.byte_start(first), entry.map.byte_start(stop)
        try:
            data = os.pread(entry.descriptor, end - start, start)
            place = sums_offset(entry.size) + SUM_BYTES * first
            stored = os.pread(entry.descriptor, SUM_BYTES * (stop - first), place)
        except OSError as error:
            self._disk_cache.disk_failed(error)
            data = stored = b""
        if len(data) != end - start or len(stored) != SUM_BYTES * (stop - first):
            self._disk_cache.abandon_file(entry)
            return None
        found = block_sums(data, entry.map.shift)
        expected = struct.unpack(f"<{stop - first}Q", stored)
        for block, one, other in zip(range(first, stop), found, expected, strict=True):
            if one != other and entry.unproven is not None and entry.unproven[block]:
                logger.warning("a block of %r in the cache is damaged; fetched anew", entry.ref.key)
                self._disk_cache.spoilt(entry, block)
        entry.believe(first, stop)
        return data

    def _forget(self, handle: ReadHandle, entry: Entry, stream: ReadStream) -> None:
        self._streams.pop(stream, None)
        if entry.holders <= {handle}:
            self._fetcher.forget(entry, stream)

    def _close(self, handle: ReadHandle, entry: Entry) -> None:
        entry.holders.discard(handle)
        for stream in handle.window.streams:
            self._streams.pop(stream, None)
        with contained("letting go of a cached content"):
            if not entry.holders:
                self._fetcher.forget(entry, None)
            self._disk_cache.let_go(entry)

    async def _whole_body(self, entry: Entry) -> bytes:
        """A small content, from wherever it is."""
        body = entry.body or (None if entry.broken else self._disk_cache.load_body(entry))
        if body is not None:
            await trio.lowlevel.checkpoint()
            return body
        while not entry.broken:
            fetch = self._fetcher.small(entry)
            await fetch.done.wait()
            if fetch.error is not None:
                raise fetch.error
            if fetch.body is not None:
                return fetch.body
        return await self._fetcher.through(entry, 0, entry.size)

    async def _blocks(self, entry: Entry, first: int, stop: int, *, hasty: bool = False) -> bool:
        """Wait until the blocks are present; False when they cannot be kept."""
        for _ in range(LOCAL_TRIES):
            if entry.broken or entry.map.covered(first, stop):
                break
            waiter = Waiter(first, stop)
            entry.waiters.append(waiter)
            try:
                self._fetcher.demand(entry, first, stop, hasty=hasty)
                await waiter.event.wait()
            finally:
                entry.waiters.remove(waiter)
            if waiter.error is not None:
                raise waiter.error
            if waiter.no_disk:
                return False
        return not entry.broken and entry.map.covered(first, stop)

    async def _all_blocks(self, entry: Entry) -> None:
        self._disk_cache.require_disk()
        if not await self._evictor.make_room(_missing_bytes(entry)):
            raise LocalDiskError(f"{entry.ref.key!r} does not fit into the cache")
        ranges = _ranges(entry)
        failures: list[S3MountError] = []

        async def bring() -> None:
            try:
                for first, stop in ranges:
                    if not await self._blocks(entry, first, stop):
                        raise LocalDiskError(f"the cache cannot take {entry.ref.key!r}")
            except S3MountError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(MATERIALIZE_RANGES_MAX):
                nursery.start_soon(bring)
        if failures:
            raise failures[0]


class ReadHandle:
    """One open file: a version of an object, and how it is being read."""

    __slots__ = ("_entry", "_missed", "_reader", "window")

    def __init__(self, reader: CacheReader, entry: Entry | None) -> None:
        self._reader = reader
        self._entry = entry
        self._missed = (-1, 0)
        self.window = ReadaheadWindow()
        if entry is not None:
            entry.holders.add(self)

    def kept_ranges(self) -> list[tuple[int, int]]:
        """Byte ranges that this handle is about to read."""
        return self.window.kept_ranges()

    def read_now(self, offset: int, length: int) -> bytes | None:
        """Up to ``length`` bytes if all of them are local (fewer only at the end), else ``None``.

        Also tells the prefetcher what is being read. Never blocks for longer than the disk does.
        """
        entry = self._entry
        if entry is None:
            return b""
        stop = offset + length
        if stop > entry.size:
            stop = entry.size
        if stop <= offset:
            return b""
        if entry.broken:
            return None
        try:
            data = self._look_for(entry, offset, stop)
            if data is None:
                self._missed = (offset, length)
            return data
        except Exception as error:  # noqa: BLE001 - whatever it is, S3 has the bytes
            self._reader._disk_cache.give_up(entry, error)
            return None

    def _look_for(self, entry: Entry, offset: int, stop: int) -> bytes | None:
        if entry.small:
            body = entry.body
            if body is None:
                body = self._reader._disk_cache.load_body(entry)
                if body is None:
                    self._reader.misses += 1
                    return None
            self._reader.hits += 1
            return body[offset:stop]
        if not entry.whole:
            chunk = entry.map
            first = offset >> chunk.shift
            last = ((stop - 1) >> chunk.shift) + 1
            local = chunk.states.count(PRESENT, first, last) == last - first
            is_lost = not local and chunk.states.find(MISSING, first, last) >= 0
            self._reader._look_ahead(self, entry, offset, stop, is_lost)
            if not local:
                self._reader.misses += 1
                return None
        self._reader.hits += 1
        return self._read_local(entry, offset, stop)

    async def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes at ``offset``, fewer only at the end of the content.

        Waits for what is not local; asking ``read_now`` before is no double read. Raises StoreError
        or EngineError. May be cancelled: a request that others wait for goes on.
        """
        entry, reader = self._entry, self._reader
        if entry is None:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            return await self._wait_for(entry, offset, length)
        except S3MountError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, S3 has the bytes
            reader._disk_cache.give_up(entry, error)
            length = max(0, min(length, entry.size - offset))
            return await reader._fetcher.through(entry, offset, length)

    async def _wait_for(self, entry: Entry, offset: int, length: int) -> bytes:
        reader = self._reader
        if self._missed != (offset, length):
            data = self.read_now(offset, length)
            if data is not None:
                await trio.lowlevel.checkpoint()
                return data
        self._missed = (-1, 0)
        stop = min(offset + length, entry.size)
        if entry.small:
            return (await reader._whole_body(entry))[offset:stop]
        first, last = entry.map.span(offset, stop)
        hasty = self.window.jumped
        for _ in range(LOCAL_TRIES):
            if entry.broken or not reader._disk_cache.usable:
                break
            if not await reader._blocks(entry, first, last, hasty=hasty):
                break
            data = self._read_local(entry, offset, stop)
            if data is not None:
                return data
        return await reader._fetcher.through(entry, offset, stop - offset)

    def _read_local(self, entry: Entry, offset: int, stop: int) -> bytes | None:
        if entry.unproven is not None:
            first, last = entry.map.span(offset, stop)
            if entry.unproven.find(1, first, last) >= 0:
                data = self._reader._proven(entry, first, last)
                start = entry.map.byte_start(first)
                return None if data is None else data[offset - start : stop - start]
        try:
            data = os.pread(entry.descriptor, stop - offset, offset)
        except OSError as error:
            self._reader._disk_cache.disk_failed(error)
            data = b""
        if len(data) != stop - offset:
            self._reader._disk_cache.abandon_file(entry)
            return None
        return data

    def close(self) -> None:
        """End the handle; what was being fetched for it alone is dropped. Repeatable."""
        entry, self._entry = self._entry, None
        if entry is not None:
            self._reader._close(self, entry)


def _ranges(entry: Entry) -> Iterator[tuple[int, int]]:
    """The entry's blocks in pieces of one request each."""
    step = RANGE_BYTES_MAX >> entry.map.shift
    count = len(entry.map.states)
    for first in range(0, count, step):
        yield first, min(first + step, count)


def _missing_bytes(entry: Entry) -> int:
    return entry.map.states.count(MISSING) << entry.map.shift

"""Requests for blocks: shared by all who need them, those somebody waits for first."""

from __future__ import annotations

import logging
from collections import deque

import trio

from s3mount.background import Background, contained
from s3mount.cache.blocks import sums_offset, sums_room
from s3mount.cache.disk_cache import DiskCache
from s3mount.cache.entry import BlockFetch, Entry
from s3mount.cache.eviction import Evictor
from s3mount.cache.readahead import RANGE_BYTES_MAX
from s3mount.config import MIB
from s3mount.errors import (
    ChecksumError,
    EngineError,
    LocalDiskError,
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
    S3MountError,
    StoreError,
)
from s3mount.refs import ByteRange, ContentRef, FileSlice, ObjectInfo
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Readable

logger = logging.getLogger(__name__)

DEMAND_MAX = 64
"""Requests at a time that somebody waits for: as many as the kernel keeps waiting (max_background),
and half of the connections, so that uploads go on."""
AHEAD_MAX = 16
"""Requests at a time that nobody waits for yet: two readers with eight ranges each. More connections
were not faster, and each one delays the requests that somebody waits for."""
PREFETCHES_MAX = 48
"""Small contents at a time that were not asked for yet: at 20 ms they come at up to 2,000/s, which is
more than a client on one machine takes; the rest of the 128 connections is for who waits, and uploads."""
THROUGH_MAX = 16
"""Requests at a time of at most 1 MiB that go through memory because they cannot be stored."""

HASTE_BYTES_MIN = MIB
"""A block that lies further down a request under way is worth a request of its own to whoever jumped
to it: at 10 MB/s per connection the rest of 8 MiB takes 0.8 s, a request a round trip."""

FINISH_BYTES_MAX = MIB // 2
"""What is left of a request that nobody needs any more is read to its end if it is not more than this:
a new connection costs two round trips with TLS, this much a few milliseconds."""

_URGENT, _AHEAD, _PREFETCH = range(3)
_GONE = (NoSuchKeyError, PreconditionFailedError)


class _OtherVersionError(PreconditionFailedError):
    """The answer was about another version than was asked for, though the store did not refuse."""


class BlockFetcher:
    """Queues and runs the requests of one disk cache, in the background given to ``start``."""

    def __init__(
        self, store: Readable, disk_cache: DiskCache, evictor: Evictor, *, prefetch_bytes_max: int
    ) -> None:
        self.prefetch_bytes_max = prefetch_bytes_max
        self.ahead_bytes = 0
        self.fetched_bytes = 0
        self.requests = 0
        self.ahead_failures = 0
        self._store = store
        self._disk_cache = disk_cache
        self._evictor = evictor
        self._background: Background | None = None
        self._urgent: deque[BlockFetch] = deque()
        self._waiting: deque[BlockFetch] = deque()
        self._urgent_running = 0
        self._ahead_running = 0
        self._prefetches_running = 0
        self._through = trio.CapacityLimiter(THROUGH_MAX)

    def start(self, background: Background) -> None:
        """Requests run in this background from now on."""
        self._background = background

    def stop(self) -> EngineError:
        """Nothing is requested any more; whoever waits is told so by the error returned."""
        self._background = None
        error = EngineError("the cache is closed")
        for fetch in [*self._urgent, *self._waiting]:
            self._end(fetch, error)
        self._urgent.clear()
        self._waiting.clear()
        return error

    # -- asking

    def demand(self, entry: Entry, first: int, stop: int, *, hasty: bool = False) -> None:
        """See to it that every missing block of ``[first, stop)`` is fetched, before what is ahead.

        ``hasty``: nobody read towards these blocks, so where they are far down a request that is
        under way, they are asked for once more.
        """
        if self._background is None:
            raise EngineError("the cache is closed")
        for fetch in list(entry.fetches):
            if fetch.ahead and fetch.first < stop and first < fetch.stop:
                self._promote(fetch)
                far = (first - fetch.reached) << entry.map.shift
                if hasty and fetch.started and far > HASTE_BYTES_MIN:
                    self._hasten(entry, first, min(stop, fetch.stop))
        position = first
        step = RANGE_BYTES_MAX >> entry.map.shift
        while run := entry.map.next_fetch(position, stop, step):
            fetch = BlockFetch(entry, *run, None)
            fetch.claimed = self._disk_cache.claim(entry, *run)
            if not fetch.claimed:
                entry.map.claim(*run)
            entry.fetches.add(fetch)
            self._urgent.append(fetch)
            position = run[1]
        self._pump()

    def _hasten(self, entry: Entry, first: int, stop: int) -> None:
        if any(fetch.hasty and fetch.first <= first < fetch.stop for fetch in entry.fetches):
            return
        fetch = BlockFetch(entry, first, stop, None)
        fetch.claimed = fetch.hasty = True
        entry.fetches.add(fetch)
        self._urgent.append(fetch)

    def ahead(self, entry: Entry, start: int, stop: int, owner: object) -> bool:
        """Ask for the missing blocks of the bytes ``[start, stop)`` when there is time and room.

        False when there is none; then nothing (more) was asked for.
        """
        if self._background is None or not self._disk_cache.usable or not entry.pinned_version:
            return False
        if entry.broken:
            return False
        first, last = entry.map.span(start, stop)
        position = first
        while run := entry.map.next_fetch(position, last, last - first):
            length = entry.map.byte_start(run[1]) - entry.map.byte_start(run[0])
            if self.ahead_bytes + length > self.prefetch_bytes_max:
                return False
            if not self._disk_cache.claim(entry, *run):
                self._disk_cache.want_room(min(length, self.prefetch_bytes_max))
                return False
            fetch = BlockFetch(entry, *run, owner)
            fetch.claimed = True
            self.ahead_bytes += length
            entry.fetches.add(fetch)
            self._waiting.append(fetch)
            position = run[1]
        self._pump()
        return True

    def forget(self, entry: Entry, owner: object | None) -> None:
        """Drop what the owner (``None``: anybody) wanted of the entry and nobody waits for.

        Requests that are nearly done go on: ending one costs its connection.
        """
        for fetch in list(entry.fetches):
            if (owner is not None and fetch.owner is not owner) or self._awaited(fetch):
                continue
            if not fetch.started:
                (self._waiting if fetch.ahead else self._urgent).remove(fetch)
                self._end(fetch, None)
            elif (fetch.stop - fetch.reached) << entry.map.shift > FINISH_BYTES_MAX:
                fetch.scope.cancel()

    def small(self, entry: Entry) -> BlockFetch:
        """The one request that brings a small content whole; shared while it is under way."""
        if self._background is None:
            raise EngineError("the cache is closed")
        fetch = entry.small_fetch
        if fetch is None:
            fetch = entry.small_fetch = BlockFetch(entry, 0, len(entry.map.states), None)
            self._urgent.append(fetch)
            self._pump()
        elif fetch.ahead:
            self._leave_ahead(fetch)
        return fetch

    def small_ahead(self, entry: Entry) -> BlockFetch | None:
        """Ask at once for a small content that nobody waits for yet; ``None`` when there is no room for it."""
        if self._background is None or self._urgent or not entry.pinned_version:
            return None
        if self._prefetches_running >= PREFETCHES_MAX:
            return None
        if self.ahead_bytes + entry.size > self.prefetch_bytes_max:
            return None
        fetch = entry.small_fetch = BlockFetch(entry, 0, len(entry.map.states), entry)
        fetch.started = True
        self.ahead_bytes += entry.size
        self._prefetches_running += 1
        self._background.start(self._run, fetch, _PREFETCH)
        return fetch

    async def through(self, entry: Entry, offset: int, length: int) -> bytes:
        """Bytes straight from the store, which are not kept. Raises StoreError."""
        if self._background is None:
            raise EngineError("the cache is closed")
        pieces = []
        async with self._through:
            while length > 0:
                wanted = min(length, INLINE_BODY_BYTES_MAX)
                _, piece = await self._get(entry, ByteRange(offset, wanted))
                pieces.append(piece)
                offset += wanted
                length -= wanted
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- running

    def _pump(self) -> None:
        background = self._background
        if background is None:
            return
        while self._urgent and self._urgent_running < DEMAND_MAX:
            fetch = self._urgent.popleft()
            fetch.started = True
            self._urgent_running += 1
            background.start(self._run, fetch, _URGENT)
        while self._waiting and not self._urgent and self._ahead_running < AHEAD_MAX:
            fetch = self._waiting.popleft()
            fetch.started = True
            self._ahead_running += 1
            background.start(self._run, fetch, _AHEAD)

    def _promote(self, fetch: BlockFetch) -> None:
        fetch.owner = None
        if not fetch.started:
            self._waiting.remove(fetch)
            self._leave_ahead(fetch)
            self._urgent.append(fetch)

    def _leave_ahead(self, fetch: BlockFetch) -> None:
        if fetch.ahead:
            fetch.ahead = False
            chunk = fetch.entry.map
            self.ahead_bytes -= chunk.byte_start(fetch.stop) - chunk.byte_start(fetch.first)

    @staticmethod
    def _awaited(fetch: BlockFetch) -> bool:
        return fetch.entry.pins > 0 or any(
            waiter.first < fetch.stop and fetch.reached < waiter.stop
            for waiter in fetch.entry.waiters
        )

    async def _run(self, fetch: BlockFetch, lane: int) -> None:
        error: S3MountError | None = None
        no_disk = False
        try:
            with fetch.scope:
                if fetch.entry.small_fetch is fetch:
                    await self._run_small(fetch)
                else:
                    no_disk = not await self._run_range(fetch)
        except S3MountError as raised:
            error = raised
        except trio.Cancelled:
            # Not by the fetch's own scope: the nursery ends, and nothing can be started in it.
            error = self.stop()
            raise
        except Exception as raised:  # noqa: BLE001 - whoever waits for it goes past the cache
            no_disk = True
            self._disk_cache.give_up(fetch.entry, raised)
        finally:
            if lane == _AHEAD:
                self._ahead_running -= 1
            elif lane == _PREFETCH:
                self._prefetches_running -= 1
            else:
                self._urgent_running -= 1
            self._end(fetch, error, no_disk=no_disk)
            self._pump()

    def _end(self, fetch: BlockFetch, error: S3MountError | None, *, no_disk: bool = False) -> None:
        """Give back what did not come, tell those who wait, let the entry go. Never raises."""
        try:
            self._give_back(fetch, error, no_disk=no_disk)
        except Exception as raised:  # noqa: BLE001 - whoever waits for it goes past the cache
            self._disk_cache.give_up(fetch.entry, raised)
        finally:
            fetch.done.set()
        for on_end in fetch.on_end:
            with contained("what follows a fetch"):
                on_end()
        with contained("letting go of a cached content"):
            self._disk_cache.let_go(fetch.entry)

    def _give_back(self, fetch: BlockFetch, error: S3MountError | None, *, no_disk: bool) -> None:
        entry = fetch.entry
        if error is not None and not self._awaited(fetch) and fetch.ahead:
            self.ahead_failures += 1
        self._leave_ahead(fetch)
        fetch.error = error
        if entry.small_fetch is fetch:
            entry.small_fetch = None
        else:
            entry.fetches.discard(fetch)
            if fetch.reached < fetch.stop and not fetch.hasty:
                if fetch.claimed:
                    begun = bool(fetch.file)
                    self._disk_cache.unclaim(entry, fetch.reached, fetch.stop, begun=begun)
                else:
                    entry.map.unclaim(fetch.reached, fetch.stop)
                entry.wake_failed(fetch.reached, fetch.stop, error, no_disk=no_disk)

    async def _run_small(self, fetch: BlockFetch) -> None:
        entry = fetch.entry
        fetch.info, body = await self._get(entry, None)
        self.fetched_bytes += len(body)
        fetch.body = body
        try:
            self._disk_cache.put_body(entry, body)
        except Exception as raised:  # noqa: BLE001 - the bytes are here all the same
            self._disk_cache.give_up(entry, raised)

    async def _run_range(self, fetch: BlockFetch) -> bool:
        """Fetch into the file; False when the disk cannot take it."""
        entry, disk_cache = fetch.entry, self._disk_cache
        if entry.punching is not None:
            await entry.punching.wait()
        if not disk_cache.usable:
            return False
        needed = 0 if entry.file else sums_room(entry.size, entry.map.shift)
        if not fetch.claimed:
            needed += entry.map.disk_bytes(fetch.first, fetch.stop)
        if needed and not await self._evictor.make_room(needed):
            return False
        if not fetch.claimed:
            disk_cache.reserve(entry, fetch.first, fetch.stop)
            fetch.claimed = True
        try:
            path = disk_cache.ensure_file(entry)
            fetch.file = entry.file
            await self._fetch(fetch, path)
        except (OSError, LocalDiskError, RejectedError) as error:
            if isinstance(error, RejectedError) and error.status:
                raise
            # Status 0: not the store refused, but the disk.
            disk_cache.disk_failed(error)
            disk_cache.check_file(entry)
            return False
        except (ChecksumError, _OtherVersionError):
            # Nothing that came with it is to be shown, nor kept.
            if entry.file == fetch.file:
                disk_cache.abandon_file(entry)
            raise
        return True

    async def _fetch(self, fetch: BlockFetch, path: str) -> None:
        entry = fetch.entry
        shift = entry.map.shift
        start = entry.map.byte_start(fetch.first)
        length = entry.map.byte_start(fetch.stop) - start
        counted = 0

        def on_progress(count: int) -> None:
            nonlocal counted
            self.fetched_bytes += count - counted
            counted = count
            if entry.file != fetch.file:
                return
            reached = fetch.stop if count >= length else (start + count) >> shift
            if reached > fetch.reached:
                self._disk_cache.fill(entry, fetch.reached, reached)
                fetch.reached = reached

        while True:
            ref, version_id = entry.ref, entry.version_id
            self.requests += 1
            try:
                info = await self._store.fetch(
                    ref.key,
                    ByteRange(start, length),
                    _place(fetch, path, start, length),
                    version_id=version_id,
                    if_match=entry.if_match,
                    on_progress=on_progress if entry.pinned_version else None,
                )
                _check_version(entry, ref, info)
            except _GONE:
                entry.note_replaced()
                if (entry.ref, entry.version_id) == (ref, version_id):
                    raise
                counted = 0
            else:
                fetch.info = info
                on_progress(length)
                return

    async def _get(self, entry: Entry, byte_range: ByteRange | None) -> tuple[ObjectInfo, bytes]:
        while True:
            ref, version_id = entry.ref, entry.version_id
            self.requests += 1
            try:
                info, body = await self._store.get(
                    ref.key,
                    byte_range=byte_range,
                    version_id=version_id,
                    if_match=entry.if_match,
                )
                _check_version(entry, ref, info)
            except _GONE:
                entry.note_replaced()
                if (entry.ref, entry.version_id) == (ref, version_id):
                    raise
                continue
            wanted = ref.size if byte_range is None else byte_range.length
            if len(body) != wanted:
                raise StoreError(f"{len(body)} bytes came instead of {wanted}", key=ref.key)
            return info, body


def _place(fetch: BlockFetch, path: str, start: int, length: int) -> FileSlice:
    """Where in the file the bytes go, and their checksums."""
    entry = fetch.entry
    if not (entry.sums and entry.file == fetch.file):
        return FileSlice(path, start, length)
    return FileSlice(path, start, length, None, sums_offset(entry.size), entry.map.shift)


def _check_version(entry: Entry, ref: ContentRef, info: ObjectInfo) -> None:
    """Raise PreconditionFailedError when the answer is about another version than was asked for.

    Where no ETag names the version, the first answer does.
    """
    same = info.size == ref.size
    if ref.etag:
        same = same and info.etag in ("", ref.etag)
    elif entry.seen is None:
        entry.seen = info
    else:
        seen = entry.seen
        same = same and info.etag == seen.etag and info.last_modified_ns == seen.last_modified_ns
    if not same:
        raise _OtherVersionError("the object changed while it was read", key=ref.key)
    if entry.ref == ref:
        entry.told_version = info.version_id

"""Read-ahead of listings: the tree that a program walks is listed in flat pages, many at once.

A program that walks a tree (``find``, ``ls -R``, ``du``, ``git status``) asks for one directory after the
other, in the order of their names; asked for one by one, each costs a round trip. Once two neighbours
were asked for in turn, or the first of those that the program was told just now, what follows below
their parent is listed without a delimiter, a thousand keys a request. How far that runs ahead follows
from what was taken so far, and has a limit.
"""

from __future__ import annotations

import bisect
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from s3mount.background import log_fault
from s3mount.errors import S3MountError
from s3mount.refs import Key, ListPage
from s3mount.s3.store import Store
from s3mount.tree.flat_to_dirs import FlatToDirs, Opened
from s3mount.tree.listing import Listing
from s3mount.tree.names import KEY_BYTES_MAX
from s3mount.tree.node import Node
from s3mount.vfs.finished import Watch
from s3mount.vfs.state import MountState

log = logging.getLogger(__name__)

PAGE_KEYS = 1000
LEAD_KEYS_MAX = 16_000
"""At most so many keys are listed, or on their way, that nobody has asked for yet: about half a second's
worth of what a store lists in parallel, and a few MB."""
LEAD_PAGES = 4
LEAD_GROWTH = 4
"""Until something of the first page is taken, nothing else is listed; then the lead is at most
``LEAD_PAGES`` and ``LEAD_GROWTH`` times what was taken before."""
FRESH_SHARE = 0.5
"""It is also at most what is taken within this share of the metadata TTL, or it would be too old when asked for."""
FULL_SHARE = 0.9
"""Parallel pages begin this share of a page apart, so that folders which vary a little still fit in."""
DEEP_PAGES = 3
"""A child with more pages than this is left to be listed by itself, and walked by itself."""
GAP_MAX = 2
"""Who skips more neighbours than this does not walk."""
MISSES_MAX = 2
"""Who asks so often in turn for what was passed already has begun anew."""
WALKS_MAX = 4
TRACES_MAX = 256
IDLE_S = 5.0
TTL_S_MIN = 0.05
"""With less than this everything would be too old by the time it is asked for."""


@dataclass(slots=True)
class Origin:
    """The page in which a directory's keys began: when it was asked for, and what finished since."""

    started: float
    watch: Watch
    took_s: float = 0.0


@dataclass(slots=True)
class Ahead:
    """One directory's listing that came before it was asked for."""

    listing: Listing
    origin: Origin
    keys: int


class Stream:
    """A run of neighbours that is listed page by page: from ``cursor`` up to ``stop`` (None: to the end)."""

    __slots__ = ("after", "busy", "child_pages", "cursor", "scope", "stop", "unroller", "waits")

    def __init__(self, base: Key, cursor: int) -> None:
        self.cursor = cursor
        self.stop: int | None = None
        self.after = ""
        self.unroller: FlatToDirs[Origin] = FlatToDirs(base)
        self.busy: trio.Event | None = None
        self.scope: trio.CancelScope | None = None
        self.child_pages = 0
        self.waits = False


class TreeWalk:
    """One walk below the directory ``base``, whose subdirectories are ``names`` (each with its ``/``, in order)."""

    def __init__(self, owner: ListReadahead, base: Key, names: list[str], first: int) -> None:
        self._owner = owner
        self._base = base
        self._names = names
        self._streams = [Stream(base, first)]
        self._ready: dict[Key, Ahead] = {}
        self._ready_keys = 0
        self._listed = 0
        self._children = 0
        self._taken = 0
        self._misses = 0
        self._began = self.asked_at = trio.current_time()
        self.is_over = False
        self._pump()

    # ------------------------------------------------------------------ taking

    async def take(self, key: Key) -> Ahead | None:
        """The listing of the directory ``key`` if it is here or just coming; else ``None``."""
        self.asked_at = trio.current_time()
        index = self._index(key)
        for may_wait in (True, False):
            found = self._ready.pop(key, None)
            if found is not None:
                self._ready_keys -= found.keys
                self._taken += found.keys
                self._owner.counters["used"] += 1
                self._misses = 0
                self._pump()
                return found
            if self.is_over or not may_wait:
                break
            stream = self._stream_at(index)
            if stream is None:
                self._misses += 1
                if self._misses >= MISSES_MAX or not (self._streams or self._ready):
                    self.end()
                return None
            if index > stream.cursor + GAP_MAX and stream.busy is None:
                self.end()
                return None
            if stream.waits:
                if index >= stream.cursor:
                    stream.waits = False
                    self._pump()
                return None
            if stream.busy is None:
                self._start(stream)
            if stream.busy is not None:
                await stream.busy.wait()
        self._pump()
        return None

    def _index(self, key: Key) -> int:
        """The number of the neighbour that ``key`` is, or is below of."""
        name = key[len(self._base) :]
        return bisect.bisect_left(self._names, name[: name.find("/") + 1])

    def _stream_at(self, index: int) -> Stream | None:
        for stream in self._streams:
            if stream.cursor - 1 <= index and (stream.stop is None or index < stream.stop):
                return stream
        return None

    def end(self) -> None:
        """List no further, and drop what nobody asked for. Repeatable."""
        self.is_over = True
        for stream in self._streams:
            if stream.scope is not None:
                stream.scope.cancel()
        self._streams = []
        self._owner.counters["unused"] += len(self._ready)
        self._ready.clear()
        self._ready_keys = 0

    # ----------------------------------------------------------------- listing

    def _lead_max(self) -> float:
        if not self._taken:
            return PAGE_KEYS
        lead: float = LEAD_PAGES * PAGE_KEYS + LEAD_GROWTH * self._taken
        if self._taken > PAGE_KEYS:
            rate = self._taken / max(1e-3, self.asked_at - self._began)
            lead = min(lead, max(PAGE_KEYS, rate * self._owner.ttl_s * FRESH_SHARE))
        return min(LEAD_KEYS_MAX, lead)

    def _pump(self) -> None:
        """Ask for as many pages as the lead allows."""
        self._drop_stale()
        lead_max = self._lead_max()
        while not self.is_over and self._streams:
            busy = sum(stream.busy is not None for stream in self._streams)
            lead = self._ready_keys + PAGE_KEYS * busy
            if lead + PAGE_KEYS > lead_max and (busy or self._ready):
                return
            idle = next((each for each in self._streams if each.busy is None), None)
            if idle is None:
                idle = self._split()
            if idle is None or idle.waits:
                return
            self._start(idle)

    def _drop_stale(self) -> None:
        """What came first is oldest, and may be too old by now."""
        while self._ready:
            key = next(iter(self._ready))
            if self._owner.is_believed(self._ready[key].origin):
                return
            self._ready_keys -= self._ready.pop(key).keys
            self._owner.counters["unused"] += 1

    def _split(self) -> Stream | None:
        """Another stream, beginning about where the page that is on its way last will end.

        None where that one ends before another stream, which then was done first.
        """
        last = self._streams[-1]
        if not self._children or last.waits or last.stop is not None:
            return None
        step = max(1, int(PAGE_KEYS * FULL_SHARE * self._children / max(1, self._listed)))
        index = last.cursor + step
        if index >= len(self._names):
            return None
        last.stop = index
        stream = Stream(self._base, index)
        self._streams.append(stream)
        return stream

    def _start(self, stream: Stream) -> None:
        if self._owner.is_stopped:
            self.end()
            return
        stream.busy = trio.Event()
        stream.scope = trio.CancelScope()
        self._owner.spawn(self._step, stream)

    async def _step(self, stream: Stream) -> None:
        """Fetch the next page of ``stream``."""
        assert stream.scope is not None
        assert stream.busy is not None
        done = stream.busy
        origin = Origin(trio.current_time(), self._owner.finished.watch())
        try:
            with stream.scope:
                page = await self._owner.list_page(
                    self._base, stream.after or self._before(stream.cursor)
                )
                origin.took_s = trio.current_time() - origin.started
                stream.busy = None
                self._take_in(stream, page, origin)
                self._pump()
        except S3MountError as error:
            # Whoever needs it asks by itself, and is told.
            log.info("listing ahead below %r ended: %s", self._base, error)
            self.end()
        except Exception:
            # What failed once unexpectedly is not tried again with every look.
            self.end()
            raise
        finally:
            if stream.busy is done:
                stream.busy = None
            done.set()

    def _before(self, index: int) -> str:
        """A key behind which the neighbour's keys begin, with few others between.

        ``name.`` sorts just before ``name/``; what begins with it and goes on is skipped as far as it is ASCII.
        """
        return f"{self._base}{self._names[index][:-1]}.~"

    def _take_in(self, stream: Stream, page: ListPage, origin: Origin) -> None:
        """Keep what a page tells, unless the walk has ended while the page was on its way."""
        if stream not in self._streams:
            return
        first = self._base + self._names[stream.cursor] if not stream.after else ""
        last = stream.after or self._before(stream.cursor)
        limit = None if stream.stop is None else self._base + self._names[stream.stop]
        is_whole = page.next_token is None
        stream.child_pages += 1
        for info in page.objects:
            key = info.key
            if key <= last:
                self._owner.distrust()
                return
            last = key
            if key < first:
                continue
            if limit is not None and key >= limit:
                is_whole = True
                break
            self._keep_all(stream.unroller.add(info, origin))
            self._open_child(stream, key, origin)
        stream.after = last
        if is_whole:
            self._keep_all(stream.unroller.finish())
            self._pass_empty(
                stream, len(self._names) if stream.stop is None else stream.stop, origin
            )
            self._streams.remove(stream)
        elif stream.child_pages > DEEP_PAGES:
            self._pass_deep(stream)

    def _open_child(self, stream: Stream, key: Key, origin: Origin) -> None:
        """Move the cursor behind the neighbour that ``key`` belongs to."""
        self._listed += 1
        cursor = stream.cursor
        if cursor and key.startswith(self._names[cursor - 1], len(self._base)):
            return
        index = self._index(key)
        if index >= cursor:
            self._pass_empty(stream, index, origin)
            if index < len(self._names) and key.startswith(self._names[index], len(self._base)):
                stream.cursor = index + 1
                self._children += 1
                stream.child_pages = 1

    def _pass_empty(self, stream: Stream, index: int, origin: Origin) -> None:
        """Neighbours before ``index`` of which no key came have none any more."""
        for name in self._names[stream.cursor : index]:
            self._keep(Opened(self._base + name, origin))
            self._children += 1
        stream.cursor = max(stream.cursor, index)

    def _pass_deep(self, stream: Stream) -> None:
        """Leave the neighbour that does not end: it is walked by itself once somebody is there."""
        stop = len(self._names) if stream.stop is None else stream.stop
        if stream.cursor >= stop:
            self._streams.remove(stream)
            return
        stream.unroller = FlatToDirs(self._base)
        stream.after = ""
        stream.child_pages = 0
        stream.waits = True

    def _keep_all(self, done: list[Opened[Origin]]) -> None:
        for each in done:
            self._keep(each)

    def _keep(self, done: Opened[Origin]) -> None:
        keys = done.keys + 1
        before = self._ready.pop(done.prefix, None)
        if before is not None:
            self._ready_keys -= before.keys
        self._ready[done.prefix] = Ahead(done.listing, done.origin, keys)
        self._ready_keys += keys


class ListReadahead:
    """Recognises walks and keeps what they list ahead."""

    def __init__(self, state: MountState, store: Store) -> None:
        self._state = state
        self._store = store
        self.finished = state.finished
        self._walks: OrderedDict[int, TreeWalk] = OrderedDict()
        self._traces: OrderedDict[int, tuple[str, int]] = OrderedDict()
        self._told: OrderedDict[int, float] = OrderedDict()
        self._is_trusted = store.lists_in_order
        self.counters = {"walks": 0, "pages": 0, "used": 0, "unused": 0}

    def statistics(self) -> dict[str, float]:
        """Walks that were recognised, pages listed ahead, and directories of them that were asked for or not."""
        return {f"ahead_{name}": count for name, count in self.counters.items()}

    @property
    def ttl_s(self) -> float:
        """How long a listing is believed."""
        return self._state.config.metadata_ttl_s

    def is_believed(self, origin: Origin) -> bool:
        """Is the page still young enough to be shown?"""
        return origin.started + self._state.believed_s(origin.took_s) > trio.current_time()

    @property
    def is_stopped(self) -> bool:
        """Does nothing go on in the background any more?"""
        return self._state.background is None

    def spawn(self, function: Callable[[Stream], Awaitable[None]], stream: Stream) -> None:
        """Run a walk's request in the background."""
        assert self._state.background is not None
        self._state.background.start(function, stream)

    async def list_page(self, base: Key, after: Key) -> ListPage:
        """One flat page. Raises StoreError."""
        self.counters["pages"] += 1
        return await self._store.list_page(base, start_after=after)

    def distrust(self) -> None:
        """The store does not list in the order of keys: nothing is listed ahead any more."""
        log.info("this store does not list in order; directories are listed one by one")
        self._is_trusted = False
        self.end()

    def end(self) -> None:
        """End every walk. Repeatable."""
        while self._walks:
            self._walks.popitem()[1].end()

    def names_read(self, directory: Node) -> None:
        """A program was told the names in ``directory``."""
        self._told[directory.inode] = trio.current_time()
        self._told.move_to_end(directory.inode)
        while len(self._told) > TRACES_MAX:
            self._told.popitem(last=False)

    async def take(self, directory: Node, key: Key) -> Ahead | None:
        """The listing of ``directory``, when a walk has it; notes that it was asked for. Never raises.

        A fault in what is only a guess ends the guesses, and the directory is listed by itself.
        """
        try:
            return await self._take(directory, key)
        except Exception as error:  # noqa: BLE001 - whatever it is, the directory itself can be listed
            log_fault("listing ahead", error)
            self.end()
            return None

    async def _take(self, directory: Node, key: Key) -> Ahead | None:
        parent = directory.parent
        if not self._is_trusted or parent is None or self.ttl_s < TTL_S_MIN:
            return None
        self._end_idle()
        above: Node | None = parent
        is_walked = False
        while above is not None:
            walk = self._walks.get(above.inode)
            if walk is not None:
                is_walked = True
                found = await walk.take(key)
                if found is not None:
                    is_good = self.is_believed(found.origin)
                    return found if is_good and not found.origin.watch.saw_below(key) else None
                if walk.is_over and self._walks.get(above.inode) is walk:
                    del self._walks[above.inode]
            above = above.parent
        self._trace(parent, f"{directory.name}/", 1 if is_walked else 2)
        return None

    def _trace(self, parent: Node, name: str, needed: int) -> None:
        """Note that ``name`` was asked for; a walk begins behind it with ``needed`` neighbours in turn.

        Or with the first of all, right after the names were read: nobody looks there first by chance.
        """
        last, steps = self._traces.pop(parent.inode, ("", 0))
        steps = steps + 1 if last < name else 1
        self._traces[parent.inode] = (name, steps)
        while len(self._traces) > TRACES_MAX:
            self._traces.popitem(last=False)
        told_at = self._told.pop(parent.inode, float("-inf"))
        may_be_first = told_at > trio.current_time() - IDLE_S
        if parent.inode in self._walks or self.is_stopped or (steps < needed and not may_be_first):
            return
        base = self._state.nodes.key_of(parent)
        names = _directories_of(parent)
        first = bisect.bisect_right(names, name)
        if steps < needed and first != 1:
            return
        skipped = first - 1 - bisect.bisect_left(names, last) if last else 1
        if skipped > GAP_MAX or len(names) - first < 1 or not _fits(base, names):
            return
        while len(self._walks) >= WALKS_MAX:
            self._walks.popitem(last=False)[1].end()
        self.counters["walks"] += 1
        self._walks[parent.inode] = TreeWalk(self, base, names, first)

    def _end_idle(self) -> None:
        limit = trio.current_time() - IDLE_S
        for inode, walk in list(self._walks.items()):
            if walk.is_over or walk.asked_at < limit:
                walk.end()
                del self._walks[inode]


def _directories_of(directory: Node) -> list[str]:
    """The names of a directory's subdirectories, each with its ``/``, in the order of their keys."""
    assert directory.directory is not None
    return sorted(f"{name}/" for name in directory.directory.children.directories())


def _fits(base: Key, names: list[str]) -> bool:
    """Can a request name a place before each of them?"""
    return len((base + max(names, key=len)).encode()) + 8 <= KEY_BYTES_MAX

"""Lists all versions, or all objects, below a prefix in parallel, and hands them on in the order of keys.

One list has one cursor: 1,000 rows a round trip. So the keys are parted into ranges that are
listed at the same time. Nobody knows beforehand where keys lie; whoever has nothing to do finds out,
by asking what the first key is behind some marker, and takes over the upper part of a range that
somebody else lists. A range begins behind its marker and ends with its stop, so it holds all
versions of its keys. Who takes the rows slower than they come holds up the first range; what the others
list goes to the disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Generic, TypeAlias

import trio

from s3mount.manifest.spill_file import Chunk, Spill
from s3mount.manifest.versions.key_pages import KeyPage, KeyPages, R
from s3mount.refs import Key
from s3mount.s3.headers import KEY_BYTES_MAX
from s3mount.tasks import in_parallel

LISTS_AT_ONCE = 16
"""Lists under way at the same time; a list is work for the store, and AWS answers some 100 a second."""
PROBES_AT_ONCE = 7
"""Questions at once where to part a range: of 60 characters, 2 round trips instead of 6."""
ROWS_IN_MEMORY_MAX = 50_000
"""Rows that may wait in memory for their turn; about 25 MB."""
FIRST_ROWS_MAX = 10_000
"""Rows of the first range that wait for who takes them before it is listed on."""
PAGES_UNTIL_NEXT_TRY = 4
"""When a range could not be parted, so many pages pass before that is tried again."""

Keep: TypeAlias = Callable[[Sequence[R]], list[R]]
"""Chooses from the rows of one range; called with each of its pages in turn."""
Take: TypeAlias = Callable[[list[R]], Awaitable[None] | None]


class _Range(Generic[R]):
    """Keys behind ``after`` up to and with ``stop``. ``at``: the last key that was seen of it."""

    __slots__ = (
        "after",
        "at",
        "chunks",
        "done",
        "keep",
        "next_try",
        "pages",
        "probed",
        "rows",
        "stop",
    )

    def __init__(self, after: Key | None, stop: Key | None, keep: Keep[R]) -> None:
        self.after = after
        self.stop = stop
        self.keep: Keep[R] = keep
        self.at = after or ""
        self.pages = 0
        self.next_try = 0
        self.probed = 0
        self.done = False
        self.rows: list[R] = []
        self.chunks: list[Chunk] = []


class Scan(Generic[R]):
    """One listing. ``listed`` rows so far, by ``ranges_running`` lists at the same time.

    ``after``: it begins behind that key.
    """

    def __init__(
        self,
        pages: KeyPages[R],
        *,
        keep: Callable[[], Keep[R]] = lambda: list,
        lists_at_once: int = LISTS_AT_ONCE,
        after: Key | None = None,
    ) -> None:
        self._pages: KeyPages[R] = pages
        self._prefix = pages.prefix
        self._keep: Callable[[], Keep[R]] = keep
        self._lists_at_once = lists_at_once if pages.may_be_parted else 1
        self._ranges: list[_Range[R]] = [_Range(after, None, keep())]
        self._running: set[_Range[R]] = set()
        self._parting: set[_Range[R]] = set()
        self._changed = trio.lowlevel.ParkingLot()
        self._spill: Spill[R] = Spill(pages.kind)
        self._waiting_rows = 0
        self._failure: Exception | None = None
        self.listed = 0
        self.pages = 0
        self.probes = 0

    @property
    def rows_waiting(self) -> int:
        """Rows in memory that were listed and not handed on yet."""
        return self._waiting_rows

    @property
    def ranges_running(self) -> int:
        """How many lists are under way."""
        return len(self._running)

    async def run(self, take: Take[R]) -> None:
        """List everything; ``take`` gets what ``keep`` chose, in the order of keys, and may raise.

        It may be asynchronous: nothing is handed on meanwhile.

        Once per scan. Raises the store's errors, and LocalDiskError where too much waits for its turn
        and no file can hold it. What was taken until then is not all.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._guarded, self._list_first)
                for _ in range(self._lists_at_once - 1):
                    nursery.start_soon(self._guarded, self._help)
                await self._guarded(partial(self._hand_over, take))
                nursery.cancel_scope.cancel()
        finally:
            self._spill.close()
        if self._failure is not None:
            raise self._failure

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """The first error ends all work, and is raised by ``run`` as it is, in no group."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - raised outside of the nursery
            self._failure = self._failure or error
            self._nursery.cancel_scope.cancel()

    # ---------------------------------------------------------------------- listing

    async def _list_first(self) -> None:
        await self._list_range(self._ranges[0])
        await self._help()

    async def _list_range(self, part: _Range[R]) -> None:
        self._running.add(part)
        cursor = None
        while not part.done:
            page = await self._pages.page(part.after, cursor)
            cursor = page.cursor
            self._take_page(part, page)
            while part is self._ranges[0] and len(part.rows) >= FIRST_ROWS_MAX:
                await self._changed.park()
        self._running.discard(part)
        self._tell()

    def _take_page(self, part: _Range[R], page: KeyPage[R]) -> None:
        self.pages += 1
        part.pages += 1
        stop, next_key = part.stop, page.reached
        own: Sequence[R] = page.rows
        if stop is not None and own and own[-1].key > stop:
            own = list(takewhile(lambda row: row.key <= stop, own))
            part.done = True
        if next_key is None or (stop is not None and next_key > stop):
            part.done = True
        else:
            part.at = max(part.at, next_key)
        before = len(part.rows)
        part.rows += part.keep(own)
        self._waiting_rows += len(part.rows) - before
        self.listed += len(own)
        if self._waiting_rows > ROWS_IN_MEMORY_MAX and part is not self._ranges[0]:
            self._spill_range(part)
        self._tell()

    def _spill_range(self, part: _Range[R]) -> None:
        if part.rows:
            part.chunks.append(self._spill.put(part.rows))
            self._waiting_rows -= len(part.rows)
            part.rows = []

    def _tell(self) -> None:
        self._changed.unpark_all()

    # ---------------------------------------------------------------------- parting

    async def _help(self) -> None:
        """Take over parts of others' ranges until there is nothing left to do."""
        while self._running or self.pages == 0:
            part = self._range_to_part()
            if part is None:
                await self._changed.park()
                continue
            self._parting.add(part)
            try:
                upper = await self._part(part)
            finally:
                self._parting.discard(part)
            if upper is not None:
                await self._list_range(upper)
            self._tell()

    def _range_to_part(self) -> _Range[R] | None:
        """The range that was parted least; ``None`` when no attempt is worth it now.

        No more are parted at once than pages have come, so that a small bucket costs few requests.
        """
        if len(self._parting) >= self.pages:
            return None
        candidates = [
            part
            for part in self._running
            if part not in self._parting
            and part.at
            and not part.done
            and part.pages >= part.next_try
        ]
        return min(candidates, key=lambda part: part.probed, default=None)

    async def _part(self, part: _Range[R]) -> _Range[R] | None:
        """Cut off the upper part of a range where its keys differ first; ``None``: that cannot be.

        Keys behind ``at`` share some of its characters. Whether any key lies behind those that share
        n characters grows true with n, so the least such n is found by narrowing down.
        """
        part.probed += 1
        found: tuple[Key, Key] | None = None
        cuts = self._cuts(part)
        low, high = 0, len(cuts)
        while low < high:
            tried = _spread(low, high)
            answers = await self._first_behind_each([cuts[index] for index in tried], part.stop)
            for index, following in zip(tried, answers, strict=True):
                if following is not None:
                    found, high = (cuts[index], following), index
                    break
                low = index + 1
        if found is not None:
            found = await self._further_up(*found, part.stop) or found
        if found is None or part.done or found[0] <= part.at:
            part.next_try = part.pages + PAGES_UNTIL_NEXT_TRY
            return None
        upper = _Range(found[0], part.stop, self._keep())
        upper.at = found[1]
        upper.probed = part.probed
        part.stop = found[0]
        self._ranges.insert(self._ranges.index(part) + 1, upper)
        return upper

    async def _further_up(
        self, cut: Key, following: Key, stop: Key | None
    ) -> tuple[Key, Key] | None:
        """A cut nearer the middle of what follows ``cut``, by its last character; ``None``: there is none."""
        shared = cut[:-1]
        low = ord(following[len(shared)]) if following.startswith(shared) else ord(cut[-1])
        high = 0x7F if low < 0x7F else 0x10FFFF
        if stop is not None and stop.startswith(shared) and len(stop) > len(shared):
            high = min(high, ord(stop[len(shared)]))
        cuts = [
            shared + chr(code)
            for code in (low + step for step in _spread(0, high - low))
            if low < code < high and not 0xD800 <= code < 0xE000
        ]
        cuts = [each for each in cuts if len(each.encode()) <= KEY_BYTES_MAX]
        answers = await self._first_behind_each(cuts, stop)
        behind = [(each, key) for each, key in zip(cuts, answers, strict=True) if key is not None]
        return behind[len(behind) // 2] if behind else None

    def _cuts(self, part: _Range[R]) -> list[Key]:
        """Markers behind all keys that share so and so many characters with the range's last key."""
        at, stop = part.at, part.stop
        cuts = []
        for length in range(len(self._prefix), len(at)):
            following = _following(at[length])
            if following is None:
                continue
            cut = at[:length] + following
            if (stop is None or cut < stop) and len(cut.encode()) <= KEY_BYTES_MAX:
                cuts.append(cut)
        return cuts

    async def _first_behind_each(
        self, markers: Sequence[Key], stop: Key | None
    ) -> Sequence[Key | None]:
        """``_first_behind`` of each, asked at the same time."""
        answers: list[Key | None] = [None] * len(markers)

        async def ask(index: int) -> None:
            answers[index] = await self._first_behind(markers[index], stop)

        await in_parallel(trio.CapacityLimiter(PROBES_AT_ONCE), range(len(markers)), ask)
        return answers

    async def _first_behind(self, marker: Key, stop: Key | None) -> Key | None:
        """The first key behind ``marker``, if it is not behind ``stop``."""
        cursor = None
        while True:
            self.probes += 1
            page = await self._pages.page(marker, cursor, max_keys=1)
            if page.rows:
                key = page.rows[0].key
                return key if stop is None or key <= stop else None
            # Some stores count the marker's own versions, which are not behind it.
            cursor = page.cursor
            if cursor is None:
                return None

    # ------------------------------------------------------------------ handing over

    async def _hand_over(self, take: Take[R]) -> None:
        """Give rows to ``take`` in the order of their ranges, until all ranges are done."""

        async def give(rows: list[R]) -> None:
            taking = take(rows)
            if taking is not None:
                await taking

        while self._ranges:
            first = self._ranges[0]
            while first.chunks:
                await give(self._spill.get(first.chunks.pop(0)))
                await trio.lowlevel.checkpoint()
            rows, first.rows = first.rows, []
            self._waiting_rows -= len(rows)
            if rows:
                self._tell()
                await give(rows)
            if first.done and not first.rows and not first.chunks:
                self._ranges.pop(0)
                await trio.lowlevel.checkpoint()
            elif not rows:
                await self._changed.park()
            else:
                await trio.lowlevel.checkpoint()


def _spread(low: int, high: int) -> list[int]:
    """Up to PROBES_AT_ONCE places that part ``range(low, high)`` evenly."""
    parts = PROBES_AT_ONCE + 1
    return sorted({low + (high - low) * n // parts for n in range(1, parts)})


def _following(character: str) -> str | None:
    """The next character in the order of UTF-8, leaving out what UTF-8 cannot hold."""
    code = ord(character) + 1
    if code == 0xD800:
        code = 0xE000
    return chr(code) if code < 0x110000 else None

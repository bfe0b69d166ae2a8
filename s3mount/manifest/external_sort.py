"""Sorts entries by bucket and then by key in the order of UTF-8, and other rows, on the disk where they are many."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Self, TypeAlias, TypeVar

import msgspec

from s3mount.errors import ManifestError
from s3mount.manifest.model import Entry, is_same_line
from s3mount.manifest.spill_file import Chunk, Spill

T = TypeVar("T", bound=msgspec.Struct)
Order: TypeAlias = tuple[str, ...]
ENTRIES_IN_MEMORY_MAX = 100_000
"""Entries that are sorted at once; about 50 MB."""
CHUNK_ENTRIES = 1000
"""Entries of each run that are in memory while runs are merged."""


def entry_order(entry: Entry) -> tuple[str, str]:
    """Text compares by code points, which is the order of UTF-8."""
    return entry.bucket, entry.key


def sorted_entries(entries: Iterable[Entry], name: str) -> Iterator[Entry]:
    """``entries`` sorted, each key once. ``name`` is what an error calls them.

    What is sorted already goes through in few runs. All faults show before the first entry comes: raises
    ManifestError when a key is named with two different versions, LocalDiskError when there is no room for what
    does not fit into memory.
    """
    spill: Spill[Entry] = Spill(Entry)
    try:
        runs = Runs.of(entries, spill, entry_order)
        for _ in _once(runs.merged(), name):
            pass
        yield from _once(runs.merged(), name)
    finally:
        spill.close()


class Runs(Generic[T]):
    """Rows in sorted runs, by ``order``, which tells text in the order of UTF-8.

    What does not fit into memory goes to ``spill``. Raises LocalDiskError.
    """

    def __init__(self, spill: Spill[T], order: Callable[[T], Order]) -> None:
        self._spill = spill
        self._order = order
        self._runs: list[list[Chunk]] = []
        self._held: list[T] = []
        self._last: Order | None = None

    @classmethod
    def of(cls, rows: Iterable[T], spill: Spill[T], order: Callable[[T], Order]) -> Self:
        """All of ``rows``, which are read at once. Raises what they raise."""
        runs = cls(spill, order)
        for row in rows:
            runs.add(row)
        return runs

    def add(self, row: T) -> None:
        """One more."""
        self._held.append(row)
        if len(self._held) < ENTRIES_IN_MEMORY_MAX:
            return
        self._held.sort(key=self._order)
        if self._last is None or self._order(self._held[0]) < self._last:
            self._runs.append([])
        self._last = self._order(self._held[-1])
        for start in range(0, len(self._held), CHUNK_ENTRIES):
            self._runs[-1].append(self._spill.put(self._held[start : start + CHUNK_ENTRIES]))
        self._held = []

    def merged(self) -> Iterator[T]:
        """The rows, sorted. Repeatable."""
        self._held.sort(key=self._order)
        return heapq.merge(*map(self._run, self._runs), self._held, key=self._order)

    def _run(self, chunks: list[Chunk]) -> Iterator[T]:
        for chunk in chunks:
            yield from self._spill.get(chunk)


def _once(entries: Iterable[Entry], name: str) -> Iterator[Entry]:
    before: Entry | None = None
    for entry in entries:
        if before is not None and entry_order(before) == entry_order(entry):
            if not is_same_line(before, entry):
                one, other = (each.version_id or each.etag for each in (before, entry))
                raise ManifestError(
                    f"{name} names two versions of {entry.key!r}: {one} and {other}"
                )
            continue
        yield entry
        before = entry

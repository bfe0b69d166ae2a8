"""Sorts entries by bucket and then by key in the order of UTF-8, on the disk where they are many."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from s3mount.errors import ManifestError
from s3mount.manifest.model import Entry, is_same_line
from s3mount.manifest.spill_file import Chunk, Spill

ENTRIES_IN_MEMORY_MAX = 100_000
"""Entries that are sorted at once; about 50 MB."""
CHUNK_ENTRIES = 1000
"""Entries of each run that are in memory while runs are merged."""


def _order(entry: Entry) -> tuple[str, str]:
    # Text compares by code points, which is the order of UTF-8.
    return entry.bucket, entry.key


def sorted_entries(entries: Iterable[Entry], name: str) -> Iterator[Entry]:
    """``entries`` sorted, each key once. ``name`` is what an error calls them.

    What is sorted already goes through in few runs. All faults show before the first entry comes: raises
    ManifestError when a key is named with two different versions, LocalDiskError when there is no room for what
    does not fit into memory.
    """
    spill: Spill[Entry] = Spill(Entry)
    try:
        runs = Runs(entries, spill)
        for _ in _once(runs.merged(), name):
            pass
        yield from _once(runs.merged(), name)
    finally:
        spill.close()


class Runs:
    """All of ``entries``, which are read at once, in sorted runs.

    What does not fit into memory goes to ``spill``. Raises what the entries raise, and LocalDiskError.
    """

    def __init__(self, entries: Iterable[Entry], spill: Spill[Entry]) -> None:
        self._spill = spill
        self._runs: list[list[Chunk]] = []
        self._held: list[Entry] = []
        last: tuple[str, str] | None = None
        for entry in entries:
            self._held.append(entry)
            if len(self._held) < ENTRIES_IN_MEMORY_MAX:
                continue
            self._held.sort(key=_order)
            if last is None or _order(self._held[0]) < last:
                self._runs.append([])
            last = _order(self._held[-1])
            for start in range(0, len(self._held), CHUNK_ENTRIES):
                self._runs[-1].append(spill.put(self._held[start : start + CHUNK_ENTRIES]))
            self._held = []
        self._held.sort(key=_order)

    def merged(self) -> Iterator[Entry]:
        """The entries, sorted. Repeatable."""
        return heapq.merge(*map(self._run, self._runs), self._held, key=_order)

    def _run(self, chunks: list[Chunk]) -> Iterator[Entry]:
        for chunk in chunks:
            yield from self._spill.get(chunk)


def _once(entries: Iterable[Entry], name: str) -> Iterator[Entry]:
    before: Entry | None = None
    for entry in entries:
        if before is not None and _order(before) == _order(entry):
            if not is_same_line(before, entry):
                one, other = (each.version_id or each.etag for each in (before, entry))
                raise ManifestError(
                    f"{name} names two versions of {entry.key!r}: {one} and {other}"
                )
            continue
        yield entry
        before = entry

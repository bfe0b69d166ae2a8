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

    What is sorted already goes through in few runs. Raises ManifestError when a key is named with two
    different versions, LocalDiskError when there is no room for what does not fit into memory.
    """
    spill: Spill[Entry] = Spill(Entry)
    try:
        yield from _once(merged(entries, spill), name)
    finally:
        spill.close()


def merged(entries: Iterable[Entry], spill: Spill[Entry]) -> Iterator[Entry]:
    """All of ``entries``, which are read at once, sorted; what does not fit into memory goes to ``spill``."""
    runs: list[list[Chunk]] = []
    last: tuple[str, str] | None = None
    held: list[Entry] = []
    for entry in entries:
        held.append(entry)
        if len(held) < ENTRIES_IN_MEMORY_MAX:
            continue
        held.sort(key=_order)
        if last is None or _order(held[0]) < last:
            runs.append([])
        last = _order(held[-1])
        for start in range(0, len(held), CHUNK_ENTRIES):
            runs[-1].append(spill.put(held[start : start + CHUNK_ENTRIES]))
        held = []
    held.sort(key=_order)
    return heapq.merge(*(_run(spill, chunks) for chunks in runs), held, key=_order)


def _run(spill: Spill[Entry], chunks: list[Chunk]) -> Iterator[Entry]:
    for chunk in chunks:
        yield from spill.get(chunk)


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

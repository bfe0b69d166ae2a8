"""A manifest's entries in the order of their paths, in memory while they are few, else through a file."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator

from s3mount.manifest.model import Entry

HELD_MAX = 100_000
"""So many entries are sorted in memory, at about 500 bytes each."""


class Ordered:
    """The entries of a manifest by bucket and key. To be closed; ``entries`` may be gone through once.

    ``count`` tells how many, ``buckets`` how many buckets they are in. With one bucket keys are the
    paths, with several the bucket is the first folder.
    """

    def __init__(self, given: Iterable[Entry]) -> None:
        """Reads all of ``given``; raises what it raises, and LocalDiskError where many find no room."""
        source = iter(given)
        held = list(itertools.islice(source, HELD_MAX))
        self._close: Callable[[], None] | None = None
        if len(held) == HELD_MAX:
            self._spill(itertools.chain(held, source))
            return
        buckets = {entry.bucket for entry in held}
        held.sort(key=operator.attrgetter("key"))
        if len(buckets) > 1:
            held.sort(key=operator.attrgetter("bucket"))
        self.count, self.buckets = len(held), len(buckets)
        self.entries = iter(held)

    def _spill(self, source: Iterator[Entry]) -> None:
        # What these load in turn takes longer than a small checkout with nothing to do.
        from s3mount.manifest.external_sort import Runs, entry_order
        from s3mount.manifest.spill_file import Spill

        buckets: set[str] = set()
        count = 0

        def counted() -> Iterator[Entry]:
            nonlocal count
            for entry in source:
                buckets.add(entry.bucket)
                count += 1
                yield entry

        spill: Spill[Entry] = Spill(Entry)
        self._close = spill.close
        try:
            self.entries = Runs.of(counted(), spill, entry_order).merged()
        except BaseException:
            self.close()
            raise
        self.count, self.buckets = count, len(buckets)

    def close(self) -> None:
        """Remove the file, if there is one. Repeatable."""
        if self._close is not None:
            self._close()

"""Which byte ranges of a sparse file are there: a sorted list of disjoint half-open ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Extents:
    """A set of byte offsets, kept as maximal ranges. Adding at the end is O(1).

    ``total`` is the number of offsets in the set.
    """

    __slots__ = ("_starts", "_stops", "total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total = 0
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Put ``[start, stop)`` in; touching ranges are merged."""
        if stop <= start:
            return
        starts, stops = self._starts, self._stops
        if stops and stops[-1] == start:
            stops[-1] = stop
            self.total += stop - start
            return
        first = bisect_left(stops, start)
        last = bisect_right(starts, stop)
        self.total += stop - start
        if first < last:
            overlapping = zip(starts[first:last], stops[first:last], strict=True)
            self.total -= sum(min(b, stop) - max(a, start) for a, b in overlapping)
            start = min(start, starts[first])
            stop = max(stop, stops[last - 1])
        starts[first:last] = [start]
        stops[first:last] = [stop]

    def cut(self, size: int) -> None:
        """Take out everything from offset ``size`` on."""
        keep = bisect_left(self._starts, size)
        self.total -= sum(
            b - a for a, b in zip(self._starts[keep:], self._stops[keep:], strict=True)
        )
        del self._starts[keep:], self._stops[keep:]
        if self._stops and self._stops[-1] > size:
            self.total -= self._stops[-1] - size
            self._stops[-1] = size

    def remove(self, start: int, stop: int) -> None:
        """Take ``[start, stop)`` out."""
        starts, stops = self._starts, self._stops
        first, last = bisect_right(stops, start), bisect_left(starts, stop)
        if first >= last or stop <= start:
            return
        touched = list(zip(starts[first:last], stops[first:last], strict=True))
        ends = ((touched[0][0], start), (stop, touched[-1][1]))
        left = [(a, b) for a, b in ends if a < b]
        self.total += sum(b - a for a, b in left) - sum(b - a for a, b in touched)
        starts[first:last] = [a for a, _ in left]
        stops[first:last] = [b for _, b in left]

    def covers(self, start: int, stop: int) -> bool:
        """Is every byte of ``[start, stop)`` in?"""
        if stop <= start:
            return True
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and self._stops[at] >= stop

    def touches(self, start: int, stop: int) -> bool:
        """Is any byte of ``[start, stop)`` in?"""
        at = bisect_right(self._stops, start)
        return at < len(self._starts) and self._starts[at] < stop and stop > start

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges of ``[start, stop)`` that are not in, in order."""
        gaps = []
        at = bisect_right(self._stops, start)
        while start < stop and at < len(self._starts) and self._starts[at] < stop:
            if self._starts[at] > start:
                gaps.append((start, self._starts[at]))
            start = max(start, self._stops[at])
            at += 1
        if start < stop:
            gaps.append((start, stop))
        return gaps

"""How many requests may be under way at once: grows on success, shrinks when the store pleads."""

from __future__ import annotations

START = 32
FAILING_SHARE = 0.1
"""Overdue requests shrink the window from this share on: single hung connections are no load."""
_MEMORY = 0.05


class Window:
    """Additive increase, multiplicative decrease (Chiu and Jain, 1989), as TCP does it.

    Below ``threshold`` every success adds one (slow start), above it a window's worth of
    successes adds one. One shrinking serves all the requests that were under way with it: what
    was started before the last shrinking does not shrink again.
    """

    def __init__(self, maximum: int, start: int = START) -> None:
        self.maximum = max(1, maximum)
        self._size = float(min(start, self.maximum))
        self._threshold = float(self.maximum)
        self._failing = 0.0
        self._shrunk_at_s = float("-inf")
        self._cap = self.maximum
        self.is_held = False
        """Does it stay as it is, however well requests end?"""

    @property
    def size(self) -> int:
        """Requests that may be under way, at least 1."""
        return min(int(self._size), self._cap)

    def cap(self, most: int) -> None:
        """No more than this for now, whatever else it would be; ``maximum`` lifts it."""
        self._cap = max(1, min(most, self.maximum))

    def narrow(self, size: float) -> None:
        """Allow fewer; from there on it grows by one for a window's worth of successes."""
        self._size = max(1.0, min(self._size, size))
        self._threshold = max(2.0, self._size)

    def put_back(self, size: float) -> None:
        """Allow so many again."""
        self._size = min(max(self._size, size), float(self.maximum))
        self._threshold = float(self.maximum)

    def succeeded(self) -> None:
        """A request ended well."""
        self._failing -= self._failing * _MEMORY
        if self._size < self.maximum and not self.is_held:
            step = 1.0 if self._size < self._threshold else 1.0 / self._size
            self._size = min(self._size + step, float(self.maximum))

    def throttled(self, started_at_s: float, now_s: float) -> None:
        """The store asked for fewer requests, to one begun at ``started_at_s``."""
        self._shrink(0.5, started_at_s, now_s)

    def overdue(self, started_at_s: float, now_s: float) -> None:
        """A request begun at ``started_at_s`` had no answer in time."""
        self._failing += (1.0 - self._failing) * _MEMORY
        if self._failing > FAILING_SHARE:
            self._shrink(0.7, started_at_s, now_s)

    def _shrink(self, factor: float, started_at_s: float, now_s: float) -> None:
        if started_at_s <= self._shrunk_at_s:
            return
        self._shrunk_at_s = now_s
        self.narrow(self.size * factor)

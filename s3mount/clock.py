"""Time as an argument: the real clocks, and trio's virtual one for tests.

Deadlines use trio's clock (``trio.current_time``), which tests replace by ``MockClock``.
What is stored or shown uses wall time, through a ``WallClock`` that tests replace as well.
"""

from __future__ import annotations

import time
from typing import Protocol

TIME_NS_MIN = -9_223_372_036 * 10**9
TIME_NS_MAX = 18_446_744_073 * 10**9
"""The times of a file that MessagePack, and so the journal, can carry: 1677 to 2554."""
DATE_NS_MAX = 9_223_372_036 * 10**9
"""What 64 bits with a sign can carry, as SQLite's and Parquet's integers do: up to 2262."""


def clamped_ns(time_ns: int, latest_ns: int = TIME_NS_MAX) -> int:
    """The time, or the nearest one that can be kept.

    >>> clamped_ns(5), clamped_ns(-(10**30)), clamped_ns(10**30) == TIME_NS_MAX
    (5, -9223372036000000000, True)
    """
    return min(max(time_ns, TIME_NS_MIN), latest_ns)


class WallClock(Protocol):
    """Where wall time comes from."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch; may jump when the machine's clock is set."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return time.time_ns()


class ManualClock:
    """A wall clock that moves only when told to."""

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds``."""
        self._now_ns += int(seconds * 1e9)

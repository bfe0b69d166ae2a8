"""Time as an argument: the real clocks, and trio's virtual one for tests.

Deadlines use trio's clock (``trio.current_time``), which tests replace by ``MockClock``.
What is stored or shown uses wall time, through a ``WallClock`` that tests replace as well.
"""

from __future__ import annotations

import time
from typing import Protocol


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

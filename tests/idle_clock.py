"""A clock for tests whose sockets are real: only waiting takes time, working takes none.

So a busy machine, on which everything takes longer, does not make answers late, as long as both
ends of the sockets are served by the test's own loop.
"""

from __future__ import annotations

import time

import trio


class IdleClock(trio.abc.Clock, trio.abc.Instrument):
    """Time of its loop's waiting, ``rate`` times as fast. To be given to ``trio.run`` as clock and as instrument.

    A wait that the machine lets last longer than was asked for counts as what was asked for.
    """

    def __init__(self, rate: float = 1.0) -> None:
        self._rate = rate
        self._now = 0.0
        self._began = 0.0

    def start_clock(self) -> None:
        """Nothing to be done."""

    def current_time(self) -> float:
        """Seconds since the start."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """How many real seconds are left until ``deadline``."""
        return max(0.0, (deadline - self._now) / self._rate)

    def before_io_wait(self, timeout: float) -> None:
        """The loop has nothing to do."""
        self._began = time.perf_counter()

    def after_io_wait(self, timeout: float) -> None:
        """It has, or its time is over."""
        waited = min(time.perf_counter() - self._began, timeout)
        self._now += waited * self._rate

"""The window on a simulated line: a rate, a round trip, a queue, and somebody else's traffic."""

from __future__ import annotations

import pytest

from s3mount.flow.congestion import (
    FLOOR,
    HOLD_S,
    KNOWN_FOR_S,
    MINUTE_S,
    MINUTES,
    Gradient,
    RoundTrip,
)
from s3mount.flow.window import Window

ROUND_S = 1.0


class Line:
    """Transfers over a line: each alone moves ``each`` bytes a second, all together ``rate`` at most.

    Whatever asks for more than the line carries fills its queue, as TCP does. ``others`` are transfers of
    somebody else, which take their share.
    """

    def __init__(
        self,
        window: Window,
        *,
        rate: float,
        each: float,
        base_s: float = 0.05,
        full_s: float = 0.4,
        others: int = 0,
    ) -> None:
        self.window = window
        self.gradient = Gradient(window)
        self._trip = RoundTrip()
        self._base_s, self._full_s = base_s, full_s
        self.rate, self.each, self.others = rate, each, others
        self.moved = 0
        self.now_s = 0.0
        self._trip.queue_s(self.now_s, base_s)

    def share(self, ours: int) -> float:
        """Bytes a second that ``ours`` transfers move."""
        wanted = (ours + self.others) * self.each
        return ours * self.each * min(1.0, self.rate / wanted)

    def run(self, seconds: float, *, under_way: int | None = None) -> float:
        """Bytes a second over that time; by default as many transfers are under way as may be."""
        before, until_s = self.moved, self.now_s + seconds
        while self.now_s < until_s:
            ours = self.window.size if under_way is None else min(under_way, self.window.size)
            self.moved += int(self.share(ours) * ROUND_S)
            self.now_s += ROUND_S
            is_full = (ours + self.others) * self.each > self.rate
            trip_s = self._base_s + (self._full_s if is_full else 0.0)
            queue_s = self._trip.queue_s(self.now_s, trip_s)
            self.gradient.round(self.now_s, self._base_s, queue_s, self.moved, ours)
            for _ in range(ours):
                self.window.succeeded()
        return (self.moved - before) / seconds


def test_a_queue_of_our_own_shrinks_the_window_and_costs_nothing() -> None:
    window = Window(128)
    line = Line(window, rate=2.5e6, each=1e6)
    line.run(60)
    assert window.size <= 2 * FLOOR
    assert line.run(60) == pytest.approx(2.5e6, rel=0.01)


def test_without_a_queue_the_window_grows_to_its_bound() -> None:
    window = Window(128)
    line = Line(window, rate=1e9, each=1e6)
    line.run(20)
    assert window.size == 128


def test_a_line_that_loses_gets_all_the_transfers_that_it_takes() -> None:
    """Each is slow, and together they fill nothing."""
    window = Window(128)
    line = Line(window, rate=2.5e6, each=1.9e4)
    assert line.run(60) > 2.3e6
    assert window.size == 128


def test_a_queue_of_others_alone_does_not_shrink_it() -> None:
    """Our throughput goes with the window, as theirs fills the line: shrinking would only cost."""
    window = Window(128, start=32)
    line = Line(window, rate=1e9, each=1e6, others=10_000)
    with_all = line.share(32)
    assert line.run(200) > 0.9 * with_all
    assert window.size >= 32


def test_it_yields_to_others_down_to_the_floor_while_ours_is_most_of_it() -> None:
    window = Window(128)
    line = Line(window, rate=2.5e6, each=2.5e6, others=1)
    line.run(60)
    assert window.size <= 2 * FLOOR


def test_it_grows_again_when_the_line_is_free() -> None:
    window = Window(128)
    line = Line(window, rate=2.5e6, each=1e6)
    line.run(60)
    line.rate = 1e9
    line.run(200)
    assert window.size > 64


def test_who_uses_half_of_the_window_learns_nothing_of_it() -> None:
    window = Window(128, start=100)
    line = Line(window, rate=1e6, each=1e6)
    line.run(30, under_way=20)
    assert window.size == 100


def test_a_window_that_was_put_back_is_left_alone_for_a_while() -> None:
    window = Window(64, start=64)
    gradient = Gradient(window)
    total, now_s, sizes = 0, 0.0, []
    while now_s < HOLD_S:
        total += window.size * 1000
        gradient.round(now_s, 0.05, 1.0, total, window.size)
        sizes.append(window.size)
        now_s += 1.0
    assert min(sizes) == 32
    assert sizes[-3:] == [64] * 3


def test_a_longer_way_is_believed_after_ten_minutes() -> None:
    trip = RoundTrip()
    assert trip.queue_s(0.0, 0.05) == 0
    assert trip.queue_s(1.0, 0.25) == pytest.approx(0.2)
    assert trip.queue_s(2.0, 0.03) == 0
    for minute in range(1, MINUTES):
        assert trip.queue_s(minute * MINUTE_S, 0.25) == pytest.approx(0.22)
    assert trip.queue_s(MINUTES * MINUTE_S, 0.25) == 0
    assert trip.base_s == 0.25


def test_what_an_earlier_run_knew_counts_at_first() -> None:
    trip = RoundTrip(0.05)
    assert trip.queue_s(1e6, 0.25) == pytest.approx(0.2)
    assert trip.queue_s(1e6 + KNOWN_FOR_S - 1, 0.25) == pytest.approx(0.2)
    assert trip.queue_s(1e6 + KNOWN_FOR_S, 0.25) == 0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.flow.rate import PIECE_BYTES_MIN, YIELD_MIN, TokenBucket, Yielding


@given(
    st.floats(1e3, 1e9),
    st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 2)), min_size=1, max_size=50),
)
def test_no_more_than_the_rate_is_moved(rate: float, steps: list[tuple[int, float]]) -> None:
    bucket, now_s, moved = TokenBucket(rate), 100.0, 0
    for n, idle_s in steps:
        moved += n
        now_s += bucket.moved(n, now_s)
        assert moved <= rate * (now_s - 100.0 + 0.11)
        now_s += idle_s


def test_those_who_share_it_wait_in_turn() -> None:
    bucket = TokenBucket(1000)
    assert [round(bucket.moved(1000, 5.0), 3) for _ in range(3)] == [0.9, 1.9, 2.9]


def test_no_rate_costs_nothing() -> None:
    bucket = TokenBucket()
    assert bucket.moved(1 << 40, 1.0) == 0


def test_a_rate_that_is_changed_holds_at_once() -> None:
    bucket = TokenBucket(1000)
    assert bucket.moved(10_000, 0.0) == pytest.approx(9.9)
    bucket.set_rate(10_000, 0.0)
    assert bucket.moved(1000, 0.0) == pytest.approx(1.09)
    bucket.set_rate(0, 0.0)
    assert bucket.moved(1000, 0.0) == 0
    bucket.set_rate(1, 0.0)
    assert bucket.piece_bytes == PIECE_BYTES_MIN


class Line:
    """A line of a rate beside what others take of it; more than it carries makes a queue."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.yielding = Yielding()

    def run(self, rounds: int, others: float = 0.0) -> float:
        """Bytes a second that were moved, on average."""
        moved, queue_s = 0.0, 0.0
        for _ in range(rounds):
            wanted = self.yielding.bytes_per_s
            got = min(wanted, max(self.rate - others, 0.05 * self.rate))
            queue_s = 0.1 if wanted + others > self.rate else 0.0
            moved += got
            self.yielding.round(queue_s, got)
        return moved / rounds


def test_it_takes_most_of_a_line_that_nobody_wants() -> None:
    line = Line(2.5e6)
    line.run(20)
    assert line.run(100) > 0.6 * 2.5e6


def test_it_leaves_the_line_to_others_and_comes_back() -> None:
    line = Line(2.5e6)
    line.run(50)
    assert line.run(60, others=2.5e6) < 0.1 * 2.5e6
    assert line.yielding.bytes_per_s <= 2 * YIELD_MIN
    line.run(60)
    assert line.run(60) > 0.6 * 2.5e6


def test_who_has_nothing_to_send_does_not_grow() -> None:
    yielding = Yielding()
    before = yielding.bytes_per_s
    for _ in range(100):
        yielding.round(0.0, 10.0)
    assert yielding.bytes_per_s == before

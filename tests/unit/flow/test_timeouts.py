from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.config import TimeoutSettings
from s3mount.flow.timeouts import Timeouts

MIB = 1 << 20
USUAL = TimeoutSettings()


def test_the_first_allowance_follows_the_formula_at_one_megabyte_per_second() -> None:
    allowance = Timeouts().allowance("put", 8 * 10**6, 0)
    assert allowance.answer_s == USUAL.answer_start_s
    assert allowance.total_s == pytest.approx(USUAL.answer_start_s + 0.5 + 1.5 * 8)


def test_what_the_store_has_to_do_is_added() -> None:
    plain = Timeouts().allowance("delete_many", 0, 0)
    many = Timeouts().allowance("delete_many", 0, 0, work_s=20.0)
    assert many.answer_s == pytest.approx(plain.answer_s + 20)
    assert many.total_s == pytest.approx(plain.total_s + 20)


@pytest.mark.parametrize("retry", range(6))
def test_each_retry_may_take_half_as_long_again(retry: int) -> None:
    timeouts = Timeouts()
    first, later = timeouts.allowance("put", MIB, 0), timeouts.allowance("put", MIB, retry)
    assert later.answer_s == pytest.approx(min(first.answer_s * 1.5**retry, USUAL.answer_max_s))
    assert later.connect_s == pytest.approx(first.connect_s * 1.5**retry)
    body_s = first.total_s - first.answer_s
    assert later.total_s - later.answer_s == pytest.approx(body_s * 1.5**retry)


def test_the_average_keeps_seven_tenths_of_its_old_value() -> None:
    timeouts = Timeouts()
    timeouts.transferred("put", 10 * MIB, 0.0)
    assert timeouts.s_per_byte("put") == pytest.approx(0.7e-6)
    timeouts.transferred("put", 10 * 10**6, 20.0)
    assert timeouts.s_per_byte("put") == pytest.approx(0.7 * 0.7e-6 + 0.3 * 2e-6)
    assert timeouts.s_per_byte("get") == 1e-6


def test_small_bodies_hardly_count() -> None:
    timeouts = Timeouts()
    for _ in range(10):
        timeouts.transferred("put", 4096, 0.2)  # 50 us a byte, all of it latency
    assert timeouts.s_per_byte("put") < 2e-6
    timeouts.transferred("put", 0, 5.0)
    assert timeouts.s_per_byte("put") < 2e-6


def test_a_fast_store_is_given_up_soon_and_a_slow_one_is_waited_for() -> None:
    fast, slow = Timeouts(), Timeouts()
    for _ in range(50):
        fast.answered("get", 0.02)
        slow.answered("get", 2.0)
    assert fast.allowance("get", 0, 0).answer_s == USUAL.answer_min_s
    assert slow.allowance("get", 0, 0).answer_s >= 6
    # An answer that takes twice as long as all before is in time, and makes room for longer ones.
    slow.answered("get", 4.0)
    assert slow.allowance("get", 0, 0).answer_s > 6


def test_no_latency_makes_a_hung_request_wait_for_ever() -> None:
    timeouts = Timeouts()
    for _ in range(50):
        timeouts.answered("get", 500.0)
    assert timeouts.allowance("get", 0, 30).answer_s == USUAL.answer_max_s


def test_what_moves_is_left_alone_and_what_stopped_is_not() -> None:
    allowance = Timeouts().allowance("get", 8 * MIB, 0)
    total_s = allowance.total_s
    assert allowance.deadline_s(0.1, 0, 8 * MIB) == total_s
    # 100 KB/s: would be overdue by the formula, but moves and ends within the limit.
    late = allowance.deadline_s(60, 6_000_000, 8 * MIB)
    assert late == pytest.approx(60 + allowance.answer_s)
    # 1 KB/s never ends within the limit.
    assert allowance.deadline_s(10, 10_000, 8 * MIB) == total_s


@given(
    elapsed_s=st.floats(0, 1e5),
    done=st.integers(0, 8 * MIB),
    retry=st.integers(0, 20),
)
def test_no_progress_extends_a_deadline_beyond_its_limit(
    elapsed_s: float, done: int, retry: int
) -> None:
    allowance = Timeouts().allowance("get", 8 * MIB, retry)
    deadline_s = allowance.deadline_s(elapsed_s, done, 8 * MIB)
    assert allowance.total_s <= deadline_s <= max(allowance.limit_s, allowance.total_s)
    assert allowance.answer_s <= allowance.total_s

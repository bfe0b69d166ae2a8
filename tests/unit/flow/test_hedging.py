from __future__ import annotations

import random

import pytest

from s3mount.flow.hedging import LATE_S_MIN, SAMPLES_MIN, SAVED_MAX, SHARE, Stragglers


def test_nothing_is_late_before_enough_is_known() -> None:
    stragglers = Stragglers()
    for _ in range(SAMPLES_MIN - 1):
        stragglers.took("get", 1000, 0.5)
        assert stragglers.late_after_s("get", 1000) is None


def test_late_is_what_one_in_a_hundred_takes() -> None:
    stragglers, chance = Stragglers(), random.Random(1)
    for _ in range(600):
        stragglers.took("get", 1000, chance.expovariate(5))
    late_s = stragglers.late_after_s("get", 1000)
    assert late_s is not None
    assert 0.6 < late_s < 1.5
    assert stragglers.late_after_s("get", 8 << 20) is None, "another size"
    assert stragglers.late_after_s("head", 1000) is None, "another kind"


def test_where_all_is_fast_nothing_is_late_that_nobody_notices() -> None:
    stragglers = Stragglers()
    for _ in range(200):
        stragglers.took("get", 1000, 0.001)
    assert stragglers.late_after_s("get", 1000) == LATE_S_MIN


@pytest.mark.parametrize("share_hung", [0.02, 0.5, 1.0])
def test_second_requests_stay_within_a_few_in_a_hundred(share_hung: float) -> None:
    stragglers, chance = Stragglers(), random.Random(2)
    for _ in range(100):
        stragglers.took("get", 1000, 0.2)
    asked = 0
    for _ in range(5000):
        late_s = stragglers.late_after_s("get", 1000)
        assert late_s is not None
        if chance.random() < share_hung and stragglers.may_ask_again():
            asked += 1
            # It is told as what was late, and does not move what is.
            stragglers.took("get", 1000, late_s)
        else:
            stragglers.took("get", 1000, 0.2)
    assert asked <= SHARE * 5000 + SAVED_MAX
    assert asked > 0.7 * min(share_hung, SHARE) * 5000
    assert stragglers.late_after_s("get", 1000) == pytest.approx(0.4, rel=0.01)

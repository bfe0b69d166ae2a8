from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from s3mount.flow.backoff import (
    BASE_S,
    CAP_S,
    RETRY_AFTER_MAX_S,
    THROTTLED_BASE_S,
    Backoff,
)


@given(retry=st.integers(1, 200), throttled=st.booleans(), seed=st.integers())
def test_delays_grow_and_stay_below_the_cap(retry: int, throttled: bool, seed: int) -> None:
    base_s = THROTTLED_BASE_S if throttled else BASE_S
    delay_s = Backoff(random.Random(seed)).delay_s(retry, throttled=throttled)
    assert 0 <= delay_s <= min(CAP_S, base_s * 2.0 ** (retry - 1))


def test_the_jitter_covers_the_whole_interval() -> None:
    backoff = Backoff(random.Random(1))
    delays = [backoff.delay_s(5) for _ in range(2000)]
    assert min(delays) < 0.05
    assert max(delays) > 1.55
    assert 0.7 < sum(delays) / len(delays) < 0.9


@given(asked_s=st.floats(-10, 10_000), retry=st.integers(1, 20), seed=st.integers())
def test_a_store_that_asks_for_a_pause_gets_at_least_that(
    asked_s: float, retry: int, seed: int
) -> None:
    delay_s = Backoff(random.Random(seed)).delay_s(retry, retry_after_s=asked_s)
    pause_s = min(max(asked_s, 0), RETRY_AFTER_MAX_S)
    assert pause_s <= delay_s <= pause_s + CAP_S / 2

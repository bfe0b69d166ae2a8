"""How long to wait before a request is tried again."""

from __future__ import annotations

import random

BASE_S = 0.1
THROTTLED_BASE_S = 0.5
CAP_S = 20.0
RETRY_AFTER_MAX_S = 120.0
"""A store that asks for a longer pause than this is asked again after this."""


class Backoff:
    """Exponential back-off with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").

    Full jitter spreads the retries of many clients over the whole interval; of the variants
    compared there it needs the fewest calls.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def delay_s(
        self, retry: int, *, throttled: bool = False, retry_after_s: float | None = None
    ) -> float:
        """Seconds to wait before try number ``retry`` (1 is the first repetition).

        Never shorter than what the store asked for by ``Retry-After``, which is jittered upwards.
        """
        base_s = THROTTLED_BASE_S if throttled else BASE_S
        span_s = min(CAP_S, base_s * 2.0 ** min(retry - 1, 30))
        jitter_s = self._rng.uniform(0, span_s)
        if retry_after_s is None:
            return jitter_s
        return min(max(retry_after_s, 0.0), RETRY_AFTER_MAX_S) + min(jitter_s, span_s / 2)

"""How fast bytes may go: by a rate that somebody set, and by one that yields to others on the same line."""

from __future__ import annotations

from collections import deque

PIECE_S = 0.1
"""Bytes go in pieces of what the rate allows in so long, within these bounds."""
PIECE_BYTES_MIN = 4 << 10
PIECE_BYTES_MAX = 1 << 20
YIELD_TARGET_S = 0.025
"""A queue of this and it is time to yield: a quarter of what LEDBAT may cause (RFC 6817). Where others filled the queue
before the first round trip was met, only how much it swings tells of it, so that more would be too much."""
YIELD_FILTER = 4
"""The least of so many round trips counts, as one may have met a busy machine and no queue (RFC 6817, 2.4.2)."""
YIELD_START = 256 << 10
YIELD_MIN = 32 << 10
"""Bytes a second: what begins, and what is left where others want everything."""
YIELD_MAX = 1 << 40
_FAST, _SLOW, _CALMER = 2.0, 1.1, 1.05
_LESS = 0.5


class TokenBucket:
    """A rate in bytes a second; 0 is none. Whoever moved bytes waits afterwards, in turn with all others."""

    def __init__(self, bytes_per_s: float = 0.0) -> None:
        self._rate = bytes_per_s
        self._paid_until_s = float("-inf")

    @property
    def bytes_per_s(self) -> float:
        """The rate."""
        return self._rate

    def set_rate(self, bytes_per_s: float, now_s: float) -> None:
        """From now on this rate; what was moved already is paid for at it."""
        owed = max(0.0, self._paid_until_s - now_s) * self._rate
        self._rate = bytes_per_s
        self._paid_until_s = now_s + owed / bytes_per_s if bytes_per_s else now_s

    @property
    def piece_bytes(self) -> int:
        """How much should be moved at once."""
        if not self._rate:
            return PIECE_BYTES_MAX
        return min(max(int(self._rate * PIECE_S), PIECE_BYTES_MIN), PIECE_BYTES_MAX)

    def moved(self, n: int, now_s: float) -> float:
        """``n`` bytes were moved: seconds to wait before any more."""
        if not self._rate:
            return 0.0
        # A moment without traffic saves up one piece, no more.
        begins_s = max(self._paid_until_s, now_s - PIECE_S)
        self._paid_until_s = begins_s + n / self._rate
        return max(0.0, self._paid_until_s - now_s)


class Yielding:
    """A rate that grows while no queue stands before the line and halves when one does.

    As LEDBAT does (RFC 6817), with the multiplicative decrease that LEDBAT++ has (draft-irtf-iccrg-ledbat-plus-plus):
    a queue is made by who does not yield, so this moves what others leave.
    """

    def __init__(self, target_s: float = YIELD_TARGET_S) -> None:
        self._target_s = target_s
        self._grows = _FAST
        self._recent: deque[float] = deque(maxlen=YIELD_FILTER)
        self.bytes_per_s = float(YIELD_START)

    def round(self, queue_s: float, moved_per_s: float) -> None:
        """In the last round packets waited ``queue_s``, and so much was moved by who obeys this rate."""
        self._recent.append(queue_s)
        least_s = min(self._recent)
        if least_s > self._target_s:
            if len(self._recent) == YIELD_FILTER:
                self._recent.clear()
                self._grows = _SLOW
                least = min(self.bytes_per_s, max(moved_per_s, YIELD_MIN))
                self.bytes_per_s = max(float(YIELD_MIN), least * _LESS)
        elif 2 * moved_per_s > self.bytes_per_s:
            # Who has nothing to send learns nothing of the line. The longer it is calm, the faster it grows.
            self._grows = min(self._grows * _CALMER, _FAST)
            room = 1 - least_s / self._target_s
            grown = self.bytes_per_s * (1 + (self._grows - 1) * room)
            self.bytes_per_s = min(grown, float(YIELD_MAX))

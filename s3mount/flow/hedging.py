"""When an answer is so late that asking again is likely to bring it sooner, and how often that may be done.

Hedged requests (Dean and Barroso, "The Tail at Scale", CACM 2013): a second request once the first is later than
99 in 100 of its kind. A budget keeps them to a few in a hundred: where all are late there is no more load.
"""

from __future__ import annotations

from collections import deque

QUANTILE = 0.99
SAMPLES = 300
SAMPLES_MIN = 50
"""Before so many of a kind nobody knows what is late."""
LEARN_EVERY = 25
LATE_S_MIN = 0.1
"""Sooner than this nobody who waits notices."""
SHARE = 0.03
"""Second requests, of all that are watched."""
SAVED_MAX = 3.0


class _Class:
    """Requests of one kind and about one size."""

    __slots__ = ("late_s", "new", "taken")

    def __init__(self) -> None:
        self.taken: deque[float] = deque(maxlen=SAMPLES)
        self.new = 0
        self.late_s: float | None = None

    def learn(self, seconds: float) -> None:
        self.taken.append(seconds)
        self.new += 1
        if self.new >= LEARN_EVERY and len(self.taken) >= SAMPLES_MIN:
            self.new = 0
            ordered = sorted(self.taken)
            usual_s = ordered[len(ordered) // 2]
            late_s = ordered[min(int(QUANTILE * len(ordered)), len(ordered) - 1)]
            self.late_s = max(late_s, 2 * usual_s, LATE_S_MIN)


class Stragglers:
    """Knows what is late, by kind and size, and holds the budget."""

    def __init__(self) -> None:
        self._classes: dict[tuple[str, int], _Class] = {}
        self._saved = 0.0

    def _class(self, kind: str, size_bytes: int) -> _Class:
        # Sizes in steps of four: a transfer's time grows with them.
        name = (kind, size_bytes.bit_length() >> 1)
        found = self._classes.get(name)
        if found is None:
            found = self._classes[name] = _Class()
        return found

    def late_after_s(self, kind: str, size_bytes: int) -> float | None:
        """A request begins: seconds after which it is late; ``None`` while that is not known."""
        self._saved = min(self._saved + SHARE, SAVED_MAX)
        return self._class(kind, size_bytes).late_s

    def took(self, kind: str, size_bytes: int, seconds: float) -> None:
        """A request was answered, whole, in so long.

        Of one that was given up as late it is what was late: neither do those that hang make all wait longer, nor
        those that are given up less.
        """
        self._class(kind, size_bytes).learn(seconds)

    def may_ask_again(self) -> bool:
        """Is there budget for a second request? It is spent then."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True

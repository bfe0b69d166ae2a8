"""How many requests the network carries: fewer where a queue grows before it and more bring no more bytes.

The window shrinks by the gradient of round trips, as Gradient2 of Netflix's concurrency-limits does
(github.com/Netflix/concurrency-limits), but by that of the network and not of answers, which take as long as the store
likes: TCP's own, as TCP Vegas compares them (Brakmo and Peterson, 1995). A queue is allowed for up to a fixed delay,
as in LEDBAT (RFC 6817), so that a line without one is never held back. And a queue may be somebody else's: where a
smaller window moves less, it is put back.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

TARGET_S = 0.1
"""So much queueing is nobody's harm (RFC 6817, 2.5: at most 100 ms)."""
FLOOR = 4
"""No queue shrinks the window below this: one hung connection must not stop the rest."""
STEEPEST = 0.5
MINUTE_S = 60.0
MINUTES = 10
"""The least round trip is looked for in so many minutes, as routes change (RFC 6817, 2.4.2)."""
KNOWN_FOR_S = 120.0
"""What an earlier run met counts for so long: this machine may be elsewhere now."""
SETTLE_S = 2.0
"""What a smaller window moves is measured for so long."""
ELASTICITY = 0.5
"""A tenth less of the window may cost a twentieth of the bytes."""
HOLD_S, HOLD_MAX_S = 10.0, 300.0
"""So long a window that was put back is left alone; twice as long each time."""


class Narrowable(Protocol):
    """What a gradient acts on."""

    is_held: bool
    """Does it stay as it is, however well requests end?"""

    @property
    def size(self) -> int:
        """Requests that may be under way."""
        ...

    def narrow(self, size: float) -> None:
        """Allow fewer."""
        ...

    def put_back(self, size: float) -> None:
        """Allow so many again."""
        ...


class RoundTrip:
    """The least round trip of the last minutes, and how much longer one is: the queue. Times are of one clock.

    ``known_s``: the least that an earlier run met, 0 for none; it counts for KNOWN_FOR_S.
    """

    def __init__(self, known_s: float = 0.0) -> None:
        self._least: deque[tuple[float, float]] = deque()
        if known_s > 0:
            self._least.append((0.0, known_s))
        self._begun = False

    @property
    def base_s(self) -> float:
        """The least; 0 before any."""
        return min((each for _, each in self._least), default=0.0)

    def queue_s(self, now_s: float, sample_s: float) -> float:
        """How long a packet waited whose round trip took ``sample_s``."""
        if not self._begun:
            self._begun = True
            began_s = now_s + KNOWN_FOR_S - MINUTES * MINUTE_S
            self._least = deque((began_s, each) for _, each in self._least)
        if not self._least or now_s - self._least[-1][0] >= MINUTE_S:
            self._least.append((now_s, sample_s))
        elif sample_s < self._least[-1][1]:
            self._least[-1] = (self._least[-1][0], sample_s)
        while now_s - self._least[0][0] >= MINUTES * MINUTE_S:
            self._least.popleft()
        return max(0.0, sample_s - self.base_s)


class _Trial(NamedTuple):
    """A window that was made smaller, and what the larger one moved."""

    size: int
    bytes_per_s: float


class Gradient:
    """Narrows a window while a queue stands and that costs no throughput. Fed with a round of about a second each."""

    def __init__(self, window: Narrowable, target_s: float = TARGET_S, floor: int = FLOOR) -> None:
        self._window = window
        self._target_s = target_s
        self._floor = floor
        self._trial: _Trial | None = None
        self._settling: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None
        self._hold_s = HOLD_S
        self._held_until_s = float("-inf")

    def round(
        self, now_s: float, base_s: float, queue_s: float, bytes_total: int, under_way: int
    ) -> None:
        """Packets need ``base_s`` there and back and wait ``queue_s`` more; ``bytes_total`` were moved so far."""
        last, self._last = self._last, (now_s, bytes_total)
        window = self._window
        if self._trial is not None:
            self._judge(self._trial, now_s, bytes_total, under_way)
            return
        is_queue = queue_s > self._target_s
        window.is_held = is_queue and now_s >= self._held_until_s
        if not window.is_held or last is None or now_s <= last[0] or 2 * under_way < window.size:
            return
        gradient = max(STEEPEST, (base_s + self._target_s) / (base_s + queue_s))
        narrower = max(float(self._floor), window.size * gradient)
        if int(narrower) < window.size:
            self._trial = _Trial(window.size, (bytes_total - last[1]) / (now_s - last[0]))
            window.narrow(narrower)

    def _judge(self, trial: _Trial, now_s: float, bytes_total: int, under_way: int) -> None:
        window = self._window
        if self._settling is None:
            if under_way <= window.size:
                self._settling = (now_s, bytes_total)
            return
        began_s, began_bytes = self._settling
        if now_s - began_s < SETTLE_S:
            return
        self._trial = self._settling = None
        moved = (bytes_total - began_bytes) / (now_s - began_s)
        cut = 1 - window.size / trial.size
        if moved < trial.bytes_per_s * (1 - ELASTICITY * cut):
            window.put_back(trial.size)
            window.is_held = False
            self._held_until_s = now_s + self._hold_s
            self._hold_s = min(2 * self._hold_s, HOLD_MAX_S)
        else:
            self._hold_s = HOLD_S

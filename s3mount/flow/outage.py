"""Whether the store can be reached at all, decided from how requests end."""

from __future__ import annotations

from collections.abc import Callable

AWAY_AFTER_S = 2.0
"""The store counts as away once every try of this long failed to get an answer. A server that starts
again within that time is met by the tries of the requests themselves."""
FAILURES_MIN = 4
"""A few overdue requests in turn are hung connections: where one in 50 hangs, four in turn are one in 6 million."""
TRIAL_CONNECT_S = 1.0
"""While the store is away, a connection that reads takes at most so long."""
TRIAL_REST = 10.0
TRIAL_REST_S_MAX = 5.0
"""While the store is away, one request at a time is sent to see whether it is back; then none for so many
times what that took. A refused connection costs next to nothing, one that is never answered a second."""


class Outage:
    """A circuit breaker (Nygard, "Release It!", 2007): open while no try gets an answer.

    ``reason`` is empty while the store can be reached, else why it cannot; ``since_s`` is when the first of the
    failed tries began. ``on_change`` is called with every change of ``reason`` from or to empty.
    """

    def __init__(self, on_change: Callable[[str], None] = lambda reason: None) -> None:
        self.reason = ""
        self.since_s = 0.0
        self._on_change = on_change
        self._failures = 0
        self._answered_at_s = float("-inf")
        self._next_trial_s = 0.0

    def answered(self, now_s: float) -> None:
        """The store answered a request, whatever it said."""
        self._answered_at_s = now_s
        self._failures = 0
        if self.reason:
            self.reason = ""
            self._on_change("")

    def failed(self, began_s: float, now_s: float, reason: str) -> None:
        """A try that began at ``began_s`` got no answer. One that began before the last answer tells nothing."""
        if began_s < self._answered_at_s:
            return
        if not self._failures:
            self.since_s = began_s
        self.since_s = min(self.since_s, began_s)
        self._failures += 1
        if self.reason:
            rest_s = min(TRIAL_REST_S_MAX, TRIAL_REST * (now_s - began_s))
            self._next_trial_s = now_s + rest_s
        if self.reason or self._failures < FAILURES_MIN or now_s - self.since_s < AWAY_AFTER_S:
            return
        self.reason = reason
        self._on_change(reason)

    def may_try(self, now_s: float) -> bool:
        """May a request be sent now? While the store is away only one at a time may, and then rests."""
        if self.reason:
            if now_s < self._next_trial_s:
                return False
            self._next_trial_s = now_s + TRIAL_REST_S_MAX
        return True

"""A program's own requests, under deadlines that follow what such requests took before."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar

import trio

from s3mount.config import TimeoutSettings
from s3mount.errors import DeadlineError, S3MountError, StoreError, ThrottledError
from s3mount.flow.backoff import Backoff
from s3mount.flow.timeouts import Allowance, Timeouts

T = TypeVar("T")


class TimeoutPolicy(Protocol):
    """What decides how long a try may take; ``flow.timeouts.Timeouts`` is the one that s3mount uses itself."""

    def allowance(self, kind: str, size_bytes: int, retry: int) -> Allowance:
        """What try number ``retry`` (0 is the first) may take, for so many units (bytes, or what they stand for)."""
        ...

    def answered(self, kind: str, latency_s: float) -> None:
        """A try without units succeeded in that time."""
        ...

    def transferred(self, kind: str, size_bytes: int, seconds: float) -> None:
        """A try with so many units succeeded in that time."""
        ...

    def s_per_byte(self, kind: str) -> float:
        """What is expected for each unit, in seconds."""
        ...


class RequestReport(NamedTuple):
    """One request, with all its tries. ``est_s_per_unit`` is what was expected of each unit before it began."""

    seq: int
    kind: str
    units: int
    attempts: int
    success_s: float
    total_s: float
    est_s_per_unit: float


class Requests:
    """Sends a program's own requests. ``policy`` decides deadlines, ``settings`` how often one is tried."""

    def __init__(
        self, settings: TimeoutSettings | None = None, policy: TimeoutPolicy | None = None
    ) -> None:
        self._settings = settings or TimeoutSettings()
        self.policy: TimeoutPolicy = policy or Timeouts(self._settings)
        self._backoff = Backoff()
        self._numbers = itertools.count(1)

    async def request(
        self, send: Callable[[], Awaitable[T]], units: int = 0, *, kind: str = "request"
    ) -> tuple[RequestReport, T]:
        """Await ``send()`` until it succeeds within its deadline: the report, and what it gave.

        ``units`` is how much it moves: bytes, or what else its time grows with; ``kind`` names what is estimated
        apart. A try that is overdue is cancelled and counts as failed. Tried again after DeadlineError and
        S3MountErrors that are ``retryable``; anything else is raised as it is, and so is the last one.
        """
        policy, began_s = self.policy, trio.current_time()
        expected = policy.s_per_byte(kind)
        for retry in itertools.count():
            tried_s = trio.current_time()
            allowance = policy.allowance(kind, units, retry)
            try:
                with trio.move_on_after(allowance.total_s) as scope:
                    result = await send()
                if scope.cancelled_caught:
                    raise DeadlineError(f"no answer within {allowance.total_s:.1f} s")
            except S3MountError as error:
                is_overdue = isinstance(error, DeadlineError)
                if not (error.retryable or is_overdue) or retry + 1 >= self._settings.tries:
                    raise
                await trio.sleep(self._delay_s(retry + 1, error))
                continue
            took_s = trio.current_time() - tried_s
            if units:
                policy.transferred(kind, units, took_s)
            else:
                policy.answered(kind, took_s)
            report = RequestReport(
                next(self._numbers),
                kind,
                units,
                retry + 1,
                took_s,
                trio.current_time() - began_s,
                expected,
            )
            return report, result
        raise AssertionError("unreachable")

    def _delay_s(self, retry: int, error: S3MountError) -> float:
        after_s = error.retry_after_s if isinstance(error, StoreError) else None
        is_throttled = isinstance(error, ThrottledError)
        return self._backoff.delay_s(retry, throttled=is_throttled, retry_after_s=after_s)

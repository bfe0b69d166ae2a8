"""What goes wrong between a mount and S3, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from s3mount.errors import (
    DeadlineError,
    NetworkError,
    NotS3Error,
    ServerFaultError,
    StoreError,
    ThrottledError,
)


@dataclass(frozen=True)
class Profile:
    """How bad it is: shares of requests, and seconds.

    ``foreign``: something else answers, before S3 has done it or after.
    """

    name: str
    failed: float = 0.0
    lost: float = 0.0
    slow: float = 0.0
    foreign: float = 0.0
    latency_s: float = 0.02
    slow_s: float = 3.0


FOREIGN_STATUSES = (200, 204, 302, 403, 404, 409, 412, 502)

PROFILES = (
    Profile("calm"),
    Profile("instant", latency_s=0.0),
    Profile("far", latency_s=0.4),
    Profile("flaky", failed=0.1, lost=0.03, slow=0.03),
    Profile("portal", foreign=0.2),
    Profile("bad", foreign=0.03, failed=0.25, lost=0.15, slow=0.1, latency_s=0.1),
)


class SeededFaults:
    """Delays, failures and lost answers by ``profile``; ``calm_down`` ends the failures."""

    def __init__(self, profile: Profile, rng: random.Random) -> None:
        self._profile = profile
        self._rng = rng
        self._is_calm = False

    def calm_down(self, is_calm: bool) -> None:
        """No more failures, or failures again."""
        self._is_calm = is_calm

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        """Wait for the way there, or fail without effect."""
        await self._travel()
        if self._happens(self._profile.failed):
            raise self._error()
        self._may_lie()

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        """Wait for the way back, or lose the answer."""
        await self._travel()
        if self._happens(self._profile.lost):
            raise NetworkError("the answer was lost")
        self._may_lie()

    def _may_lie(self) -> None:
        """What a lie comes to, whatever its status: nothing is known (``s3.genuine``)."""
        if self._profile.foreign and self._happens(self._profile.foreign):
            status = self._rng.choice(FOREIGN_STATUSES)
            raise NotS3Error(f"{status} text/html: not an answer of S3", status=status)

    def _happens(self, share: float) -> bool:
        return not self._is_calm and self._rng.random() < share

    async def _travel(self) -> None:
        profile = self._profile
        if self._happens(profile.slow):
            await trio.sleep(self._rng.uniform(0, profile.slow_s))
        elif profile.latency_s:
            await trio.sleep(self._rng.expovariate(1 / profile.latency_s) / 2)
        else:
            await trio.lowlevel.checkpoint()

    def _error(self) -> StoreError:
        kind = self._rng.choice((ThrottledError, ServerFaultError, NetworkError, DeadlineError))
        return kind("injected", status=503)

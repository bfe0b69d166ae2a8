"""How long a request may take: adaptive, tight enough that a hung connection costs seconds.

The time for a body follows s3-algo (github.com/openanalytics/s3-algo)::

    (0.5 s + 1.5 * size * running average of seconds per byte) * 1.5 ** retry

with 1 MB/s to start with and a running average that keeps 0.7 of its old value. Two things are
added. The wait for an answer has an allowance of its own, estimated as TCP estimates its
retransmission time (RFC 6298: mean and deviation), so that a store that needs two seconds per
answer is not asked everything twice. And a transfer that keeps moving is not cut off: when
many start at once, each is slower than the average of the few before, without anything hung.
"""

from __future__ import annotations

import msgspec

from s3mount.config import TimeoutSettings

WEIGHT_FULL_BYTES = 1 << 20
"""Transfers from this size on count fully; of smaller ones the time is mostly latency."""
RETRY_EXPONENT_MAX = 8

CRAWL_BYTES_PER_S = 64 * 1024
"""A transfer that would end sooner than at this speed is left alone as long as it moves."""


class Allowance(msgspec.Struct, frozen=True):
    """What one try may take, in seconds.

    ``answer_s``: from the last byte sent to the first byte of the answer, and between any two
    signs of life. ``total_s``: the whole try once connected, unless progress extends it.
    ``limit_s``: no progress extends it beyond this.
    """

    connect_s: float
    answer_s: float
    total_s: float
    limit_s: float

    def deadline_s(self, elapsed_s: float, done_bytes: int, size_bytes: int) -> float:
        """When, in seconds since the try began, a transfer with this progress is overdue.

        To be asked whenever bytes moved. At its present speed the whole transfer must end within
        ``limit_s``; then the next sign of life is waited for, ``answer_s`` long.
        """
        if done_bytes <= 0 or elapsed_s * size_bytes > self.limit_s * done_bytes:
            return self.total_s
        return min(max(self.total_s, elapsed_s + self.answer_s), self.limit_s)


class Latency(msgspec.Struct):
    """Mean and mean deviation of the time to an answer, as RFC 6298 smooths them."""

    mean_s: float = 0.0
    deviation_s: float = 0.0

    def learn(self, sample_s: float) -> None:
        """An answer took so long."""
        if not self.mean_s:
            self.mean_s, self.deviation_s = sample_s, sample_s / 2
            return
        self.deviation_s += (abs(sample_s - self.mean_s) - self.deviation_s) / 4
        self.mean_s += (sample_s - self.mean_s) / 8

    def expected_s(self) -> float:
        """So long the next answer takes at most, most likely."""
        return max(self.mean_s + 4 * self.deviation_s, 3 * self.mean_s)


class Estimates(msgspec.Struct):
    """What requests have told of one endpoint, by kind: to be kept from one run to the next."""

    latency: dict[str, Latency] = msgspec.field(default_factory=dict)
    s_per_byte: dict[str, float] = msgspec.field(default_factory=dict)
    round_trip_s: float = 0.0
    """The least of the network alone; 0 where none was met."""


class Timeouts:
    """The deadlines of one store, by ``estimates`` that requests which succeeded feed.

    ``kind`` names what is estimated apart: operations differ in latency, directions in speed.
    """

    def __init__(
        self, settings: TimeoutSettings | None = None, estimates: Estimates | None = None
    ) -> None:
        self.settings = settings or TimeoutSettings()
        self.estimates = estimates or Estimates()

    def allowance(
        self, kind: str, size_bytes: int, retry: int, *, work_s: float = 0.0
    ) -> Allowance:
        """What try number ``retry`` (0 is the first) of a request with such a body may take.

        ``work_s`` is what the store has to do before it answers, beside what such requests usually need.
        """
        settings = self.settings
        grown = settings.backoff ** min(retry, RETRY_EXPONENT_MAX)
        answer_s = min(self._answer_s(kind) * grown, settings.answer_max_s) + work_s
        expected_s = size_bytes * self.s_per_byte(kind)
        total_s = answer_s + (settings.base_s + settings.fraction * expected_s) * grown
        limit_s = max(total_s, size_bytes / CRAWL_BYTES_PER_S)
        return Allowance(settings.connect_s * grown, answer_s, total_s, limit_s)

    def _answer_s(self, kind: str) -> float:
        settings, latency = self.settings, self.estimates.latency.get(kind)
        if latency is None or not latency.mean_s:
            return settings.answer_start_s
        return max(latency.expected_s(), settings.answer_min_s)

    def s_per_byte(self, kind: str) -> float:
        """The running average of seconds per byte."""
        known = self.estimates.s_per_byte.get(kind)
        return self.settings.start_s_per_byte(kind) if known is None else known

    def answered(self, kind: str, latency_s: float) -> None:
        """A request's answer began ``latency_s`` after it had been sent."""
        self.estimates.latency.setdefault(kind, Latency()).learn(max(latency_s, 1e-6))

    def transferred(self, kind: str, size_bytes: int, seconds: float) -> None:
        """``size_bytes`` were moved in ``seconds``, the wait for the answer not counted."""
        if size_bytes <= 0 or seconds < 0:
            return
        settings = self.settings
        weight = (1 - settings.average_weight) * min(1.0, size_bytes / WEIGHT_FULL_BYTES)
        old = self.s_per_byte(kind)
        self.estimates.s_per_byte[kind] = old + weight * (seconds / size_bytes - old)

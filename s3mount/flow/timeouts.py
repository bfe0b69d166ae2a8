"""How long a request may take: adaptive, tight enough that a hung connection costs seconds.

The time for a body follows s3-algo (github.com/novelda/s3-algo)::

    (0.5 s + 1.5 * size * running average of seconds per byte) * 1.5 ** retry

with 1 MB/s to start with and a running average that keeps 0.7 of its old value. Two things are
added. The wait for an answer has an allowance of its own, estimated as TCP estimates its
retransmission time (RFC 6298: mean and deviation), so that a store that needs two seconds per
answer is not asked everything twice. And a transfer that keeps moving is not cut off: when
many start at once, each is slower than the average of the few before, without anything hung.
"""

from __future__ import annotations

import msgspec

BASE_S = 0.5
SIZE_FACTOR = 1.5
RETRY_FACTOR = 1.5
KEEP_OLD = 0.7
START_S_PER_BYTE = 1e-6
WEIGHT_FULL_BYTES = 1 << 20
"""Transfers from this size on count fully; of smaller ones the time is mostly latency."""

ANSWER_START_S = 5.0
ANSWER_MIN_S = 3.0
ANSWER_MAX_S = 60.0
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


class _Latency:
    """Mean and mean deviation of the time to an answer, as RFC 6298 smooths them."""

    __slots__ = ("deviation_s", "mean_s")

    def __init__(self) -> None:
        self.mean_s = 0.0
        self.deviation_s = 0.0

    def learn(self, sample_s: float) -> None:
        if not self.mean_s:
            self.mean_s, self.deviation_s = sample_s, sample_s / 2
            return
        self.deviation_s += (abs(sample_s - self.mean_s) - self.deviation_s) / 4
        self.mean_s += (sample_s - self.mean_s) / 8

    def allowance_s(self) -> float:
        if not self.mean_s:
            return ANSWER_START_S
        expected_s = max(self.mean_s + 4 * self.deviation_s, 3 * self.mean_s)
        return min(max(expected_s, ANSWER_MIN_S), ANSWER_MAX_S)


class Timeouts:
    """The estimates of one store, fed by requests that succeeded.

    ``kind`` names what is estimated apart: operations differ in latency, directions in speed.
    """

    def __init__(self, connect_s: float = 5.0) -> None:
        self._connect_s = connect_s
        self._latency: dict[str, _Latency] = {}
        self._s_per_byte: dict[str, float] = {}

    def allowance(self, kind: str, size_bytes: int, retry: int) -> Allowance:
        """What try number ``retry`` (0 is the first) of a request with such a body may take."""
        grown = RETRY_FACTOR ** min(retry, RETRY_EXPONENT_MAX)
        latency = self._latency.get(kind)
        answer_s = (latency.allowance_s() if latency else ANSWER_START_S) * grown
        answer_s = min(answer_s, ANSWER_MAX_S)
        body_s = (BASE_S + SIZE_FACTOR * size_bytes * self.s_per_byte(kind)) * grown
        total_s = answer_s + body_s
        limit_s = max(total_s, size_bytes / CRAWL_BYTES_PER_S)
        return Allowance(self._connect_s * grown, answer_s, total_s, limit_s)

    def s_per_byte(self, kind: str) -> float:
        """The running average of seconds per byte."""
        return self._s_per_byte.get(kind, START_S_PER_BYTE)

    def answered(self, kind: str, latency_s: float) -> None:
        """A request's answer began ``latency_s`` after it had been sent."""
        latency = self._latency.get(kind)
        if latency is None:
            latency = self._latency[kind] = _Latency()
        latency.learn(max(latency_s, 1e-6))

    def transferred(self, kind: str, size_bytes: int, seconds: float) -> None:
        """``size_bytes`` were moved in ``seconds``, the wait for the answer not counted."""
        if size_bytes <= 0 or seconds < 0:
            return
        weight = (1 - KEEP_OLD) * min(1.0, size_bytes / WEIGHT_FULL_BYTES)
        old = self.s_per_byte(kind)
        self._s_per_byte[kind] = old + weight * (seconds / size_bytes - old)

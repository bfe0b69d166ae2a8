"""How a mount's counters moved in the last minutes, for the charts of the page."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from s3mount.status import Snapshot

SAMPLES_MAX = 120


class Rates(NamedTuple):
    """Between two samples, a second."""

    sent_bytes: float
    received_bytes: float
    requests: float


class _Sample(NamedTuple):
    at_s: float
    sent_bytes: float
    received_bytes: float
    requests: float


class History:
    """The last samples of each mount. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[str, deque[_Sample]] = {}

    def take(self, mounts: Sequence[Snapshot], at_s: float | None = None) -> None:
        """Note what the counters of all mounts are now; those that are gone are forgotten."""
        now_s = time.monotonic() if at_s is None else at_s
        with self._lock:
            kept: dict[str, deque[_Sample]] = {}
            for each in mounts:
                counted = each.s3
                sample = _Sample(
                    now_s,
                    counted.get("bytes_sent", 0.0),
                    counted.get("bytes_received", 0.0),
                    counted.get("requests", 0.0),
                )
                samples = self._samples.get(each.mountpoint)
                if samples is None or (samples and samples[-1].requests > sample.requests):
                    # Counters begin anew with the process.
                    samples = deque(maxlen=SAMPLES_MAX)
                samples.append(sample)
                kept[each.mountpoint] = samples
            self._samples = kept

    def rates(self, mountpoint: str) -> list[Rates]:
        """From the oldest to the newest; one fewer than there are samples."""
        with self._lock:
            samples = list(self._samples.get(mountpoint, ()))
        return [
            Rates(
                *(
                    (b - a) / (after.at_s - before.at_s)
                    for a, b in zip(before[1:], after[1:], strict=True)
                )
            )
            for before, after in pairwise(samples)
            if after.at_s > before.at_s
        ]

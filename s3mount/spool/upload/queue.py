"""Which pending change may go next: order, waiting times and dependencies, without any I/O.

A change waits until its time has come, until no change of the same key is on its way, until every
change that still reads what S3 holds under its key is done (and every request that does, though its change
was replaced meanwhile), and, when it deletes a directory's marker, until everything deleted below is gone.
Among those that may go, the oldest goes first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from enum import IntEnum

from s3mount.refs import Key
from s3mount.spool.journal.changes import Change, Delete, Put
from s3mount.spool.journal.states import State

AFTER_FAULT_S = 10.0
"""A change of which a fault kept its order from being found out waits so long; the others go on."""


LOOKS_MAX = 500
"""So many changes are looked at in one turn of the loop. Thousands may wait for a single one."""


class Lane(IntEnum):
    """Small requests and large bodies wait in lines of their own, so that neither blocks the other.

    So do deletions while many of them go by one request, and what goes into packs.
    """

    SMALL = 0
    LARGE = 1
    DELETIONS = 2
    PACKED = 3


GATHERED = (Lane.DELETIONS, Lane.PACKED)
"""Many of those are one request."""


class UploadQueue:
    """The order of sending. ``find`` gives the present change of a key; ``blocker`` a key to wait for."""

    def __init__(
        self,
        find: Callable[[Key], Change | None],
        blocker: Callable[[Change], Key | None],
        large_bytes_min: int,
        gathers_deletions: Callable[[], bool],
        is_packed: Callable[[Change], bool] = lambda change: False,
    ) -> None:
        self._find = find
        self._blocker = blocker
        self._large_bytes_min = large_bytes_min
        self._heaps: tuple[list[tuple[float, int, Key]], ...] = tuple([] for _ in Lane)
        self._sending: set[Key] = set()
        self._without_request: set[Key] = set()
        self._gathers_deletions = gathers_deletions
        self._is_packed = is_packed
        self._waiting: dict[Key, set[Key]] = {}
        self._reading: dict[Key, Key] = {}

    def lane_of(self, change: Change) -> Lane:
        """The line that ``change`` waits in."""
        if self._is_packed(change):
            return Lane.PACKED
        if isinstance(change, Delete) and self._gathers_deletions():
            return Lane.DELETIONS
        is_large = isinstance(change, Put) and change.size >= self._large_bytes_min
        return Lane.LARGE if is_large else Lane.SMALL

    def push(self, change: Change, not_before: float) -> None:
        """Line up a queued change; what was lined up for an earlier seq of its key is void."""
        heapq.heappush(self._heaps[self.lane_of(change)], (not_before, change.seq, change.key))

    def take(self, lane: Lane, now: float) -> Change | None:
        """The next change of ``lane`` that may go; it counts as being sent until ``finished``.

        ``None`` when there is none, or none among the first ``LOOKS_MAX``: then ``next_time`` is over already.
        """
        heap = self._heaps[lane]
        for _ in range(LOOKS_MAX):
            if not heap or heap[0][0] > now:
                break
            _, seq, key = heapq.heappop(heap)
            change = self._find(key)
            if change is None or change.seq != seq or change.state is not State.QUEUED:
                continue
            if key in self._sending:
                self._waiting.setdefault(key, set()).add(key)
                continue
            is_fetching = isinstance(change, Put) and change.detach and change.base is not None
            try:
                blocker = None if is_fetching else self._reader_of(key) or self._blocker(change)
            except Exception:
                self.push(change, now + AFTER_FAULT_S)
                raise
            if blocker is not None:
                self._waiting.setdefault(blocker, set()).add(key)
                continue
            self._sending.add(key)
            if lane in GATHERED:
                self._without_request.add(key)
            if change.reads is not None and change.reads != key:
                self._reading[key] = change.reads
            return change
        return None

    def _reader_of(self, key: Key) -> Key | None:
        return next((reader for reader, source in self._reading.items() if source == key), None)

    def finished(self, key: Key) -> list[Key]:
        """The sending of ``key`` ended, however; the keys that waited for it, to be pushed again."""
        self._sending.discard(key)
        self._without_request.discard(key)
        self._reading.pop(key, None)
        return list(self._waiting.pop(key, ()))

    def freed(self, key: Key) -> list[Key]:
        """The change of ``key`` no longer holds others up; the keys that waited, to be pushed again."""
        if key in self._sending:
            return []
        return list(self._waiting.pop(key, ()))

    def answered(self, key: Key) -> None:
        """S3 answered the request of ``key``, which counts as on its way until it is ``finished``. Repeatable."""
        if key in self._sending:
            self._without_request.add(key)

    def is_sending(self, key: Key) -> bool:
        """Is a change of this key on its way?"""
        return key in self._sending

    def next_time(self, lane: Lane) -> float | None:
        """When the first of ``lane`` may be looked at, ``None`` when nothing waits for time."""
        heap = self._heaps[lane]
        return heap[0][0] if heap else None

    @property
    def sending_count(self) -> int:
        """How many changes are on their way by requests of their own."""
        return len(self._sending) - len(self._without_request)

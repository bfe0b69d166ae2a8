"""What happens to a mount, as a list that others follow: the last events, each with a number."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import trio

from s3mount.refs import MountEvent

KEPT = 2000
"""So many of the last events are there for who asks later."""
BATCH = 200

KINDS: Mapping[str, str] = {
    "mounted": "the mount answers",
    "uploaded": "S3 has what was written under `key`, of `size` bytes",
    "deleted": "`key` is deleted in S3",
    "retried": "S3 could not take `key` yet (`error`); it is tried again, after `attempts` tries",
    "parked": "S3 refused `key` (`error`); it waits for s3mount retry",
    "given-up": "what was to become of `key` gave way to what somebody else did first",
    "conflict": "somebody else wrote `key` first; `outcome` as in status, and `kept_as` is the name of ours",
    "outage-began": "S3 cannot be reached (`error`)",
    "outage-ended": "S3 can be reached again",
    "evicted": "`bytes` left the cache",
    "paused": "uploads are paused",
    "resumed": "uploads go on",
    "rates": "bodies are held to `up_bytes_per_s` and `down_bytes_per_s`, 0: to none",
    "pinned": "`path` is kept in the cache from now on",
    "unpinned": "`path` is not kept any more",
    "prefetched": "`files` of `bytes` in all below `path` are in the cache, `failed` could not be fetched",
}
"""Each kind of event and what it tells, with its fields."""


class Events:
    """The events of one mount. ``note`` costs a microsecond, and whoever follows holds nobody up."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._kept: deque[MountEvent] = deque(maxlen=KEPT)
        self._seq = 0
        self._news = trio.Event()

    def note(self, kind: str, **about: Any) -> None:
        """Something of KINDS happened."""
        assert kind in KINDS
        self._seq += 1
        self._kept.append(MountEvent(self._seq, self._now_ns(), kind, about))
        if self._news.statistics().tasks_waiting:
            self._news.set()
            self._news = trio.Event()

    def since(self, seq: int) -> list[MountEvent]:
        """Up to BATCH events behind that number, the oldest first. Numbers that are left out are not kept any more."""
        first = self._seq - len(self._kept) + 1
        return list(islice(self._kept, max(0, seq + 1 - first), max(0, seq + 1 - first) + BATCH))

    async def wait(self, seq: int, timeout_s: float = math.inf) -> None:
        """Return when there is an event behind that number, or after ``timeout_s``."""
        with trio.move_on_after(timeout_s):
            while self._seq <= seq:
                await self._news.wait()

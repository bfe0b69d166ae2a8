"""Do the dates of listed versions look as if they were those of other versions?

Some stores date a version when it was replaced, or a delete marker by the version below it. Each version of a
key then has the date of the next. Keys that were written several times within a second look the same, so this
is a suspicion only, to be settled by ``Store.try_version_dates``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from s3mount.errors import S3MountError
from s3mount.names import trial_key
from s3mount.refs import Key, ObjectVersion

log = logging.getLogger(__name__)

CLOSE_NS = 1_000_000_000

WRONG_DATES = (
    "this store lists its versions incompletely or under wrong dates, so what it held at a time cannot be told; "
    "a manifest that was made at that time is exact"
)


class TriesDates(Protocol):
    """What tells how a store dates versions."""

    async def try_version_dates(self, temporary_key: Key) -> bool | None:
        """See ``Store.try_version_dates``."""
        ...


async def are_dates_right(store: TriesDates, prefix: str) -> bool:
    """Settle a suspicion by a trial below ``prefix``, which takes some seconds.

    What cannot be tried counts as right.
    """
    try:
        return await store.try_version_dates(trial_key(prefix)) is not False
    except S3MountError as error:
        log.info("how this store dates versions could not be tried: %s", error)
        return True


class Gaps:
    """The time between each version and the one before it. ``on_suspicion`` is called once, from ``note``."""

    def __init__(self, on_suspicion: Callable[[], None] = lambda: None) -> None:
        self._on_suspicion = on_suspicion
        self._is_told = False
        self._pairs = self._close = 0
        self._marked = self._close_marked = 0

    def note(self, versions: Sequence[ObjectVersion]) -> None:
        """Versions as they were listed: by key, the newest of a key first."""
        for newer, older in pairwise(versions):
            if newer.key != older.key:
                continue
            is_close = newer.last_modified_ns - older.last_modified_ns < CLOSE_NS
            self._pairs += 1
            self._close += is_close
            self._marked += newer.is_delete_marker
            self._close_marked += newer.is_delete_marker and is_close
        if self.are_suspicious and not self._is_told:
            self._is_told = True
            self._on_suspicion()

    @property
    def are_suspicious(self) -> bool:
        """Were all versions, or all delete markers, dated like those below them?"""
        return 0 < self._pairs == self._close or 0 < self._marked == self._close_marked

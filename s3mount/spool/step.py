"""A step of very many keys that is recorded at once, but prepared in slices: only its last bit is one turn."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import msgspec

from s3mount.background import contained
from s3mount.crashpoints import crashpoint
from s3mount.errors import LocalDiskError
from s3mount.refs import Key
from s3mount.slices import Pace, sliced
from s3mount.spool.journal.changes import Change, Put, blob_id_of
from s3mount.spool.journal.states import State
from s3mount.spool.spool import Spool, empties_s3

log = logging.getLogger(__name__)

SETTLED_AT_ONCE = 64


class Step:
    """Changes that come and go together. Whoever makes one holds ``spool.steps`` till it is over.

    First ``plan``, a part at a time; others go on meanwhile, so some of what was planned may be ``outdated`` at
    the end and is to be dropped. Then ``take``, after which all of it is so, here and on the disk, and ``finish``; or
    ``abandon``.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._there: dict[Key, tuple[Change | None, Change | None]] = {}
        self._ahead = spool.dependencies.exchange()
        self._empties = False
        self._dropped: set[Key] = set()
        self._blobs: set[str] = set()
        self._late: list[Change] = []
        self._late_gone: list[Key] = []
        self.is_taken = False

    def note(self, key: Key) -> None:
        """What is pending of ``key``, or that nothing is, has been looked at: ``outdated`` tells if that changes."""
        self._ahead.altered.discard(key)
        there = self._spool.changes.get(key)
        self._there[key] = there, None if there is None else msgspec.structs.replace(there)

    def knows(self, key: Key) -> bool:
        """Was ``key`` planned or noted?"""
        return key in self._there

    def brings(self, key: Key) -> bool:
        """Is something planned to be pending of ``key``?"""
        return key in self._ahead.new.changes

    def takes_away(self, key: Key) -> bool:
        """Is nothing to be pending of ``key``?"""
        ahead = self._ahead
        return key in self._there and key not in ahead.new.changes and key in ahead.gone.changes

    def plan(self, changes: Sequence[Change], removed: Sequence[Key]) -> None:
        """Prepare a part of the step. Raises LocalDiskError."""
        spool = self._spool
        for key in [*removed, *(change.key for change in changes)]:
            if key not in self._there:
                self.note(key)
            self._dropped.discard(key)
        spool.prepare(changes)
        self._empties |= any(map(empties_s3, changes))
        spool.journal.write_ahead(changes, removed)
        crashpoint("step: written ahead")
        for key in removed:
            self._ahead.add(key, spool.changes.get(key), None)
        for change in changes:
            self._ahead.add(change.key, spool.changes.get(change.key), change)

    def outdated(self) -> list[Key]:
        """The keys of which something else is pending than when they were planned."""
        return [key for key in self._ahead.altered if key in self._there and self._is_outdated(key)]

    def _is_outdated(self, key: Key) -> bool:
        there, as_it_was = self._there[key]
        return self._spool.changes.get(key) is not there or there != as_it_was

    def unknown(self) -> list[Key]:
        """The keys of which something became pending, or changed, and that were neither planned nor noted."""
        return [key for key in self._ahead.altered if key not in self._there]

    def drop(self, keys: Iterable[Key]) -> None:
        """These are not part of the step. Repeatable."""
        for key in keys:
            if self._there.pop(key, None) is not None:
                self._blobs.add(blob_id_of(self._ahead.new.changes.get(key)))
                self._ahead.drop(key)
                self._dropped.add(key)

    def take(self, changes: Sequence[Change], removed: Iterable[Key]) -> None:
        """Record all that was planned, and these, at once. Raises LocalDiskError, and then nothing changed."""
        gone = list(removed)
        self._spool.prepare(changes)
        self._spool.label(changes, [])
        self._spool.take_step(changes, gone, self._dropped, self._ahead)
        self.is_taken = True
        self._late, self._late_gone = list(changes), gone

    def abandon(self) -> None:
        """Nothing of it is to be. Never raises."""
        self._spool.dependencies.forget()
        with contained("blobs of no use stay until the next start"):
            self._drop_unused(set(map(blob_id_of, self._ahead.new.changes.values())))
        with contained("what was written ahead in the journal stays until the next start"):
            self._spool.journal.forget_ahead()

    def _drop_unused(self, blob_ids: set[str]) -> None:
        """Drop those of these blobs, and of what was dropped of the plan, that no change has."""
        live = self._spool.live_blobs
        candidates = (blob_ids | self._blobs) & live.keys()
        if candidates:
            candidates -= set(map(blob_id_of, self._spool.changes.values()))
        self._spool.drop_unused([live[blob_id] for blob_id in candidates])

    async def finish(self) -> None:
        """After ``take``: tell who waits, and bring all of it, here and in the journal, to its place."""
        spool, ahead = self._spool, self._ahead
        new, gone = dict(ahead.new.changes), list(ahead.gone.changes.values())
        is_emptied = self._empties or any(map(empties_s3, self._late))
        async for part in sliced(list(new.values()), SETTLED_AT_ONCE):
            present = [change for change in part if spool.changes.get(change.key) is change]
            spool.dependencies.settle([change.key for change in part])
            spool.label(present, [])
            if is_emptied:
                spool.flush_too(present)
            spool.tell(present, [])
        if is_emptied:
            spool.flush_too(self._late)
        left: set[str] = set()
        async for gone_part in sliced(gone, SETTLED_AT_ONCE):
            keys = [change.key for change in gone_part]
            spool.dependencies.settle(keys)
            spool.tell([], keys)
            left |= {
                blob_id_of(change) for change in gone_part if spool.blob_of(change) is not None
            }
        async for part in sliced(list(new.values())):
            left -= set(map(blob_id_of, part))
        self._drop_unused(left)
        with contained("the journal keeps the rows of a step where they are until the next one"):
            await settle(spool)


async def settle(spool: Spool) -> None:
    """Bring the rows of a step that was taken to their place; where the disk has no room, the next start does."""
    pace = Pace()
    try:
        while spool.journal.settle_step():
            crashpoint("step: settled in part")
            await pace.rest()
    except LocalDiskError as error:
        log.warning("the journal keeps the rows of a step where they are: %s", error)


def may_be_planned(spool: Spool, change: Change) -> bool:
    """Does its row say all till the step is taken? Not while the file is written, or what it needs is being noted."""
    blob = spool.blob_of(change)
    if change.state in (State.OPEN, State.SENDING):
        return False
    return blob is None or not (
        isinstance(change, Put) and (blob.sums.is_unsettled or blob.sums.dirty_rows())
    )

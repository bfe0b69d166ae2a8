"""The spool: pending changes and their blobs, in memory and in the journal at once.

All methods are synchronous and finish within microseconds; SQLite calls never await, so what
stands between two awaits of the caller is a critical section.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import trio

from s3mount.background import contained, reason_of
from s3mount.crashpoints import crashpoint
from s3mount.errors import InternalError, LocalDiskError
from s3mount.refs import Key
from s3mount.spool.blobs.blobs import Blob, BlobFolder
from s3mount.spool.blobs.extents import Extents
from s3mount.spool.journal import recovery, salvage
from s3mount.spool.journal.changes import ABSENT, Change, Copy, Delete, Put, as_put, blob_id_of
from s3mount.spool.journal.dependencies import Dependencies, Exchange
from s3mount.spool.journal.durability import (
    Durability,
    Offload,
    flush_threads,
    is_rebooted,
    note_boot,
)
from s3mount.spool.journal.journal import Journal, SumsRow
from s3mount.spool.journal.labels import Labels
from s3mount.spool.journal.recover_blob import (
    data_ranges,
    extents_of,
    follow_disk,
    recall_filled,
    settle,
    tell_from_earlier,
)
from s3mount.spool.journal.salvage import Damage
from s3mount.spool.journal.states import Event, State
from s3mount.spool.send_errors import TryAgain

log = logging.getLogger(__name__)


class Spool:
    """All that is written and not yet in S3, for one mount.

    ``used_bytes`` counts the bytes in blobs, ``size_bytes_max`` is its limit. ``on_queued`` is called
    for every change that became ready to be sent, ``on_removed`` for every key whose change ended.
    ``damages`` are the reports of all that was ever found damaged here and still lies in the folder.
    ``offload`` runs disk flushes, by default in threads.
    """

    def __init__(
        self, folder: Path, *, size_bytes_max: int, offload: Offload | None = None
    ) -> None:
        self.blobs = BlobFolder(folder / "blobs")
        self.journal = Journal(folder / "journal.sqlite")
        self.size_bytes_max = size_bytes_max
        self.used_bytes = 0
        self.dependencies = Dependencies(self._bytes_of)
        self.changes = self.dependencies.changes
        self.live_blobs: dict[str, Blob] = {}
        self.damages: list[Damage] = []
        self._labels = Labels()
        self.on_queued: Callable[[Change], None] = lambda change: None
        self.on_removed: Callable[[Key], None] = lambda key: None
        self._seq = 0
        self._is_rebooted = False
        self._room = trio.Event()
        self.steps = trio.Lock()
        self.durability = Durability(self.journal, offload or flush_threads())

    @classmethod
    def open(cls, folder: Path, *, size_bytes_max: int, offload: Offload | None = None) -> Spool:
        """Open or make the spool in ``folder`` and take over what an earlier run left.

        A damaged journal, or damaged rows of it, are set aside (``salvage``). Blobs without a change are
        adopted or taken away (``recovery``); a change whose blob is gone is reported and parked. Raises
        LocalDiskError.
        """
        salvage.heal(folder)
        spool = cls(folder, size_bytes_max=size_bytes_max, offload=offload)
        try:
            spool._take_over(folder)
        except BaseException:
            # Nobody else could open it.
            spool.journal.close()
            raise
        return spool

    def _take_over(self, folder: Path) -> None:
        changes, damaged = self.journal.load()
        unsettled = self.journal.unsettled()
        try:
            on_disk = self.blobs.sizes()
            self._is_rebooted = is_rebooted(folder)
        except OSError as error:
            raise LocalDiskError(f"cannot look through {folder}: {error}") from error
        for change in changes:
            try:
                self._recover(change, on_disk.get(blob_id_of(change)), unsettled)
            except LocalDiskError:
                raise
            except Exception as error:
                log.exception("%r cannot be taken over from the run before", change.key)
                with contained(f"{change.key!r} is left as it is for the next start"):
                    self._park_as_found(change, reason_of(error))
        orphans = on_disk.keys() - {blob_id_of(change) for change in changes}
        paths = [self.blobs.path_of(blob_id) for blob_id in orphans]
        try:
            if paths or self._is_rebooted:
                # Rows that are gone must not come back, after a power cut, without their blobs.
                self.journal.force()
            recovery.look_after(folder, damaged, self.changes, paths, self._adopt)
        except OSError as error:
            raise LocalDiskError(f"cannot set damage aside in {folder}: {error}") from error
        self.damages = salvage.damages(folder)
        leftovers = (self.journal.blobs_with_sums() | unsettled) - self.live_blobs.keys()
        try:
            note_boot(folder)
            self.journal.remove_damaged([row for row in damaged if row.key not in self.changes])
            if leftovers:
                self.journal.forget_sums(leftovers)
        except (OSError, LocalDiskError) as error:
            log.warning("what is to be tidied up stays until the next start: %s", error)
        self._report_unsummed()

    def _park_as_found(self, change: Change, why: str) -> None:
        """Keep a change that cannot be taken over, as its row has it, and let nobody use its bytes."""
        self._let_go(change)
        fault = InternalError(f"it could not be taken over at the start ({why})")
        if isinstance(change, Put) and change.blob_id:
            extents = Extents(change.extents if change.base else [(0, change.size)])
            blob = self.blobs.described(
                change.blob_id,
                size=change.size,
                base=change.base,
                base_limit=change.base_limit,
                extents=extents,
            )
            blob.fault = str(fault)
            self._take_in(blob)
            self.used_bytes += blob.held_bytes
        change.note_failure(fault)
        change.apply(Event.DAMAGE)
        self.dependencies.add(change)

    def _let_go(self, change: Change) -> None:
        """Forget a change and its blob as if they had not been taken over; the blob's file stays."""
        self.dependencies.remove(change)
        blob = self.live_blobs.pop(blob_id_of(change), None)
        if blob is not None:
            blob.release()
            self.used_bytes -= blob.held_bytes

    def _report_unsummed(self) -> None:
        unsummed = sum(blob.sums.has_unknown for blob in self.live_blobs.values())
        if unsummed:
            log.warning(
                "%d pending files were being written when s3mount ended, or are from an older release: "
                "checksums are computed from what the disk has of them now",
                unsummed,
            )

    def _adopt(self, change: Put) -> None:
        """Take over a change that only its blob's label tells of, in place of an earlier one of the key."""
        earlier = self.changes.get(change.key)
        if earlier is not None:
            self.dependencies.remove(earlier)
        try:
            self._recover(change, self.blobs.size_of(change.blob_id), set())
            self._describe_blob(change)
            self._journal([change])
        except BaseException:
            self._let_go(change)
            if earlier is not None:
                self.dependencies.add(earlier)
            raise
        blob = self.blob_of(earlier)
        if blob is not None:
            self.drop_blob(blob)

    def _recover(self, change: Change, on_disk_bytes: int | None, unsettled: set[str]) -> None:
        """Take over a change. ``on_disk_bytes`` is the size of its blob's file, ``None`` when that is gone."""
        self._seq = max(self._seq, change.seq)
        change.apply(Event.TAKE_OVER)
        # The run before may have sent it without hearing of it.
        if not isinstance(change, Delete) and change.attributes is not None:
            change.note_try(change.attributes.ctime_ns)
        if isinstance(change, Put) and change.upload_attributes is not None:
            change.note_try(change.upload_attributes.ctime_ns)
        if isinstance(change, Copy):
            change.note_try(change.source.etag)
        if isinstance(change, Put) and change.blob_id:
            blob = self.blobs.described(
                change.blob_id,
                size=change.size,
                base=change.base,
                base_limit=change.base_limit,
            )
            blob.took(extents_of(change, blob.location))
            blob.is_gone = on_disk_bytes is None
            blob.was_synced = change.synced
            if change.filled:
                recall_filled(blob, change, is_rebooted=self._is_rebooted)
            if self._is_rebooted:
                # A synced file may have been changed in place since its row. Of any other it is not
                # known what reached the disk: what its row tells of, or it waits for a person.
                settle(self.journal, change, unsettled, is_settled=not change.synced)
            blob.sums.is_unsettled = blob.id in unsettled
            if not blob.sums.is_unsettled:
                rows = {0: change.sums} if change.sums else {}
                if change.size and not rows:
                    rows = self.journal.sums(blob.id)
                blob.sums.recover(rows, change.size)
            is_other_size = on_disk_bytes != blob.size and not blob.is_reference
            if on_disk_bytes is not None and (blob.sums.is_unsettled or is_other_size):
                tell_from_earlier(change)
            if on_disk_bytes is not None and is_other_size:
                follow_disk(change, blob, on_disk_bytes, is_rebooted=self._is_rebooted)
            blob.sums.mark_unknown(blob.extents)
            if on_disk_bytes and blob.sums.is_unsettled and blob.base is not None:
                # A truncate that was not journalled may have parted it from its base: more was written
                # to it than its row tells of.
                blob.sums.mark_unknown(data_ranges(blob.fd))
                blob.release()
            self._take_in(blob)
            self.used_bytes += blob.held_bytes
        self.dependencies.add(change)
        crashpoint("recovery: change taken over")

    def close(self) -> None:
        """Close files and database; everything stays as it is. Repeatable."""
        for blob in self.live_blobs.values():
            with contained(f"the blob {blob.id} is not closed"):
                blob.release()
        with contained("blobs of no use stay until the next start"):
            self.durability.finish()
        self.journal.close()

    # ---------------------------------------------------------------- changes

    def next_seq(self) -> int:
        """A number greater than every one given before."""
        self._seq += 1
        return self._seq

    def _bytes_of(self, change: Change) -> int:
        """What the spool holds of the content of ``change``. Holes are nothing."""
        blob = self.blob_of(change)
        return 0 if blob is None else blob.extents.total

    def blob_of(self, change: Change | None) -> Blob | None:
        """The blob that ``change`` sends, if it has one."""
        return self.live_blobs.get(change.blob_id) if isinstance(change, Put) else None

    @property
    def last_seq(self) -> int:
        """The greatest number given so far."""
        return self._seq

    def record(self, changes: Iterable[Change], removed: Iterable[Key] = ()) -> None:
        """Journal new or altered changes and forget others, all or nothing.

        A change of a key replaces the one that was there. Raises LocalDiskError, and then nothing
        has changed in memory either.
        """
        new = list(changes)
        gone = [key for key in removed if key in self.changes]
        self.prepare(new)
        unused = self._losing_blobs(new, gone)
        self.label(new, unused)
        self._journal(new, gone)
        crashpoint("spool: recorded")
        self.show(new, gone)
        if unused or any(map(empties_s3, new)):
            self.flush_too(new)
        self.drop_unused(unused)

    def prepare(self, new: Iterable[Change]) -> None:
        """Let changes that are about to be recorded tell what their rows must."""
        for change in new:
            change.seq = self.next_seq()
            if isinstance(change, Put):
                self._describe_blob(change)
                change.content_seq = change.content_seq or change.seq
            earlier = self.changes.get(change.key)
            if not change.first_seq:
                change.first_seq = earlier.first_seq if earlier else change.seq
            if earlier is not None:
                _inherit_tries(change, earlier)

    def show(self, new: Sequence[Change], gone: Sequence[Key]) -> None:
        """The journal has it: so have the others, and what may be sent is lined up."""
        for key in gone:
            self.dependencies.remove(self.changes[key])
        for change in new:
            earlier = self.changes.get(change.key)
            if earlier is not None:
                self.dependencies.remove(earlier)
            self.dependencies.add(change)
        self.tell(new, gone)

    def tell(self, new: Sequence[Change], gone: Iterable[Key]) -> None:
        """Tell who waits for changes that came and went, and let the new ones be sent."""
        for key in [*gone, *(change.key for change in new)]:
            with contained(f"what waits for {key!r} is not told"):
                self.on_removed(key)
        for change in new:
            if change.state is State.QUEUED:
                with contained(f"{change.key!r} is not lined up"):
                    self.on_queued(change)

    def flush_too(self, new: Iterable[Change]) -> None:
        """What was there before may go, here or in S3, once this is carried out."""
        for change in new:
            if blob_id_of(change):
                self.durability.flush_too(self.blobs.path_of(blob_id_of(change)))

    def drop_unused(self, unused: Iterable[Blob]) -> None:
        """No change needs these blobs any more."""
        for blob in unused:
            with contained(f"the blob {blob.id} stays until the next start"):
                self.drop_unless_open(blob)

    def _losing_blobs(self, new: list[Change], gone: list[Key]) -> list[Blob]:
        """The blobs whose change is about to go and that no new change takes over."""
        earlier = [self.changes.get(key) for key in [*gone, *(change.key for change in new)]]
        going = {blob_id_of(change) for change in earlier}
        going -= {blob_id_of(change) for change in new}
        return [blob for blob_id in going if (blob := self.live_blobs.get(blob_id)) is not None]

    def apply(self, change: Change, event: Event) -> None:
        """Let ``change`` take the step that ``event`` leads to, in memory only. Raises ValueError as it does."""
        change.apply(event)
        self.dependencies.altered(change.key)

    def touch(self, change: Put, *, content: bool = True) -> None:
        """The open file changes (its ``content``, or only attributes): the change is open again.

        In memory only, until it is saved.
        """
        self.apply(change, Event.WRITE)
        change.seq = self.next_seq()
        if content:
            change.content_seq = change.seq

    def add_open(self, change: Put) -> None:
        """Show a change that is only in memory: an existing file that is just being rewritten.

        Where the journal has an earlier change of the key, it gets this one: what the earlier one
        reads is no longer kept for it. Raises LocalDiskError.
        """
        if change.key in self.changes:
            self.record([change])
            return
        change.seq = self.next_seq()
        change.first_seq = change.first_seq or change.seq
        change.content_seq = change.seq
        self.dependencies.add(change)

    def save(self, change: Change, *, makes_room: bool = False) -> None:
        """Journal ``change`` as it is, without a new seq; ``makes_room``: it tells what was sent.

        Raises TryAgain where another change has taken its place, which must stay, and LocalDiskError.
        """
        self.must_be_current(change)
        if isinstance(change, Put):
            self._describe_blob(change)
        self.dependencies.remove(change)
        self.dependencies.add(change)
        self.label([change], [])
        self._journal([change], makes_room=makes_room)
        crashpoint("spool: saved")

    def must_be_current(self, change: Change) -> None:
        """Raise TryAgain where another change has taken the place of ``change``, or it is done.

        What was sent for it from now on would be nobody's: its successor knows none of its tries.
        """
        if self.changes.get(change.key) is not change:
            raise TryAgain("replaced before it was sent")

    def replace(self, change: Change, other: Change) -> None:
        """Journal ``other`` in place of ``change``, of the same key, when something of that was sent.

        Raises LocalDiskError, and then nothing has changed in memory either.
        """
        self._journal([other], makes_room=True)
        self.dependencies.remove(change)
        self.dependencies.add(other)
        crashpoint("spool: saved")

    def label(self, changes: Iterable[Change], unused: Iterable[Blob]) -> None:
        """Before the journal, so that a kill in between leaves labels that its rows overrule."""
        for change in changes:
            blob = self.blob_of(change)
            if blob is not None and isinstance(change, Put):
                self._labels.write(blob, change)
        for blob in unused:
            self._labels.clear(blob)
        crashpoint("spool: labelled")

    def _journal(
        self, changes: list[Change], removed: Iterable[Key] = (), *, makes_room: bool = False
    ) -> None:
        """Write changes and what is known of their blobs' bytes. Raises LocalDiskError."""
        sums, settled = self._sums_of(changes)
        self.journal.record(changes, removed, sums=sums, settled=settled, makes_room=makes_room)
        self._sums_stored(changes)

    def _sums_of(self, changes: Iterable[Change]) -> tuple[list[SumsRow], list[str]]:
        blobs = [blob for change in changes if (blob := self.blob_of(change)) is not None]
        rows = [(blob.id, at, body) for blob in blobs for at, body in blob.sums.dirty_rows()]
        return rows, [blob.id for blob in blobs if blob.sums.is_unsettled]

    def _sums_stored(self, changes: Iterable[Change]) -> None:
        for change in changes:
            blob = self.blob_of(change)
            if blob is not None and isinstance(change, Put):
                blob.sums.settled(change.size, change.sums)

    def take_step(
        self, new: Sequence[Change], gone: Sequence[Key], dropped: Iterable[Key], ahead: Exchange
    ) -> None:
        """Record what ``ahead`` says, which the journal was told but for the keys ``dropped``, and the rest.

        ``new`` are prepared. As ``record``, but for who is to be told. Raises LocalDiskError, and then nothing has
        changed.
        """
        sums, settled = self._sums_of(new)
        self.journal.take_step(new, gone, dropped, sums=sums, settled=settled)
        self._sums_stored(new)
        crashpoint("spool: recorded")
        self.dependencies.take(ahead)
        self.show(new, [key for key in gone if key in self.changes])

    def finish(self, *changes: Change) -> None:
        """S3 has ``changes``: forget them, all or none. Raises LocalDiskError."""
        for change in changes:
            self.disown(blob_id_of(change))
        self.journal.record([], [change.key for change in changes])
        crashpoint("change: finished")
        for change in changes:
            self.dependencies.remove(change)
            change.apply(Event.SUCCEED)
            with contained(f"what waits for {change.key!r} is not told"):
                self.on_removed(change.key)

    def disown(self, blob_id: str) -> None:
        """S3 has what the blob holds, if there is one: should the journal be lost, it is not sent again."""
        blob = self.live_blobs.get(blob_id)
        if blob is not None:
            self._labels.clear(blob)

    def _describe_blob(self, change: Put) -> None:
        blob = self.live_blobs[change.blob_id] if change.blob_id else None
        if blob is None or blob.fault:
            # Its row knows more of it.
            return
        change.synced = blob.was_synced
        if blob.was_synced:
            # What is added to it goes to the disk before the row that tells of it.
            self.durability.flush_too(blob.path)
        change.size = blob.size
        change.sums = blob.sums.row()
        change.base = blob.base
        change.base_limit = blob.base_limit
        change.extents = tuple(blob.extents) if blob.base is not None else ((0, blob.size),)
        change.filled = tuple(blob.filled or ()) if blob.was_synced else ()

    def as_fetched(self, change: Copy) -> Put:
        """The copy ``change`` as one that fetches its content first, so that its source may change. Raises OSError."""
        blob = self.new_blob()
        blob.base, blob.base_limit = change.source, change.source.size
        blob.truncate(change.source.size)
        blob.release()
        return as_put(change, blob.id)

    # ------------------------------------------------------------------ blobs

    def new_blob(self) -> Blob:
        """A new, empty blob. Raises OSError."""
        blob = self.blobs.create()
        self._take_in(blob)
        return blob

    def new_reference(self, path: str) -> Blob:
        """A new blob for the bytes of somebody's file, which stay there. Raises OSError."""
        blob = self.blobs.refer(path)
        self._take_in(blob)
        return blob

    def _take_in(self, blob: Blob) -> None:
        self.live_blobs[blob.id] = blob
        blob.sums.blob_id, blob.sums.on_unsettled = blob.id, self._unsettle

    def _unsettle(self, blob_id: str) -> None:
        self.journal.unsettle(blob_id)
        crashpoint("blob: unsettled")

    def clone_blob(self, blob: Blob) -> Blob:
        """A copy of ``blob`` to go on writing in. Raises OSError."""
        copy = self.blobs.clone(blob)
        self._take_in(copy)
        self.durability.flush_too(copy.path)
        self.grew(copy.extents.total)
        return copy

    def drop_unless_open(self, blob: Blob) -> None:
        """No change needs the blob any more; who has it open may still read it."""
        if not blob.open_files:
            self.drop_blob(blob)

    def drop_blob(self, blob: Blob, *, keep_file: bool = False) -> None:
        """The spool needs ``blob`` no more: its room is free again, its file gone soon unless moved away.

        Nobody may have it open: its descriptor would keep the room on the disk.
        """
        if self.live_blobs.pop(blob.id, None) is None:
            return
        blob.release()
        blob.is_dropped = True
        self.grew(-blob.held_bytes)
        if not keep_file:
            self._labels.clear(blob)
            self.durability.remove_later(blob.path)
        if blob.sums.has_rows:
            try:
                self.journal.forget_sums([blob.id])
            except LocalDiskError as error:
                log.info("checksums of a blob that is gone stay until the next start: %s", error)

    def grew(self, size_bytes: int) -> None:
        """Blobs take ``size_bytes`` more (or less); wakes writers that wait for room."""
        self.used_bytes += size_bytes
        if size_bytes < 0:
            self._room.set()
            self._room = trio.Event()

    def has_room(self, size_bytes: int) -> bool:
        """Do ``size_bytes`` more fit in?"""
        return self.used_bytes + size_bytes <= self.size_bytes_max

    async def wait_for_room(self) -> None:
        """Return when some room came back."""
        await self._room.wait()

    # ------------------------------------------------------------- durability

    def _holds(self, change: Change, blob: Blob) -> bool:
        return self.changes.get(change.key) is change and blob_id_of(change) == blob.id

    async def _force_blob(self, blob: Blob) -> None:
        filled, blob.filled = blob.filled, None
        try:
            await self.durability.file(blob.fd, blob.path.parent)
        except BaseException:
            if blob.base is not None:
                blob.filled = Extents([*(filled or ()), *(blob.filled or ())])
            raise

    async def detach(self, blob: Blob) -> None:
        """``blob`` has every byte of its base: forget the base, once they are on the disk. Raises OSError."""
        with blob.as_it_was():
            await self._force_blob(blob)
        blob.detach()

    async def force(self, blob: Blob | None, change: Change | None = None) -> None:
        """Make ``blob``, which ``change`` tells of, and every change recorded so far survive a power cut.

        Calls that come together share one flush of the journal. Raises OSError and LocalDiskError.
        """
        if blob is not None:
            await self._force_blob(blob)
            if not blob.was_synced:
                blob.was_synced = True
                if change is not None and self._holds(change, blob):
                    self.save(change)
            crashpoint("fsync: blob forced")
        await self.durability.journal()
        crashpoint("fsync: journal forced")


def empties_s3(change: Change) -> bool:
    """May what S3 has go by it?"""
    return isinstance(change, Delete) and change.expected != ABSENT


def _inherit_tries(change: Change, earlier: Change) -> None:
    """What was sent for the earlier change of a key may still turn out to be there."""
    for mark in earlier.tried:
        change.note_try(mark)

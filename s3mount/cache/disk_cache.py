"""The disk cache of one bucket: which contents are in memory, which on disk, and how much room they take.

Everything here runs in the trio loop and is synchronous, so between two awaits the state is
consistent; what can block goes to a thread, one job at a time (``maintenance``).
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import trio

from s3mount.background import contained, log_fault
from s3mount.cache.blocks import COMING, MISSING, PRESENT, file_bytes, page_rounded, sums_room
from s3mount.cache.cache_catalog import ROW_BYTES_MAX, Row, Update, is_row_name, row_name
from s3mount.cache.entry import Entry, digest_of
from s3mount.cache.folder import CacheFolder, new_name
from s3mount.cache.quota import Quota
from s3mount.clock import WallClock
from s3mount.config import MIB
from s3mount.refs import ContentRef

logger = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * MIB
"""Small contents kept in memory while they are open; the oldest go when there are more."""
UNSAVED_BYTES_MAX = 32 * MIB
"""Small contents on their way to the disk; beyond it they are served but not kept."""


class Save(NamedTuple):
    """One entry to be written to the catalog, with its body when that has no file yet."""

    entry: Entry
    update: Update
    body: bytes | None
    slack_bytes: int


class Unwanted(NamedTuple):
    """A file to be removed, with its row if there is one; ``unrecorded_bytes`` only we count."""

    digest: bytes | None
    file: str
    unrecorded_bytes: int = 0


class DiskCache(Quota):
    """All entries of one namespace in one cache folder, and the room they may take."""

    def __init__(
        self,
        folder: Path,
        namespace: str,
        size_bytes_max: int,
        clock: WallClock,
        *,
        free_bytes_min: int = 0,
    ) -> None:
        super().__init__(CacheFolder(folder), size_bytes_max, free_bytes_min)
        self.namespace = namespace
        self.clock = clock
        self.entries: dict[bytes, Entry] = {}
        self.private: set[Entry] = set()
        self.dirty: dict[Entry, None] = {}
        self.touched: dict[bytes, int] = {}
        self.unwanted: list[Unwanted] = []
        self.evicting: set[bytes] = set()
        self.maintenance_wanted = trio.Event()
        self.unsaved_bytes = 0
        self.damaged = 0
        self._bodies: OrderedDict[Entry, None] = OrderedDict()
        self._body_bytes = 0

    # -- finding and letting go

    def find(self, ref: ContentRef) -> Entry:
        """The entry of this content; made when there is none. Never fails: at worst it is empty."""
        try:
            return self._find(ref)
        except Exception as error:  # noqa: BLE001 - whatever it is, S3 has the content
            self.disk_failed(error)
            entry = Entry(ref, None)
            entry.broken = True
            self.private.add(entry)
            return entry

    def _find(self, ref: ContentRef) -> Entry:
        if not ref.etag:
            entry = Entry(ref, None)
            self.private.add(entry)
            return entry
        digest = digest_of(self.namespace, ref)
        entry = self.entries.get(digest) or self._from_catalog(ref, digest) or Entry(ref, digest)
        self.entries[digest] = entry
        if entry.file and entry.descriptor < 0 and not entry.small:
            self._open_file(entry)
        return entry

    def active(self, ref: ContentRef) -> Entry | None:
        """The entry of this content if somebody uses it."""
        return self.entries.get(digest_of(self.namespace, ref)) if ref.etag else None

    def let_go(self, entry: Entry) -> None:
        """Forget an entry that nobody uses any more; no effect while somebody does."""
        if not entry.idle:
            return
        if entry.digest is None:
            if entry not in self.private:
                return
            self.private.discard(entry)
            self._forget_file(entry)
        else:
            if self.entries.get(entry.digest) is not entry:
                return
            del self.entries[entry.digest]
            if entry.row_digest is not None:
                self.touched[entry.row_digest] = self.clock.now_ns()
                self.maintenance_wanted.set()
            self._account(entry, entry.recorded_bytes, entry.recorded_bytes)
        self._drop_body(entry)
        self._close_file(entry)

    def _from_catalog(self, ref: ContentRef, digest: bytes) -> Entry | None:
        row = self._look_up(digest)
        if row is None:
            return None
        entry = Entry(ref, digest)
        usable = row.size == ref.size and row.shift == entry.map.shift and not row.doubtful
        if not usable or (entry.small and row.snapshot is not None):
            self._discard_row(digest, row.file)
            return None
        entry.file = row.file
        entry.row_digest = digest
        if not entry.small:
            entry.sums = row.sums
            if not self._open_file(entry):
                return None
            # Another mount may have taken blocks away before the lock was there: look again.
            again = self._look_up(digest)
            if again is None or again.file != row.file:
                self._close_file(entry)
                return None
            row = again
            if row.snapshot is None:
                entry.map.fill_all()
            elif not entry.map.restore(row.snapshot):
                self._close_file(entry)
                self._discard_row(digest, row.file)
                return None
            entry.whole = entry.map.whole
            entry.sums = row.sums
            if row.sums:
                entry.unproven = bytearray(entry.map.snapshot())
        entry.crc = row.crc
        entry.revision = row.revision
        entry.held_bytes = entry.recorded_bytes = row.allocated
        return entry

    def _look_up(self, digest: bytes) -> Row | None:
        if self.catalog is None or digest in self.evicting:
            return None
        try:
            return self.catalog.look_up(digest)
        except sqlite3.Error as error:
            if "locked" not in str(error):
                self.disk_failed(error)
            return None

    def _discard_row(self, digest: bytes, file: str) -> None:
        self.damaged += 1
        self.unwanted.append(Unwanted(digest, file))
        self.maintenance_wanted.set()

    def _open_file(self, entry: Entry) -> bool:
        try:
            entry.descriptor = self.files.open(entry.file, _file_bytes(entry))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                self.abandon_file(entry)
            elif error.errno != errno.EBUSY:
                self.disk_failed(error)
            return False
        return True

    def _close_file(self, entry: Entry) -> None:
        if entry.descriptor >= 0:
            os.close(entry.descriptor)
            entry.descriptor = -1

    def _forget_file(self, entry: Entry) -> None:
        if entry.file:
            # Until the file is gone, its room counts: what the row does not say, here.
            unrecorded = entry.held_bytes - entry.recorded_bytes
            self.freeing_bytes += unrecorded
            self.unwanted.append(Unwanted(entry.row_digest, entry.file, unrecorded))
            self.maintenance_wanted.set()
        entry.file = ""
        entry.row_digest = None
        entry.crc = None
        entry.sums = False
        entry.unproven = None
        entry.slack_bytes = 0
        self._account(entry, 0, 0)

    def give_up(self, entry: Entry, error: Exception) -> None:
        """Something unexpected happened to an entry: nothing of it is believed, and its readers go past the cache.

        Never raises. Repeatable.
        """
        if not entry.broken:
            log_fault(f"caching {entry.ref.key!r}", error)
        entry.broken = True
        for waiter in entry.waiters:
            waiter.no_disk = True
            waiter.event.set()
        with contained("giving up a cached content"):
            self.make_private(entry)
            self.abandon_file(entry)

    # -- files and blocks

    def ensure_file(self, entry: Entry) -> str:
        """The path of the entry's file, which is made if there is none. Raises ``OSError``."""
        if not entry.file:
            name = new_name(entry.digest or os.urandom(16))
            entry.sums = not entry.small
            entry.descriptor = self.files.create(name, _file_bytes(entry))
            entry.file = name
            if entry.sums:
                room = sums_room(entry.size, entry.map.shift)
                entry.slack_bytes += room
                self._account(entry, entry.held_bytes + room, entry.recorded_bytes)
        return self.files.path_of(entry.file)

    def abandon_file(self, entry: Entry) -> None:
        """The file is gone or not to be trusted: nothing of it counts as present any more."""
        self.damaged += 1
        entry.map.forget_present()
        entry.whole = False
        self._close_file(entry)
        coming = entry.map.disk_bytes_held()
        self._forget_file(entry)
        self._account(entry, coming, 0)
        self._mark_clean(entry)

    def spoilt(self, entry: Entry, block: int) -> None:
        """A block is not what its checksum says: it is missing. Its room counts until the file is measured."""
        self.damaged += 1
        entry.slack_bytes += entry.map.disk_bytes_in(PRESENT, block, block + 1)
        entry.map.empty(block, block + 1)
        entry.whole = False
        entry.believe(block, block + 1)
        self.mark_dirty(entry)

    def check_file(self, entry: Entry) -> None:
        """Abandon the entry's file if it is no longer where the engine would look for it."""
        if entry.descriptor >= 0 and not self.files.same_file(entry.file, entry.descriptor):
            self.abandon_file(entry)

    def claim(self, entry: Entry, first: int, stop: int) -> bool:
        """Reserve room for missing blocks and mark them as coming; False when there is no room."""
        needed = entry.map.disk_bytes_in(MISSING, first, stop)
        if not self.has_room(needed):
            return False
        entry.map.claim(first, stop)
        self._account(entry, entry.held_bytes + needed, entry.recorded_bytes)
        return True

    def reserve(self, entry: Entry, first: int, stop: int) -> None:
        """Count blocks that were claimed without room, now that there is some."""
        needed = entry.map.disk_bytes_in(COMING, first, stop)
        self._account(entry, entry.held_bytes + needed, entry.recorded_bytes)

    def unclaim(self, entry: Entry, first: int, stop: int, *, begun: bool) -> None:
        """Coming blocks will not come: give their room back.

        Where the fetch had ``begun``, part of it may lie in the file: then the room counts until
        the file is next measured, by a save.
        """
        freed = entry.map.disk_bytes_in(COMING, first, stop)
        freed = min(freed, entry.held_bytes - entry.slack_bytes)
        entry.map.unclaim(first, stop)
        if begun and entry.file:
            entry.slack_bytes += freed
            self.mark_dirty(entry)
        else:
            self._account(entry, entry.held_bytes - freed, entry.recorded_bytes)

    def fill(self, entry: Entry, first: int, stop: int) -> None:
        """Coming blocks lie in the file."""
        entry.map.fill(first, stop)
        entry.whole = entry.map.whole
        entry.believe(first, stop)
        self.mark_dirty(entry)
        entry.wake(first, stop)

    def empty(self, entry: Entry, first: int, stop: int) -> int:
        """Present blocks go; the bytes of disk that this will free.

        They count as ``freeing_bytes`` until the caller has punched the hole.
        """
        freed = entry.map.disk_bytes_in(PRESENT, first, stop)
        freed = min(freed, entry.held_bytes - entry.slack_bytes)
        entry.map.empty(first, stop)
        entry.whole = False
        self._account(entry, entry.held_bytes - freed, entry.recorded_bytes)
        self.freeing_bytes += freed
        return freed

    # -- small contents

    def put_body(self, entry: Entry, body: bytes) -> None:
        """A small content has arrived: serve it from memory, and save it when there is room."""
        self.keep_body(entry, body)
        if entry.digest is None or entry.file or entry.unsaved or not self.usable:
            return
        needed = page_rounded(entry.size)
        if self.unsaved_bytes + entry.size > UNSAVED_BYTES_MAX or not self.has_room(needed):
            return
        entry.unsaved = True
        self.unsaved_bytes += entry.size
        self._account(entry, needed, entry.recorded_bytes)
        self.mark_dirty(entry)

    def keep_body(self, entry: Entry, body: bytes) -> None:
        """Hold a small content in memory; others that are saved make room."""
        self._drop_body(entry)
        entry.body = body
        self._bodies[entry] = None
        self._body_bytes += len(body)
        if self._body_bytes > BODY_BYTES_MAX:
            for other in list(self._bodies):
                if other is not entry and not (other.unsaved or other.pins):
                    self._drop_body(other)
                    if self._body_bytes <= BODY_BYTES_MAX:
                        break

    def load_body(self, entry: Entry) -> bytes | None:
        """A small content from where it is kept, verified; ``None``: not there, damaged, or not to be read now."""
        if not entry.file:
            return None
        try:
            if is_row_name(entry.file):
                body = self._body_in_catalog(entry)
            else:
                body = self.files.read_whole(entry.file, entry.size, entry.crc)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return None
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                self.disk_failed(error)
            self.abandon_file(entry)
            return None
        self.keep_body(entry, body)
        return body

    def _body_in_catalog(self, entry: Entry) -> bytes:
        try:
            body = None if self.catalog is None else self.catalog.body(entry.file)
        except sqlite3.Error as error:
            code = errno.EBUSY if "locked" in str(error) else errno.EIO
            raise OSError(code, f"the catalog: {error}") from error
        if body is None or len(body) != entry.size or zlib.crc32(body) != entry.crc:
            raise OSError(errno.ESTALE, "the cached content is not what it was")
        return body

    def _drop_body(self, entry: Entry) -> None:
        if entry.body is not None:
            self._body_bytes -= len(entry.body)
            entry.body = None
            del self._bodies[entry]

    # -- saving

    def mark_dirty(self, entry: Entry) -> None:
        """The catalog is to be told about the entry."""
        if entry.digest is not None and not entry.dirty:
            entry.dirty = True
            self.dirty[entry] = None
            self.maintenance_wanted.set()

    def _mark_clean(self, entry: Entry) -> None:
        entry.dirty = False
        self.dirty.pop(entry, None)

    def update_of(self, entry: Entry, digest: bytes, *, replace: bool = False) -> Update:
        """What the catalog is to know about the entry now; ``digest`` names its row."""
        complete = entry.small or entry.whole
        return Update(
            digest=digest,
            file=entry.file,
            size=entry.size,
            shift=entry.map.shift,
            snapshot=None if complete else entry.map.snapshot(),
            crc=entry.crc,
            allocated=entry.held_bytes,
            used_ns=self.clock.now_ns(),
            revision=entry.revision,
            replace=replace,
            sums=entry.sums,
        )

    def take_dirty(self, count_max: int) -> list[Save]:
        """Entries to be written, marked as being saved until ``saved`` is called."""
        taken: list[Save] = []
        for entry in list(self.dirty):
            if len(taken) == count_max:
                break
            if entry.saving or entry.punching is not None:
                continue
            self._mark_clean(entry)
            body = None
            if entry.unsaved:
                if not entry.file and entry.digest is not None:
                    in_row = entry.size <= ROW_BYTES_MAX
                    entry.file = row_name(entry.digest) if in_row else new_name(entry.digest)
                body = entry.body
            if not entry.small and not entry.map.present_count and entry.idle:
                self.make_private(entry)
            if not entry.file or entry.digest is None:
                self.let_go(entry)
                continue
            entry.saving = True
            taken.append(Save(entry, self.update_of(entry, entry.digest), body, entry.slack_bytes))
        return taken

    def saved(self, save: Save, revision: int, crc: int | None, allocated: int) -> None:
        """The catalog knows the entry; ``revision`` -1: it knows another file for that content."""
        entry = save.entry
        self._end_save(save)
        if entry.file != save.update.file:
            self.unwanted.append(Unwanted(save.update.digest, save.update.file))
        else:
            if revision < 0:
                self.make_private(entry)
            else:
                entry.revision = revision
                entry.crc = crc
                entry.row_digest = save.update.digest
                if not entry.small:
                    self._measured(entry, save, allocated)
                self._account(entry, entry.held_bytes, allocated)
        self.let_go(entry)

    def _measured(self, entry: Entry, save: Save, allocated: int) -> None:
        # What was given up before the save is known now; what was since is still a guess.
        since = entry.slack_bytes - save.slack_bytes
        slack = max(0, allocated - (save.update.allocated - save.slack_bytes)) + since
        held = entry.held_bytes - entry.slack_bytes + slack
        entry.slack_bytes = slack
        self._account(entry, held, entry.recorded_bytes)
        self.has_room(0)

    def shrunk(self, entry: Entry, revision: int, allocated: int) -> None:
        """The catalog knows that blocks were taken from the entry."""
        if revision > 0:
            entry.revision = revision
            self._account(entry, entry.held_bytes, allocated)

    def in_use(self) -> list[Entry]:
        """Open entries whose blocks may be taken away, one by one."""
        candidates = [*self.entries.values(), *self.private]
        return [
            entry
            for entry in candidates
            if entry.descriptor >= 0
            and entry.map.present_count
            and not (entry.pins or entry.saving or entry.punching is not None)
        ]

    def save_failed(self, save: Save) -> None:
        """The entry could not be written: it is not cached any more once its last user is gone."""
        entry = save.entry
        self._end_save(save)
        if save.body is not None and entry.file == save.update.file:
            self._forget_file(entry)
        elif entry.file == save.update.file:
            self.make_private(entry)
        self.let_go(entry)

    def _end_save(self, save: Save) -> None:
        save.entry.saving = False
        if save.body is not None:
            save.entry.unsaved = False
            self.unsaved_bytes -= len(save.body)

    def make_private(self, entry: Entry) -> None:
        """The entry ends, file and row included, with its last user."""
        if entry.digest is not None and self.entries.get(entry.digest) is entry:
            del self.entries[entry.digest]
        self._mark_clean(entry)
        if entry.unsaved and not entry.saving:
            entry.unsaved = False
            self.unsaved_bytes -= entry.size
            self._account(entry, 0, 0)
        entry.digest = None
        self.private.add(entry)

    # -- identity

    def adopt(self, ref: ContentRef, path: Path, crc: int | None = None) -> bool:
        """See ``CacheReader.adopt``."""
        try:
            return self._adopt(ref, path, crc)
        except Exception as error:  # noqa: BLE001 - whatever it is, S3 has the content
            self.disk_failed(error)
            return not path.exists()

    def _adopt(self, ref: ContentRef, path: Path, crc: int | None) -> bool:
        if not ref.etag or ref.size == 0 or not self.usable:
            return False
        digest = digest_of(self.namespace, ref)
        if digest in self.entries or self._look_up(digest) is not None:
            return False
        try:
            found = os.stat(path)
            # Its attributes may take a block as well.
            needed = max(page_rounded(ref.size), found.st_blocks * 512)
            if found.st_size != ref.size or not self.has_room(needed):
                return False
            entry = Entry(ref, digest)
            name = new_name(digest)
            if not self.files.take_in(path, name):
                return False
        except OSError as error:
            if error.errno != errno.ENOENT or error.filename != str(path):
                self.disk_failed(error)
            return False
        entry.file = name
        entry.crc = crc if entry.small else None
        entry.map.fill_all()
        entry.whole = True
        self.entries[digest] = entry
        self._account(entry, needed, 0)
        self.mark_dirty(entry)
        return True

    def relabel(self, old: ContentRef, new: ContentRef) -> None:
        """See ``CacheReader.relabel``."""
        if old == new or old.size != new.size or old.size == 0:
            return
        for entry in self.private:
            if entry.ref == old:
                entry.relabel(new)
        if not old.etag:
            return
        entry = self.find(old)
        entry.relabel(new)
        if not new.etag or digest_of(self.namespace, new) in self.entries:
            self.make_private(entry)
        else:
            if entry.digest is not None:
                del self.entries[entry.digest]
            entry.digest = digest_of(self.namespace, new)
            self.entries[entry.digest] = entry
            if entry.file:
                self.mark_dirty(entry)
        self.let_go(entry)

    def close(self) -> None:
        """Close the files of all entries; readers get what they ask for from S3 from now on."""
        for entry in [*self.entries.values(), *self.private]:
            self._close_file(entry)
            entry.map.forget_present()
            entry.whole = False


def _file_bytes(entry: Entry) -> int:
    return file_bytes(entry.size, entry.map.shift) if entry.sums else entry.size

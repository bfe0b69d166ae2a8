"""The journal: every pending change, durable, in one SQLite database.

Each method is one transaction of its own and is over when it returns: what it wrote survives
kill -9. ``force`` makes it survive a power cut too.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from s3mount import db
from s3mount.crashpoints import crashpoint
from s3mount.errors import DiskFullError, LocalDiskError
from s3mount.refs import Key, PartInfo
from s3mount.spool.journal.changes import Change
from s3mount.spool.journal.disk_reserve import Reserve

log = logging.getLogger(__name__)

MIGRATIONS = (
    """
    -- One row per key that S3 does not have in its desired state; body is a Change in MessagePack,
    -- the truth about all its fields. seq repeats Change.seq, so that the order is known without it.
    CREATE TABLE change (key TEXT PRIMARY KEY, seq INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
    -- Parts of an unfinished multipart upload that S3 confirmed and whose bytes have not changed since.
    CREATE TABLE part (
        upload_id TEXT NOT NULL, number INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (upload_id, number)
    ) WITHOUT ROWID;
    -- Multipart uploads begun and neither completed nor aborted, so that none is left to be paid for.
    CREATE TABLE upload (upload_id TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID;
    """,
    """
    -- Checksums of the blocks of blobs above 64 MiB, so many in a row; smaller ones have theirs in the change.
    CREATE TABLE sums (
        blob_id TEXT NOT NULL, chunk INTEGER NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (blob_id, chunk)
    ) WITHOUT ROWID;
    -- Blobs of which blocks with a stored checksum may have changed since: theirs say nothing.
    CREATE TABLE unsettled (blob_id TEXT PRIMARY KEY) WITHOUT ROWID;
    """,
    """
    -- Rows of one step of very many keys, written ahead of it; without a body the key's row goes. They count once
    -- the step is taken, which its row tells; from then on they go to ``change``, some at a time.
    CREATE TABLE ahead (key TEXT PRIMARY KEY, seq INTEGER NOT NULL, body BLOB) WITHOUT ROWID;
    CREATE TABLE step (is_taken INTEGER PRIMARY KEY);
    """,
)


SETTLED_AT_ONCE = 256
"""So many rows of a step go to their place in one transaction: about 1 ms."""

SumsRow = tuple[str, int, bytes]
"""Blob id, chunk number, and the chunk's checksums."""


class DamagedRow(NamedTuple):
    """A row that cannot be read: its key as stored, its body, and why."""

    raw_key: bytes
    body: bytes
    why: str

    @property
    def key(self) -> Key:
        """The key, as far as it is one."""
        return self.raw_key.decode("utf-8", "replace")


class Journal:
    """The journal of one spool. Use from one thread at a time (``force`` from any).

    ``commits`` counts this run's, and one for all of earlier runs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.commits = 1
        self._is_settling = False
        self._database = db.open_database(path, MIGRATIONS, any_thread=True, is_exclusive=True)
        self._reserve = Reserve(path.with_name("reserve"))
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Change).decode
        self._decode_part = msgspec.msgpack.Decoder(PartInfo).decode

    def close(self) -> None:
        """Close the database. Repeatable."""
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                crashpoint("journal: before commit")
                self._database.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled it back already.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
            self.commits += 1
            crashpoint("journal: committed")
        except sqlite3.Error as error:
            raise db.disk_error(f"cannot write the journal {self._path}", error) from error

    def _remove(self, statements: Sequence[tuple[str, Sequence[tuple[str, ...]]]]) -> None:
        """Take rows away in one transaction; on a full disk with the help of the reserve."""
        self._with_reserve(lambda: self._run(statements))
        self._reserve.fill()

    def _with_reserve(self, write: Callable[[], None]) -> None:
        """Write what makes room, or leads to it; on a full disk with the help of the reserve."""
        try:
            write()
        except DiskFullError:
            self._reserve.spend()
            self._rewind()
            write()

    def _rewind(self) -> None:
        """Let the write-ahead log begin anew where it began: what it has on the disk then suffices for long."""
        try:
            self._database.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except sqlite3.Error as error:
            log.debug("the journal's log cannot be rewound: %s", error)

    def _run(self, statements: Sequence[tuple[str, Sequence[tuple[str, ...]]]]) -> None:
        if len(statements) == 1 and len(statements[0][1]) == 1:
            self._single(statements[0][0], statements[0][1][0])
            return
        with self._transaction() as database:
            for statement, rows in statements:
                database.executemany(statement, rows)

    def load(self) -> tuple[list[Change], list[DamagedRow]]:
        """All pending changes in order of their seq, and rows that cannot be read. Raises LocalDiskError."""
        changes: list[Change] = []
        damaged: list[DamagedRow] = []
        try:
            self._end_step()
            # As bytes: what is damaged need not be text.
            rows = self._database.execute(
                "SELECT CAST(key AS BLOB), CAST(body AS BLOB) FROM change ORDER BY seq"
            )
            for key, body in rows:
                try:
                    change = self._decode(body)
                    is_its_own = change.key.encode() == key
                except Exception as error:  # noqa: BLE001  whatever one row has, the others are read
                    damaged.append(DamagedRow(key, body, str(error)))
                    continue
                if is_its_own:
                    changes.append(change)
                else:
                    damaged.append(DamagedRow(key, body, "it is another key's"))
        except sqlite3.Error as error:
            raise LocalDiskError(f"cannot read the journal {self._path}: {error}") from error
        return changes, damaged

    def remove_damaged(self, rows: Sequence[DamagedRow]) -> None:
        """Forget rows that cannot be read. Repeatable. Raises LocalDiskError."""
        if not rows:
            return
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM change WHERE CAST(key AS BLOB) = ?", [(row.raw_key,) for row in rows]
            )

    def record(
        self,
        changes: Iterable[Change],
        removed: Iterable[Key] = (),
        *,
        sums: Sequence[SumsRow] = (),
        settled: Sequence[str] = (),
        makes_room: bool = False,
    ) -> None:
        """Write ``changes`` and ``sums``, take the rows of ``removed`` away, all or nothing.

        The blobs in ``settled`` are known to have the checksums that are stored then. What ``makes_room``, as it
        tells what was sent, may take the last of the disk. Raises LocalDiskError.
        """
        if makes_room:
            kept = list(changes), list(removed)
            self._with_reserve(lambda: self.record(*kept, sums=sums, settled=settled))
            return
        encode = self._encode
        gone = [(key,) for key in removed]
        rows = [(change.key, change.seq, encode(change)) for change in changes]
        # What is newer than a step that was taken.
        passed = [*gone, *((row[0],) for row in rows)] if self._is_settling else []
        if not rows and not sums and not settled:
            tables = ("change", "ahead") if passed else ("change",)
            self._remove([(f"DELETE FROM {table} WHERE key = ?", gone) for table in tables])
            return
        if len(rows) == 1 and not (gone or sums or settled or passed):
            # One statement is its own transaction: half the time of BEGIN, INSERT, COMMIT.
            self._single("INSERT OR REPLACE INTO change VALUES (?, ?, ?)", rows[0])
            return
        with self._transaction() as database:
            database.executemany("DELETE FROM ahead WHERE key = ?", passed)
            database.executemany("DELETE FROM change WHERE key = ?", gone)
            database.executemany("INSERT OR REPLACE INTO change VALUES (?, ?, ?)", rows)
            database.executemany("INSERT OR REPLACE INTO sums VALUES (?, ?, ?)", sums)
            database.executemany("DELETE FROM unsettled WHERE blob_id = ?", [(b,) for b in settled])

    def write_ahead(self, changes: Iterable[Change], removed: Iterable[Key]) -> None:
        """Write a part of what ``take_step`` is to record. It counts for nothing till then. Raises LocalDiskError."""
        while self._is_settling:
            # The disk had no room to end the one before.
            self.settle_step()
        rows: list[tuple[Key, int, bytes | None]] = [(key, 0, None) for key in removed]
        rows += [(change.key, change.seq, self._encode(change)) for change in changes]
        with self._transaction() as database:
            database.executemany("INSERT OR REPLACE INTO ahead VALUES (?, ?, ?)", rows)

    def take_step(
        self,
        changes: Iterable[Change],
        removed: Iterable[Key],
        dropped: Iterable[Key],
        *,
        sums: Sequence[SumsRow] = (),
        settled: Sequence[str] = (),
    ) -> None:
        """Record what was written ahead, but for the keys ``dropped``, and the rest as ``record`` does: all or nothing.

        How long it takes depends on the rest alone. Raises LocalDiskError.
        """
        rows = [(change.key, change.seq, self._encode(change)) for change in changes]
        gone = [(key,) for key in removed]
        late = [(key,) for key in dropped] + gone + [(row[0],) for row in rows]
        with self._transaction() as database:
            database.executemany("DELETE FROM ahead WHERE key = ?", late)
            database.executemany("DELETE FROM change WHERE key = ?", gone)
            database.executemany("INSERT OR REPLACE INTO change VALUES (?, ?, ?)", rows)
            database.executemany("INSERT OR REPLACE INTO sums VALUES (?, ?, ?)", sums)
            database.executemany("DELETE FROM unsettled WHERE blob_id = ?", [(b,) for b in settled])
            database.execute("INSERT INTO step VALUES (1)")
        self._is_settling = True

    def settle_step(self) -> bool:
        """Bring some rows of the step that was taken to their place; are there any left? Raises LocalDiskError."""
        last = self._database.execute(
            "SELECT key FROM ahead ORDER BY key LIMIT 1 OFFSET ?", (SETTLED_AT_ONCE - 1,)
        ).fetchone()
        with self._transaction() as database:
            _settle(database, None if last is None else last[0])
        self._is_settling = last is not None
        return self._is_settling

    def forget_ahead(self) -> None:
        """There will be no step. Repeatable. Raises LocalDiskError."""
        if self._is_settling:
            return
        self._run([("DELETE FROM ahead WHERE key >= ?", [("",)])])

    def _end_step(self) -> None:
        """A step that an earlier run took is recorded in full, one that it only began is not."""
        if self._database.execute("SELECT 1 FROM step").fetchone():
            with self._transaction() as database:
                _settle(database, None)
        elif self._database.execute("SELECT 1 FROM ahead").fetchone():
            self.forget_ahead()

    def unsettle(self, blob_id: str) -> None:
        """The blob's checksums are not to be trusted until they are recorded again. Raises LocalDiskError."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO unsettled VALUES (?)", (blob_id,))

    def unsettled(self) -> set[str]:
        """The blobs whose checksums are not to be trusted."""
        return {blob_id for (blob_id,) in self._database.execute("SELECT blob_id FROM unsettled")}

    def sums(self, blob_id: str) -> dict[int, bytes]:
        """The checksums of a large blob, by chunk."""
        found = self._database.execute("SELECT chunk, body FROM sums WHERE blob_id = ?", (blob_id,))
        return dict(found.fetchall())

    def blobs_with_sums(self) -> set[str]:
        """The blobs that have rows of checksums."""
        return {found for (found,) in self._database.execute("SELECT DISTINCT blob_id FROM sums")}

    def forget_sums(self, blob_ids: Iterable[str]) -> None:
        """Forget the checksums of blobs that are gone. Repeatable. Raises LocalDiskError."""
        gone = [(blob_id,) for blob_id in blob_ids]
        tables = ("sums", "unsettled")
        self._remove([(f"DELETE FROM {table} WHERE blob_id = ?", gone) for table in tables])

    def _single(self, statement: str, row: tuple[str | int | bytes, ...]) -> None:
        try:
            crashpoint("journal: before commit")
            self._database.execute(statement, row)
            self.commits += 1
            crashpoint("journal: committed")
        except sqlite3.Error as error:
            raise db.disk_error(f"cannot write the journal {self._path}", error) from error

    def upload_begun(self, upload_id: str, key: Key) -> None:
        """Remember a multipart upload of ``key``: it is aborted at the next start unless a change names it.

        A temporary object is remembered under its key in place of an id (``stale_uploads``).
        """
        statement = "INSERT OR REPLACE INTO upload VALUES (?, ?)"
        self._with_reserve(lambda: self._single(statement, (upload_id, key)))

    def upload_ended(self, upload_id: str) -> None:
        """Forget a multipart upload that was completed or aborted. Repeatable."""
        tables = ("part", "upload")
        self._remove([(f"DELETE FROM {t} WHERE upload_id = ?", [(upload_id,)]) for t in tables])
        crashpoint("upload: forgotten")

    def uploads(self) -> list[tuple[str, Key]]:
        """Unfinished multipart uploads as (upload id, key), and temporary objects as (key, key)."""
        return list(self._database.execute("SELECT upload_id, key FROM upload"))

    def part_sent(self, upload_id: str, part: PartInfo) -> None:
        """Remember a part that S3 confirmed."""
        statement = "INSERT OR REPLACE INTO part VALUES (?, ?, ?)"
        row = (upload_id, part.number, self._encode(part))
        self._with_reserve(lambda: self._single(statement, row))
        crashpoint("part: noted")

    def part_changed(self, upload_id: str, number: int) -> None:
        """Forget a part whose bytes are about to change."""
        statement = "DELETE FROM part WHERE upload_id = ? AND number = ?"
        self._with_reserve(lambda: self._single(statement, (upload_id, number)))
        crashpoint("part: taken back")

    def parts(self, upload_id: str) -> dict[int, PartInfo]:
        """The remembered parts of an upload, by index (number - 1); a row that cannot be read is none."""
        parts: dict[int, PartInfo] = {}
        rows = self._database.execute("SELECT body FROM part WHERE upload_id = ?", (upload_id,))
        for (body,) in rows:
            try:
                part = self._decode_part(body)
            except (msgspec.MsgspecError, TypeError, ValueError) as error:
                log.warning("a part of the upload %s is sent again: %s", upload_id, error)
                continue
            parts[part.number - 1] = part
        return parts

    def force(self) -> None:
        """Flush to disk what is committed; for use in a thread. Raises OSError."""
        db.force_to_disk(self._path)


def _settle(database: sqlite3.Connection, last: Key | None) -> None:
    """Bring the rows of a step up to the key ``last`` to their place, or all, which ends it."""
    span, bound = ("key <= ?", (last,)) if last is not None else ("1", ())
    database.execute(
        f"DELETE FROM change WHERE key IN (SELECT key FROM ahead WHERE body IS NULL AND {span})",
        bound,
    )
    database.execute(
        "INSERT OR REPLACE INTO change"
        f" SELECT key, seq, body FROM ahead WHERE body IS NOT NULL AND {span}",
        bound,
    )
    database.execute(f"DELETE FROM ahead WHERE {span}", bound)
    if last is None:
        database.execute("DELETE FROM step")

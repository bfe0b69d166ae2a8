"""What was found to lie in the files of one folder, so that no byte is hashed twice: a table in one SQLite file.

A row tells of one path which version it was seen to hold, the XXH3-128 of its bytes, and the stat of the
file then. Where the stat is still the same, so are the bytes. The table lies in the cache folder; losing
it costs hashing, and another download of what has no ETag that tells anything.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple, TypeAlias

from s3mount import db
from s3mount.checkout.folder_state import place_of
from s3mount.errors import LocalDiskError
from s3mount.manifest.model import Entry

TABLES_MAX = 200
"""Tables of so many folders are kept, those used last."""
ROWS_MAX = 20_000_000
"""Of one folder, about 200 bytes each; above, those seen longest ago are forgotten."""
BATCH_ROWS = 500
"""So many rows are written in one transaction: what a kill can lose of them is hashed again."""
READ_ROWS = 1000
SKIP_ROWS_MAX = 200
"""Passing over so many rows is quicker than looking a path up anew."""

MIGRATIONS = (
    """
    -- path: relative to the folder. bucket, version_id, etag: the version that the bytes are; NULL and '' where
    -- it was not told, or where they are none. unlike: the ETag that the bytes were found not to have, '' if none.
    -- run: of checkout, counted up; the least are forgotten first.
    CREATE TABLE file (
        path TEXT PRIMARY KEY, bucket TEXT NOT NULL, version_id TEXT, etag TEXT NOT NULL,
        size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
        inode INTEGER NOT NULL, digest BLOB NOT NULL, unlike TEXT NOT NULL, run INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE folder (path TEXT NOT NULL, run INTEGER NOT NULL);
    """,
    """
    -- is_proven: 0 where neither ETag nor checksum could tell that the bytes are the version's. What was remembered
    -- before there was a difference is forgotten.
    DELETE FROM file;
    ALTER TABLE file ADD COLUMN is_proven INTEGER NOT NULL DEFAULT 1;
    """,
)

_COLUMNS = (
    "path, bucket, version_id, etag, size, mtime_ns, ctime_ns, inode, digest, unlike, is_proven"
)


class Row(NamedTuple):
    """One file as it was seen. ``unlike`` is an ETag that it was found not to have.
    With an empty ``bucket`` it was no version at all.

    ``is_proven``: ``False`` where it came from the store so, and nothing could tell whether it is right.
    """

    path: str
    bucket: str
    version_id: str | None
    etag: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    digest: bytes
    unlike: str = ""
    is_proven: bool = True

    def is_of(self, found: os.stat_result) -> bool:
        """Is the file untouched since?"""
        return (
            self.ctime_ns == found.st_ctime_ns
            and self.mtime_ns == found.st_mtime_ns
            and self.size == found.st_size
            and self.inode == found.st_ino
        )

    @property
    def is_checkouts(self) -> bool:
        """Did a checkout put these bytes there, or find them right? Else they were only seen."""
        return bool(self.bucket)

    def holds(self, entry: Entry) -> bool:
        """Were the bytes those of this version?

        Equal ETags and sizes mean equal bytes. Without ETags an equal version id does, unless it is
        ``null``, which each write of the key without versions has.
        """
        if entry.size is not None and entry.size != self.size:
            return False
        if entry.etag and self.etag:
            return entry.etag == self.etag
        if entry.version_id in (None, "null") or not self.is_checkouts:
            return False
        return entry.version_id == self.version_id and entry.bucket == self.bucket


def row_of(
    path: str, entry: Entry, found: os.stat_result, digest: bytes, *, is_proven: bool = True
) -> Row:
    """The row for a file that holds ``entry``, as ``found`` says of it."""
    return Row(
        path,
        entry.bucket,
        entry.version_id,
        entry.etag,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_ino,
        digest,
        is_proven=is_proven,
    )


Values: TypeAlias = tuple[object, ...]


class DigestIndex:
    """The table of one folder: read in the order of paths, written in batches.

    Looking up and writing may be done by two threads, each by one. Nothing but ``open`` raises: with a
    table that turns out to be damaged or on a full disk, work goes on without it.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._reader = db.open_database(path, MIGRATIONS, any_thread=True)
        self._writer: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._ahead: list[Row] = []
        self._place = 0
        self._asked = ""
        self._waiting: list[Values] = []
        self._folder = folder
        self._run = 0
        self._works = True

    @classmethod
    def open(cls, cache_dir: Path, folder: Path) -> DigestIndex:
        """The table of ``folder``. One that is damaged is begun anew. Raises LocalDiskError."""
        path = place_of(cache_dir, folder, "sqlite")
        home = path.parent
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LocalDiskError(f"{home} cannot be made: {error.strerror}") from error
        try:
            return cls(path, folder)
        except LocalDiskError:
            if not path.is_file():
                raise
            remove(path)
            return cls(path, folder)

    def find(self, path: str) -> Row | None:
        """What is remembered of ``path``. Quick where paths come in their order."""
        is_onwards = path > self._asked and self._cursor is not None
        self._asked = path
        if not is_onwards:
            return self._seek(path)
        for _ in range(SKIP_ROWS_MAX):
            if self._place >= len(self._ahead) and not self._read_on():
                return None
            row = self._ahead[self._place]
            if row[0] == path:
                self._place += 1
                return row
            if row[0] > path:
                return None
            self._place += 1
        return self._seek(path)

    def _read_on(self) -> bool:
        """The next rows in order; ``False`` at the end of the table."""
        if self._cursor is None:
            return False
        try:
            self._ahead = list(map(Row._make, self._cursor.fetchmany(READ_ROWS)))
        except sqlite3.Error:
            self._ahead = []
            self._works = False
        self._place = 0
        return bool(self._ahead)

    def _seek(self, path: str) -> Row | None:
        """Begin to read at ``path``."""
        self._ahead, self._place = [], 0
        if not self._works:
            return None
        try:
            self._cursor = self._reader.execute(
                f"SELECT {_COLUMNS} FROM file WHERE path >= ? ORDER BY path", (path,)
            )
        except sqlite3.Error:
            self._works = False
            return None
        if self._read_on() and self._ahead[0].path == path:
            self._place = 1
            return self._ahead[0]
        return None

    def put(self, row: Row) -> None:
        """Remember a file, in place of what was known of its path."""
        self._waiting.append(row)
        if len(self._waiting) >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting. Repeatable."""
        if not self._waiting or not self._works:
            self._waiting.clear()
            return
        rows, self._waiting = self._waiting, []
        try:
            writer = self._open_writer()
            marks = ", ".join("?" * 12)
            writer.execute("BEGIN IMMEDIATE")
            writer.executemany(
                f"INSERT OR REPLACE INTO file ({_COLUMNS}, run) VALUES ({marks})",
                [(*row, self._run) for row in rows],
            )
            writer.execute("COMMIT")
        except (sqlite3.Error, LocalDiskError):
            # Only time is lost: these files are hashed again when they are looked at next.
            self._works = False
            with contextlib.suppress(sqlite3.Error):
                if self._writer is not None and self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def _open_writer(self) -> sqlite3.Connection:
        if self._writer is None:
            self._writer = db.open_database(self._path, MIGRATIONS, any_thread=True)
            told = self._writer.execute("SELECT run FROM folder").fetchone()
            self._run = told[0] + 1 if told else 1
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.execute("DELETE FROM folder")
            self._writer.execute(
                "INSERT INTO folder VALUES (?, ?)",
                (os.fsencode(self._folder).decode("utf-8", "replace"), self._run),
            )
            self._writer.execute("COMMIT")
        return self._writer

    def close(self) -> None:
        """Write what is waiting, forget what is too much, and close. Repeatable."""
        self.flush()
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._forget_surplus(self._writer)
            self._writer.close()
            self._writer = None
            _keep_newest(self._path.parent)
        self._cursor = None
        self._ahead = []
        self._reader.close()

    def _forget_surplus(self, writer: sqlite3.Connection) -> None:
        (count,) = writer.execute("SELECT count(*) FROM file").fetchone()
        if count > ROWS_MAX:
            writer.execute(
                "DELETE FROM file WHERE path IN (SELECT path FROM file ORDER BY run LIMIT ?)",
                (count - ROWS_MAX,),
            )


def remove(path: Path) -> None:
    """Remove a table and what lies beside it. Raises OSError."""
    for name in (str(path), f"{path}-wal", f"{path}-shm", str(path.with_suffix(".picture"))):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _keep_newest(home: Path) -> None:
    """Forget the tables of the folders that were checked out longest ago, above TABLES_MAX."""
    with contextlib.suppress(OSError):
        tables = sorted(home.glob("*.sqlite"), key=lambda path: -path.stat().st_mtime)
        for path in tables[TABLES_MAX:]:
            remove(path)

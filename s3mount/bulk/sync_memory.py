"""Which object each file of a folder was found to be equal to, so that S3 is not asked for its time of change again.

A row tells size and times of change of the file, and the ETag of the object, when both were the same. Where all
still are, so are the two. That the bytes were, not only the time of change, holds as long as nobody touched the file
at all (its ctime, which no program can set). The table lies in the cache folder; losing it costs a HEAD of each
object, and reading the files anew where bytes are compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from pathlib import Path

from s3mount import db
from s3mount.bulk.selecting import Item
from s3mount.errors import LocalDiskError
from s3mount.refs import ETag

TABLES_MAX = 200
"""Tables of so many pairs of places are kept, those used last."""
BATCH_ROWS = 1000
MIGRATIONS = (
    """
    CREATE TABLE file (
        name TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, etag TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    -- ctime_ns: the file's when its bytes were known to be the object's, else 0.
    ALTER TABLE file ADD COLUMN ctime_ns INTEGER NOT NULL DEFAULT 0;
    """,
)


class SyncMemory:
    """The table of one folder and one place in S3. What cannot be used is worked without; nothing here raises."""

    def __init__(self, cache_dir: Path, local: str, remote: str) -> None:
        self._database: sqlite3.Connection | None = None
        self._waiting: list[tuple[str, int, int, str, int]] = []
        of = f"{os.path.abspath(local)}\0{remote}".encode("utf-8", "surrogateescape")
        folder = cache_dir / "sync"
        path = folder / f"{hashlib.sha256(of).hexdigest()[:32]}.sqlite"
        with contextlib.suppress(OSError, LocalDiskError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _prune(folder, path)
            self._database = db.open_database(path, MIGRATIONS, flushes=False)
            os.utime(path)

    def knows(self, file: Item, etag: ETag, *, by_bytes: bool = False) -> bool:
        """Were the file and an object with this ETag seen to be the same, and is the file what it was?

        ``by_bytes``: not only by the time of change.
        """
        if self._database is None or not etag:
            return False
        with contextlib.suppress(sqlite3.Error):
            row = self._database.execute(
                "SELECT size, mtime_ns, etag, ctime_ns FROM file WHERE name = ?", (file.name,)
            ).fetchone()
            if row is None or row[:3] != (file.size, file.modified_ns, etag):
                return False
            return not by_bytes or (file.ctime_ns > 0 and row[3] == file.ctime_ns)
        return False

    def remember(self, file: Item, etag: ETag, *, by_bytes: bool = False) -> None:
        """These two are the same."""
        if self._database is None or not etag:
            return
        ctime_ns = file.ctime_ns if by_bytes else 0
        self._waiting.append((file.name, file.size or 0, file.modified_ns, etag, ctime_ns))
        if len(self._waiting) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        rows, self._waiting = self._waiting, []
        if self._database is None or not rows:
            return
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?)", rows)
            self._database.execute("COMMIT")

    def close(self) -> None:
        """Write what waits, and close. Repeatable."""
        self._flush()
        if self._database is not None:
            self._database.close()
            self._database = None


def _prune(folder: Path, mine: Path) -> None:
    """Forget the tables used longest ago, where there are too many."""
    tables = [path for path in folder.glob("*.sqlite") if path != mine]
    if len(tables) < TABLES_MAX:
        return
    for path in sorted(tables, key=lambda each: each.stat().st_mtime)[
        : len(tables) - TABLES_MAX + 1
    ]:
        for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            name.unlink(missing_ok=True)

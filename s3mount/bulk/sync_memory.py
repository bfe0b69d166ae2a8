"""Which object each file of a folder was found to be equal to, so that S3 is not asked for its time of change again.

A row tells size and time of change of the file, and the ETag of the object, when both were the same. Where all three
still are, so are the two. The table lies in the cache folder; losing it costs a HEAD of each object.
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

TABLES_MAX = 200
"""Tables of so many pairs of places are kept, those used last."""
BATCH_ROWS = 1000
MIGRATIONS = (
    """
    CREATE TABLE file (
        name TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, etag TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
)


class SyncMemory:
    """The table of one folder and one place in S3. What cannot be used is worked without; nothing here raises."""

    def __init__(self, cache_dir: Path, local: str, remote: str) -> None:
        self._database: sqlite3.Connection | None = None
        self._waiting: list[tuple[str, int, int, str]] = []
        of = f"{os.path.abspath(local)}\0{remote}".encode("utf-8", "surrogateescape")
        folder = cache_dir / "sync"
        path = folder / f"{hashlib.sha256(of).hexdigest()[:32]}.sqlite"
        with contextlib.suppress(OSError, LocalDiskError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _prune(folder, path)
            self._database = db.open_database(path, MIGRATIONS, flushes=False)
            os.utime(path)

    def knows(self, file: Item, obj: Item) -> bool:
        """Were these two seen to be the same, and are they what they were?"""
        if self._database is None or not obj.etag:
            return False
        with contextlib.suppress(sqlite3.Error):
            row = self._database.execute(
                "SELECT size, mtime_ns, etag FROM file WHERE name = ?", (file.name,)
            ).fetchone()
            return bool(row == (file.size, file.modified_ns, obj.etag))
        return False

    def remember(self, file: Item, obj: Item) -> None:
        """These two are the same."""
        if self._database is None or not obj.etag:
            return
        self._waiting.append((file.name, file.size or 0, file.modified_ns, obj.etag))
        if len(self._waiting) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        rows, self._waiting = self._waiting, []
        if self._database is None or not rows:
            return
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?)", rows)
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

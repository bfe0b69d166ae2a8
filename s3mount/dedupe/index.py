"""Which content lies under which key in S3: a bounded table in one SQLite file, filled by uploads and whole reads.

An entry names a version of an object and the CRC64NVME of each of its blocks. Checksums are a hint, no
proof: whoever finds an entry by them has to compare something strong before he believes it. The
file lies in the cache folder; losing it costs uploads that a copy inside S3 could have replaced.
"""

from __future__ import annotations

import logging
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from s3mount import db
from s3mount.errors import LocalDiskError
from s3mount.refs import ContentRef, Key

log = logging.getLogger(__name__)

MIGRATIONS = (
    """
    -- sums: the CRC64NVME of each block of 128 KiB, 8 bytes each. first: that of the first block, as signed.
    -- used: grows with every use; the least are forgotten first.
    CREATE TABLE content (
        key TEXT PRIMARY KEY, etag TEXT NOT NULL, version_id TEXT, size INTEGER NOT NULL,
        first INTEGER NOT NULL, sums BLOB NOT NULL, used INTEGER NOT NULL
    );
    CREATE INDEX content_by_first ON content (first, size);
    CREATE INDEX content_by_use ON content (used);
    """,
)

SUMS_BYTES_MAX = 64 << 20
"""All checksums together: those of a TiB."""
ENTRIES_MAX = 200_000
FOUND_MAX = 8
"""As many contents that begin alike are compared with a new one."""
FORGOTTEN_MAX = 1000
EVICT_SHARE = 10
"""A tenth is forgotten when it is full, so that it is not done for every entry."""


class IndexedContent(NamedTuple):
    """One content and the CRC64NVME of each of its blocks."""

    ref: ContentRef
    sums: Sequence[int]

    def sum_of(self, block: int) -> int | None:
        """The checksum of a block, ``None`` behind the end."""
        return self.sums[block] if block < len(self.sums) else None


class ContentIndex:
    """The table. A damaged or unusable file is worked without; nothing here raises."""

    def __init__(
        self, path: Path, *, sums_bytes_max: int = SUMS_BYTES_MAX, entries_max: int = ENTRIES_MAX
    ) -> None:
        self._sums_bytes_max = sums_bytes_max
        self._entries_max = entries_max
        self._database: sqlite3.Connection | None = None
        self._used = 0
        self._entries = 0
        self._bytes = 0
        self._forgotten: set[Key] = set()
        try:
            self._database = db.open_database(path, MIGRATIONS)
            self._measure()
        except LocalDiskError as error:
            log.warning("contents are not remembered, so equal ones are sent again: %s", error)
        except sqlite3.Error as error:
            self._give_up(error)

    def _measure(self) -> None:
        for row in self._rows("SELECT count(*), total(length(sums)), max(used) FROM content"):
            self._entries, self._bytes, self._used = row[0], int(row[1]), row[2] or 0

    def close(self) -> None:
        """Close the file. Repeatable."""
        self._forget_due()
        if self._database is not None:
            self._database.close()
            self._database = None

    def _forget_due(self) -> None:
        keys, self._forgotten = self._forgotten, set()
        if self._database is None or not keys:
            return
        try:
            self._database.execute("BEGIN")
            rows = [(key,) for key in keys]
            self._database.executemany("DELETE FROM content WHERE key = ?", rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        self._forget_due()
        if self._database is None:
            return []
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _give_up(self, error: sqlite3.Error) -> None:
        log.warning("known contents cannot be looked up, so equal ones are sent again: %s", error)
        self.close()

    def add(self, ref: ContentRef, sums: Sequence[int]) -> None:
        """The object ``ref`` has blocks with these checksums. What was known of its key is replaced."""
        if not sums or 8 * len(sums) > self._sums_bytes_max // EVICT_SHARE:
            self.forget(ref.key)
            return
        body = array("Q", sums).tobytes()
        self._used += 1
        self._entries += 1
        self._bytes += len(body)
        self._rows(
            "INSERT OR REPLACE INTO content VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(ref.key, ref.etag, ref.version_id, ref.size, _signed(sums[0]), body, self._used),
        )
        if self._entries > self._entries_max or self._bytes > self._sums_bytes_max:
            self._evict()

    def _evict(self) -> None:
        # Replaced entries were counted twice.
        self._measure()
        if self._entries <= self._entries_max and self._bytes <= self._sums_bytes_max:
            return
        self._rows(
            "DELETE FROM content WHERE key IN (SELECT key FROM content ORDER BY used LIMIT ?)",
            self._entries // EVICT_SHARE + 1,
        )
        self._measure()
        if self._entries and self._database is not None:
            self._evict()

    def forget(self, key: Key) -> None:
        """What ``key`` holds is not known any more. Repeatable.

        Written with others, before anything is looked up: most keys, those of small files, were never here.
        """
        if self._database is not None:
            self._forgotten.add(key)
        if len(self._forgotten) >= FORGOTTEN_MAX:
            self._forget_due()

    def of(self, ref: ContentRef) -> IndexedContent | None:
        """What is known of exactly this version."""
        found = self._known(
            "SELECT * FROM content WHERE key = ? AND etag = ? AND size = ?",
            *(ref.key, ref.etag, ref.size),
        )
        return next(found, None)

    def beginning_with(self, first: int, *, size: int | None = None) -> list[IndexedContent]:
        """Contents whose first block has this checksum (and that have this size), the last used first."""
        limit = "ORDER BY used DESC LIMIT ?"
        if size is None:
            query = f"SELECT * FROM content WHERE first = ? {limit}"
            return list(self._known(query, _signed(first), FOUND_MAX))
        query = f"SELECT * FROM content WHERE first = ? AND size = ? {limit}"
        return list(self._known(query, _signed(first), size, FOUND_MAX))

    def _known(self, statement: str, *values: object) -> Iterator[IndexedContent]:
        for key, etag, version_id, size, _, body, _ in self._rows(statement, *values):
            sums = array("Q")
            sums.frombytes(body[: len(body) // 8 * 8])
            yield IndexedContent(ContentRef(key, etag, size, version_id), sums)

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM content")[0][0]) if self._database else 0


def _signed(crc: int) -> int:
    """SQLite's integers are signed."""
    return crc - (1 << 64) if crc >= 1 << 63 else crc

"""What the cache's files hold, in SQLite: survives kill -9 and remount, shared by all mounts.

The smallest contents lie in the catalog itself instead of a file (``row_name``): no inode for each, and
no half a millisecond to make a file where the file system is slow at that (ext4 without a journal, with
many removed lately; with one it takes 15 us, as a row does).

The order is always: data into the file, then the catalog; and for removals: the catalog, on
disk (``synchronous=FULL``), then the file. So the catalog never claims bytes that are not
there after a kill, and lost updates cost only a fetch. A power cut can also lose data that
the kernel had not written back: rows changed since are known by their boot id and dropped,
unless the content has checksums (a CRC-32 of small files, one of each block of others) or was
settled (``fdatasync``) before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from s3mount.cache import blocks
from s3mount.cache.folder import new_name
from s3mount.db import open_database
from s3mount.errors import LocalDiskError

MIGRATIONS = (
    """
    CREATE TABLE entry (
        digest BLOB PRIMARY KEY,      -- of namespace, key, etag, version id, size
        file TEXT NOT NULL UNIQUE,    -- name below blocks/, never used twice
        size INTEGER NOT NULL,        -- of the content
        shift INTEGER NOT NULL,       -- log2 of the block size
        blocks BLOB,                  -- packed snapshot; NULL: every block is there
        crc INTEGER,                  -- CRC-32 of the whole content; NULL: not computed
        allocated INTEGER NOT NULL,   -- bytes on disk, at least those of the blocks
        used_ns INTEGER NOT NULL,     -- wall time of the latest use
        boot TEXT NOT NULL,           -- boot id of the latest change; '': settled on the disk
        revision INTEGER NOT NULL     -- grows with each change of blocks
    ) WITHOUT ROWID;
    CREATE INDEX entry_used ON entry (used_ns, digest);
    CREATE INDEX entry_unsettled ON entry (used_ns) WHERE boot != '' AND crc IS NULL;
    CREATE TABLE total (allocated INTEGER NOT NULL); -- one row: the sum over entry, by triggers
    INSERT INTO total VALUES (0);
    CREATE TRIGGER entry_insert AFTER INSERT ON entry BEGIN
        UPDATE total SET allocated = allocated + new.allocated; END;
    CREATE TRIGGER entry_delete AFTER DELETE ON entry BEGIN
        UPDATE total SET allocated = allocated - old.allocated; END;
    CREATE TRIGGER entry_update AFTER UPDATE OF allocated ON entry BEGIN
        UPDATE total SET allocated = allocated + new.allocated - old.allocated; END;
    """,
    """
    -- 1: the file holds a checksum of every block that is there, behind the content.
    ALTER TABLE entry ADD COLUMN sums INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- Contents that have no file: entry.file names the row.
    CREATE TABLE body (file TEXT PRIMARY KEY, body BLOB NOT NULL);
    """,
    """
    -- Contents that are not evicted, whether they are here already or not: by whom, and as of when.
    CREATE TABLE pin (
        digest BLOB NOT NULL,
        owner TEXT NOT NULL,          -- the state folder of a mount
        since_ns INTEGER NOT NULL,
        PRIMARY KEY (digest, owner)
    ) WITHOUT ROWID;
    """,
)
ROW_BYTES_MAX = 16 << 10
"""Contents up to this size lie in the catalog."""
FREE_PAGES_MAX = 2048
"""Pages (of 4 KiB) that the database file may keep unused; more are given back to the disk."""
_ROW_MARK = "="
_BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another mount's transaction (each takes milliseconds)."""
_READ_BUSY_TIMEOUT_S = 0.05
"""In WAL mode a reader hardly ever waits; when it does, the entry counts as not cached."""


class Row(NamedTuple):
    """One entry as the catalog knows it. ``snapshot`` is ``None`` when every block is there."""

    file: str
    size: int
    shift: int
    snapshot: bytes | None
    crc: int | None
    allocated: int
    revision: int
    doubtful: bool
    sums: bool


class Update(NamedTuple):
    """An entry's present state. ``replace``: blocks were taken away, do not merge with the row."""

    digest: bytes
    file: str
    size: int
    shift: int
    snapshot: bytes | None
    crc: int | None
    allocated: int
    used_ns: int
    revision: int
    replace: bool = False
    sums: bool = False


class Victim(NamedTuple):
    """An entry that may be evicted."""

    used_ns: int
    digest: bytes
    file: str
    allocated: int


class Unsettled(NamedTuple):
    """An entry that is not known to be on the disk. ``lacks_sums``: it is complete and has no checksums."""

    digest: bytes
    file: str
    revision: int
    size: int
    shift: int
    lacks_sums: bool


class CacheCatalog:
    """One connection, for one thread at a time. Methods raise ``sqlite3.Error``.

    The constructor raises LocalDiskError when the catalog cannot be used or is damaged. ``reader``
    never waits long for another mount: its callers may take an error for "not cached".
    """

    def __init__(self, folder: Path, boot_id: str, *, reader: bool = False) -> None:
        self._boot_id = boot_id
        with _opening(folder):
            path = folder / "catalog.sqlite"
            self._database = open_database(path, MIGRATIONS, any_thread=True, gives_back=True)
        timeout_s = _READ_BUSY_TIMEOUT_S if reader else _BUSY_TIMEOUT_S
        self._database.execute(f"PRAGMA busy_timeout={round(timeout_s * 1000)}")

    def close(self) -> None:
        """Close the connection. Repeatable."""
        self._database.close()

    def total(self) -> int:
        """Bytes on disk of all entries, of all mounts."""
        row = self._database.execute("SELECT allocated FROM total").fetchone()
        return int(row[0])

    def count(self) -> int:
        """How many entries there are."""
        return int(self._database.execute("SELECT count(*) FROM entry").fetchone()[0])

    def look_up(self, digest: bytes) -> Row | None:
        """The entry, or ``None``."""
        row = self._database.execute(
            "SELECT file, size, shift, blocks, crc, allocated, revision, boot, sums FROM entry"
            " WHERE digest = ?",
            (digest,),
        ).fetchone()
        if row is None:
            return None
        file, size, shift, packed, crc, allocated, revision, boot, sums = row
        doubtful = crc is None and not sums and boot not in ("", self._boot_id)
        snapshot = None if packed is None else blocks.unpack(packed)
        return Row(file, size, shift, snapshot, crc, allocated, revision, doubtful, bool(sums))

    def files(self, prefix: str) -> set[str]:
        """The file names that begin with ``prefix`` (hexadecimal digits)."""
        found = self._database.execute(
            "SELECT file FROM entry WHERE file >= ? AND file < ?", (prefix, prefix + "g")
        )
        return {row[0] for row in found}

    def body(self, file: str) -> bytes | None:
        """The content of this row name; ``None`` when it is gone."""
        found = self._database.execute("SELECT body FROM body WHERE file = ?", (file,)).fetchone()
        return None if found is None else bytes(found[0])

    def update(
        self, updates: Sequence[Update], bodies: Sequence[tuple[str, bytes]] = ()
    ) -> list[tuple[int, int]]:
        """Write the entries in one transaction; the (revision, allocated) that each has now.

        ``bodies`` are the contents (row name, bytes) of those that have no file.

        The revision is -1 where another file is known for the content; nothing is changed there.

        A row that somebody else changed meanwhile gets the union of the blocks; a row of the same
        file under another digest goes.
        """
        with _Transaction(self._database):
            self._database.executemany("INSERT OR REPLACE INTO body VALUES (?, ?)", bodies)
            return [self._update_one(update) for update in updates]

    def touch(self, used: Sequence[tuple[bytes, int]]) -> None:
        """Set the time of the latest use (digest, wall time in ns) where it is known."""
        with _Transaction(self._database):
            self._database.executemany(
                "UPDATE entry SET used_ns = max(used_ns, ?) WHERE digest = ?",
                [(used_ns, digest) for digest, used_ns in used],
            )

    def forget(self, digest: bytes, file: str) -> None:
        """Remove the entry, on disk when this returns. No error when it is not there."""
        self.forget_many([(digest, file)])

    def forget_many(self, entries: Sequence[tuple[bytes, str]]) -> None:
        """Remove entries (digest, file), contents in the catalog included, in one transaction.

        On disk when this returns.
        """
        rows = [(file,) for _, file in entries if is_row_name(file)]
        with _Transaction(self._database, durable=True):
            self._database.executemany("DELETE FROM entry WHERE digest = ? AND file = ?", entries)
            self._database.executemany("DELETE FROM body WHERE file = ?", rows)
        if rows:
            self._give_back()

    def forget_body(self, file: str) -> None:
        """Remove a content that no entry names. Repeatable."""
        self._database.execute("DELETE FROM body WHERE file = ?", (file,))

    def sweep_bodies(self, prefix: str) -> None:
        """Remove the contents that no entry names, of digests that begin with ``prefix``: what a kill left."""
        first = _ROW_MARK + prefix
        self._database.execute(
            "DELETE FROM body WHERE file >= ? AND file < ?"
            " AND NOT EXISTS (SELECT 1 FROM entry WHERE entry.file = body.file)",
            (first, first + "g"),
        )

    def _give_back(self) -> None:
        (unused,) = self._database.execute("PRAGMA freelist_count").fetchone()
        if unused > FREE_PAGES_MAX:
            excess = unused - FREE_PAGES_MAX // 2
            # Not by execute(), which takes one step: a page goes with each.
            self._database.executescript(f"PRAGMA incremental_vacuum({excess})")

    def shrink(self, update: Update) -> tuple[int, int]:
        """Write an entry from which blocks are about to go, on disk when this returns."""
        with _Transaction(self._database, durable=True):
            return self._update_one(update)

    def victims(self, after: tuple[int, bytes], limit: int) -> list[Victim]:
        """Entries in the order of their latest use, behind ``after`` (used_ns, digest), but for pinned ones."""
        found = self._database.execute(
            "SELECT used_ns, digest, file, allocated FROM entry WHERE (used_ns, digest) > (?, ?)"
            " AND NOT EXISTS (SELECT 1 FROM pin WHERE pin.digest = entry.digest)"
            " ORDER BY used_ns, digest LIMIT ?",
            (*after, limit),
        )
        return [Victim(*row) for row in found]

    def entries_of(self, digests: Iterable[bytes]) -> list[Victim]:
        """Those of these entries that are here, pinned or not."""
        query = "SELECT used_ns, digest, file, allocated FROM entry WHERE digest = ?"
        found = (self._database.execute(query, (digest,)).fetchone() for digest in digests)
        return [Victim(*row) for row in found if row is not None]

    def pinned_of(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of these contents that are pinned, by whomever."""
        query = "SELECT 1 FROM pin WHERE digest = ? LIMIT 1"
        return {each for each in digests if self._database.execute(query, (each,)).fetchone()}

    def pin(self, digests: Iterable[bytes], owner: str, since_ns: int) -> None:
        """Do not evict these contents. Repeatable."""
        with _Transaction(self._database):
            self._database.executemany(
                "INSERT OR REPLACE INTO pin VALUES (?, ?, ?)",
                [(digest, owner, since_ns) for digest in digests],
            )

    def unpin(self, owner: str, before_ns: int) -> None:
        """What ``owner`` pinned before ``before_ns``, and not since, may be evicted. Repeatable."""
        self._database.execute(
            "DELETE FROM pin WHERE owner = ? AND since_ns < ?", (owner, before_ns)
        )

    def pin_owners(self) -> list[str]:
        """Who has pinned something."""
        return [row[0] for row in self._database.execute("SELECT DISTINCT owner FROM pin")]

    def unsettled(self, used_before_ns: int, limit: int) -> list[Unsettled]:
        """Entries whose data may not be on the disk yet."""
        found = self._database.execute(
            "SELECT digest, file, revision, size, shift, blocks IS NULL AND NOT sums FROM entry"
            " WHERE boot != '' AND crc IS NULL AND used_ns < ? ORDER BY used_ns LIMIT ?",
            (used_before_ns, limit),
        )
        return [Unsettled(*row) for row in found]

    def settle(self, digest: bytes, revision: int, *, sums: bool = False) -> None:
        """Note that the entry's data are on the disk, if it has not changed since; ``sums``: checksums, too."""
        self._database.execute(
            "UPDATE entry SET boot = '', sums = max(sums, ?) WHERE digest = ? AND revision = ?",
            (sums, digest, revision),
        )

    def _update_one(self, update: Update) -> tuple[int, int]:
        row = self._database.execute(
            "SELECT file, blocks, allocated, revision, sums FROM entry WHERE digest = ?",
            (update.digest,),
        ).fetchone()
        snapshot, allocated, revision = update.snapshot, update.allocated, update.revision
        sums = update.sums
        if row is None:
            # The content may have been relabelled: then its file has a row under another digest.
            self._database.execute("DELETE FROM entry WHERE file = ?", (update.file,))
        if row is not None:
            if row[0] != update.file:
                return -1, 0
            if row[3] != revision and not update.replace:
                allocated = max(allocated, row[2])
                if row[1] is None:
                    snapshot = None
                elif snapshot is not None:
                    snapshot = blocks.merged(snapshot, blocks.unpack(row[1]))
            revision = max(revision, row[3])
            sums = sums and bool(row[4])
        self._database.execute(
            "INSERT INTO entry VALUES"
            " (:digest, :file, :size, :shift, :blocks, :crc, :allocated, :used_ns, :boot, :revision, :sums)"
            if row is None
            else "UPDATE entry SET size = :size, shift = :shift, blocks = :blocks, crc = :crc,"
            " allocated = :allocated, used_ns = :used_ns, boot = :boot, revision = :revision, sums = :sums"
            " WHERE digest = :digest AND file = :file",
            {
                "digest": update.digest,
                "file": update.file,
                "size": update.size,
                "shift": update.shift,
                "blocks": None if snapshot is None else blocks.pack(snapshot),
                "crc": update.crc,
                "allocated": allocated,
                "used_ns": update.used_ns,
                "boot": self._boot_id,
                "revision": revision + 1,
                "sums": sums,
            },
        )
        return revision + 1, allocated


def row_name(digest: bytes) -> str:
    """A name, never used before, for content with this digest that lies in the catalog."""
    return _ROW_MARK + new_name(digest)


def is_row_name(file: str) -> bool:
    """Does the content of this name lie in the catalog?"""
    return file.startswith(_ROW_MARK)


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT; rolled back when the body raises."""

    def __init__(self, database: sqlite3.Connection, *, durable: bool = False) -> None:
        self._database = database
        self._durable = durable

    def __enter__(self) -> None:
        if self._durable:
            self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None:
                self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if self._durable:
                self._database.execute("PRAGMA synchronous=NORMAL")


@contextlib.contextmanager
def _opening(folder: Path) -> Iterator[None]:
    """One mount at a time makes the schema. Raises LocalDiskError."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LocalDiskError(f"cannot use the cache folder {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_catalog(folder: Path) -> None:
    """Remove a damaged catalog's files. Raises ``OSError``."""
    for suffix in ("", "-wal", "-shm"):
        try:
            os.unlink(folder / f"catalog.sqlite{suffix}")
        except FileNotFoundError:
            continue

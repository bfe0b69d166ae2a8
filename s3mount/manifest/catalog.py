"""A manifest as a tree that can be asked: one SQLite file, looked into row by row.

Nothing of it is held in memory but the page at hand, so that ten million entries take no more of
it than ten. What S3 told about an entry later (sizes, attributes) is remembered beside it.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from s3mount import db
from s3mount.errors import DiskFullError, LocalDiskError
from s3mount.refs import ETag, ObjectInfo, VersionId

log = logging.getLogger(__name__)

T = TypeVar("T")

ROOT = 1
"""The number of the top, which holds the buckets."""

FILE, IMPLIED, MARKED = 0, 1, 2
"""Kinds of entries: a file, a directory that keys imply, a directory with an object of its own."""

SCHEMA = 1
"""Part of a catalog's file name: another layout is another file, compiled anew."""

MIGRATIONS = (
    """
    -- One row for each file and directory. number is its inode number, given in the order of the manifest;
    -- parent is the directory's, 0 for the top alone. kind: 0 file, 1 directory that keys imply, 2 directory
    -- with a marker object, which the columns behind then describe. version_id NULL: whatever the key
    -- holds; size NULL: the manifest does not tell; etag '': unknown.
    CREATE TABLE entry (
        number INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, kind INTEGER NOT NULL,
        version_id TEXT, size INTEGER, etag TEXT NOT NULL, last_modified_ns INTEGER, mode INTEGER,
        mtime_ns INTEGER
    );
    -- What S3 told since: an ObjectInfo in MessagePack.
    CREATE TABLE learned (number INTEGER PRIMARY KEY, info BLOB NOT NULL);
    -- Directories whose entries are all there, in a catalog that is filled while it is used.
    CREATE TABLE listed (number INTEGER PRIMARY KEY);
    -- Keys that are no path, or that lost their place: the first of them.
    CREATE TABLE unshown (key TEXT NOT NULL, why TEXT NOT NULL);
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    INSERT INTO entry VALUES (1, 0, '', 1, NULL, NULL, '', NULL, NULL, NULL);
    """,
)
LOOSE = "CREATE TEMP TABLE loose (number INTEGER PRIMARY KEY, info BLOB NOT NULL)"
"""As ``learned``, where another version can take the place of this one: it holds for one mount only."""
INDEX = "CREATE INDEX IF NOT EXISTS place ON entry (parent, name)"

_COLUMNS = (
    "e.number, e.parent, e.name, e.kind, e.version_id, e.size, e.etag, e.last_modified_ns, e.mode, "
    "e.mtime_ns, coalesce(l.info, o.info) FROM entry AS e LEFT JOIN learned AS l ON l.number = e.number "
    "LEFT JOIN loose AS o ON o.number = e.number"
)
_INSERT = "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Row(NamedTuple):
    """One entry. ``info`` is what S3 told of it since, in MessagePack; the rest as in the schema."""

    number: int
    parent: int
    name: str
    kind: int
    version_id: VersionId | None
    size: int | None
    etag: ETag
    last_modified_ns: int | None
    mode: int | None
    mtime_ns: int | None
    info: bytes | None

    @property
    def is_directory(self) -> bool:
        """Is it a directory?"""
        return self.kind != FILE


class Listed(NamedTuple):
    """One entry to be added to a directory: a file, or (with ``kind`` IMPLIED or MARKED) a directory."""

    name: str
    kind: int
    version_id: VersionId | None = None
    size: int | None = None
    etag: ETag = ""
    last_modified_ns: int | None = None


class Catalog:
    """An open catalog. Its methods take some microseconds each, and are for the loop.

    They raise LocalDiskError when the file cannot be read; what cannot be remembered is left out,
    with one warning. Where the disk is full, what is added goes to a copy without a file, for this process alone.
    """

    def __init__(self, path: Path, *, is_kept: bool = True) -> None:
        """Open the catalog at ``path``, or make an empty one; a file only if it is kept. Raises LocalDiskError."""
        self.path = path
        self._is_kept = is_kept
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ObjectInfo).decode
        self._forgetful = False
        if not is_kept:
            self._database = db.open_temporary(MIGRATIONS)
            self._database.execute(INDEX)
            self._database.execute(LOOSE)
            return
        self._database = db.open_database(path, MIGRATIONS, any_thread=True)
        try:
            self._database.execute(INDEX)
            self._database.execute(LOOSE)
        except sqlite3.Error as error:
            self._database.close()
            raise db.disk_error(f"cannot use the catalog {path}", error) from error

    def close(self) -> None:
        """Close the file. Repeatable."""
        self._database.close()

    # ------------------------------------------------------------------- asking

    def row(self, number: int) -> Row | None:
        """The entry with this number."""
        return self._one(f"SELECT {_COLUMNS} WHERE e.number = ?", (number,))

    def child(self, parent: int, name: str) -> Row | None:
        """The entry ``name`` of a directory."""
        return self._one(f"SELECT {_COLUMNS} WHERE e.parent = ? AND e.name = ?", (parent, name))

    def page(self, parent: int, after: str, count: int) -> list[Row]:
        """Up to ``count`` entries of a directory behind the name ``after``, in the order of their UTF-8 bytes."""
        return self._all(
            f"SELECT {_COLUMNS} WHERE e.parent = ? AND e.name > ? ORDER BY e.name LIMIT ?",
            (parent, after, count),
        )

    def name_at(self, parent: int, place: int) -> str:
        """The name of the entry at ``place`` (from 0) of a directory; empty behind its end."""
        found = self._execute(
            "SELECT name FROM entry WHERE parent = ? ORDER BY name LIMIT 1 OFFSET ?",
            (parent, place),
        ).fetchone()
        return "" if found is None else str(found[0])

    def info_of(self, row: Row) -> ObjectInfo | None:
        """What S3 told of an entry since it was compiled, if it was asked."""
        if row.info is None:
            return None
        try:
            return self._decode(row.info)
        except msgspec.MsgspecError as error:
            log.warning("what was remembered of %r cannot be read: %s", row.name, error)
            return None

    def is_listed(self, number: int) -> bool:
        """Are all entries of the directory there? For catalogs that are filled while they are used."""
        query = "SELECT 1 FROM listed WHERE number = ?"
        return self._execute(query, (number,)).fetchone() is not None

    def meta(self, name: str) -> int | str | None:
        """One of the facts noted about the whole."""
        found = self._execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def unshown(self) -> list[tuple[str, str]]:
        """The first keys that have no place in the tree, each with the reason."""
        return self._execute("SELECT key, why FROM unshown ORDER BY rowid", ()).fetchall()

    # ------------------------------------------------------------- remembering

    def learn(self, told: Iterable[tuple[int, ObjectInfo, bool]]) -> None:
        """Remember what S3 told of entries: number, what, and whether it can never change."""
        rows = [(pinned, number, self._encode(info)) for number, info, pinned in told]
        if not rows or self._forgetful:
            return
        try:
            for table, is_pinned in (("learned", True), ("loose", False)):
                chosen: list[tuple[object, ...]] = [row[1:] for row in rows if row[0] is is_pinned]
                if chosen:
                    statement = f"INSERT OR REPLACE INTO {table} VALUES (?, ?)"
                    self._in_transaction(partial(self._database.executemany, statement, chosen))
        except sqlite3.Error as error:
            # Costs asking S3 again, nothing else.
            self._forgetful = True
            log.warning("the catalog %s cannot remember what S3 told: %s", self.path, error)

    def note(self, name: str, value: int | str) -> None:
        """Note a fact about the whole. Raises LocalDiskError."""
        self._insert("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(name, value)])

    # ----------------------------------------------------------------- filling

    def add(self, parent: int, entries: Sequence[Listed]) -> list[int]:
        """Add entries to a directory, or take over those that are there; their numbers.

        A name that is both a file and a directory stays, or becomes, a directory. In one transaction;
        raises LocalDiskError.
        """

        def add() -> list[int]:
            numbers = []
            (last,) = self._database.execute("SELECT max(number) FROM entry").fetchone()
            for entry in entries:
                number = self._add(parent, entry, last + 1)
                last = max(last, number)
                numbers.append(number)
            return numbers

        return self._write(add)

    def _add(self, parent: int, entry: Listed, fresh: int) -> int:
        query = "SELECT number, kind FROM entry WHERE parent = ? AND name = ?"
        found = self._database.execute(query, (parent, entry.name)).fetchone()
        if found is None:
            values = (fresh, parent, *entry, None, None)
            self._database.execute(_INSERT, values)
            return fresh
        number, kind = found
        if entry.kind > kind or (entry.kind == kind and kind != IMPLIED):
            self._database.execute(
                "UPDATE entry SET kind = ?, version_id = ?, size = ?, etag = ?, last_modified_ns = ? "
                "WHERE number = ?",
                (*entry[1:], number),
            )
        return int(number)

    def set_listed(self, numbers: Iterable[int]) -> None:
        """All entries of these directories are there now. Raises LocalDiskError."""
        self._insert("INSERT OR IGNORE INTO listed VALUES (?)", [(n,) for n in numbers])

    def hide(self, keys: Iterable[tuple[str, str]]) -> None:
        """Note keys that have no place in the tree, each with the reason. Raises LocalDiskError."""
        self._insert("INSERT INTO unshown VALUES (?, ?)", list(keys))

    # ------------------------------------------------------------------ SQLite

    def _execute(self, query: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._database.execute(query, values)
        except sqlite3.Error as error:
            raise LocalDiskError(f"the catalog {self.path} cannot be read: {error}") from error

    def _one(self, query: str, values: tuple[object, ...]) -> Row | None:
        try:
            found = self._database.execute(query, values).fetchone()
        except UnicodeEncodeError:
            return None
        except sqlite3.Error as error:
            raise LocalDiskError(f"the catalog {self.path} cannot be read: {error}") from error
        return None if found is None else Row._make(found)

    def _all(self, query: str, values: tuple[object, ...]) -> list[Row]:
        try:
            return [Row._make(found) for found in self._database.execute(query, values)]
        except sqlite3.Error as error:
            raise LocalDiskError(f"the catalog {self.path} cannot be read: {error}") from error

    def _insert(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        self._write(lambda: self._database.executemany(statement, rows))

    def _write(self, change: Callable[[], T]) -> T:
        """Do ``change`` in one transaction, once more without a file if the disk is full. Raises LocalDiskError."""
        try:
            try:
                return self._in_transaction(change)
            except sqlite3.Error as error:
                failure = db.disk_error(f"cannot write the catalog {self.path}", error)
                if not self._is_kept or not isinstance(failure, DiskFullError):
                    raise
                self._leave_the_file(failure)
                return self._in_transaction(change)
        except sqlite3.Error as error:
            raise db.disk_error(f"cannot write the catalog {self.path}", error) from error

    def _in_transaction(self, change: Callable[[], T]) -> T:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            done = change()
            self._database.execute("COMMIT")
        except BaseException:
            # A full disk may have ended it already.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return done

    def _leave_the_file(self, why: LocalDiskError) -> None:
        """Go on in a copy that needs no room on this disk. What S3 told of loose versions is forgotten."""
        copy = db.open_temporary()
        try:
            self._database.backup(copy)
            copy.execute(LOOSE)
        except BaseException:
            copy.close()
            raise
        self._database.close()
        self._database = copy
        self._is_kept = False
        log.warning("%s; what is looked at from now on is not kept", why)

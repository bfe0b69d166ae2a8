"""What HEAD told about objects, and trying told about the store, remembered across mounts.

An object's headers cannot change without its LastModified changing, so (key, ETag, LastModified)
names them for good. It lies in the cache folder: losing it costs requests, nothing else.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from s3mount import db
from s3mount.errors import LocalDiskError
from s3mount.refs import Capabilities, ETag, Key, ObjectHeaders, ObjectInfo

log = logging.getLogger(__name__)

MIGRATIONS = (
    """
    -- headers is an ObjectHeaders in MessagePack; last_modified_s is whole seconds since the epoch
    -- (HEAD and LIST differ in their fractions).
    CREATE TABLE head (
        key TEXT PRIMARY KEY, etag TEXT NOT NULL, last_modified_s INTEGER NOT NULL, headers BLOB NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    -- What the store was seen to honour: at most one row, a Capabilities in MessagePack.
    CREATE TABLE capabilities (seen_ns INTEGER NOT NULL, body BLOB NOT NULL);
    """,
    """
    -- What earlier releases remembered lacks encryption and more, which a change would then not keep.
    DELETE FROM head;
    DELETE FROM capabilities;
    """,
)

UNWRITTEN_MAX = 1000
"""Remembering 2,000 uploads one by one took 7% of the mount's processor time; in one transaction, none to speak of."""

CAPABILITIES_NS = 7 * 86_400 * 1_000_000_000
"""A store is tried again after a week: it may have been updated."""


class HeadMemory:
    """A table of headers in one SQLite file. A damaged or unusable file is worked without."""

    def __init__(self, path: Path) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ObjectHeaders).decode
        self._unwritten: dict[Key, ObjectInfo] = {}
        self._database: sqlite3.Connection | None = None
        try:
            self._database = db.open_database(path, MIGRATIONS)
        except LocalDiskError as error:
            log.warning("attributes are not remembered, so they are asked for again: %s", error)

    def close(self) -> None:
        """Write the rest and close the file. Repeatable."""
        self.flush()
        if self._database is not None:
            self._database.close()
            self._database = None

    def recall(self, key: Key, etag: ETag, last_modified_ns: int) -> ObjectHeaders | None:
        """The headers of exactly this version of the object, if they were remembered."""
        recent = self._unwritten.get(key)
        if recent is not None and recent.etag == etag:
            same_second = recent.last_modified_ns // 10**9 == last_modified_ns // 10**9
            return recent.headers if same_second else None
        if self._database is None:
            return None
        try:
            row = self._database.execute(
                "SELECT headers FROM head WHERE key = ? AND etag = ? AND last_modified_s = ?",
                (key, etag, last_modified_ns // 1_000_000_000),
            ).fetchone()
            return None if row is None else self._decode(row[0])
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            self._give_up(error)
            return None

    def remember(self, infos: Iterable[ObjectInfo]) -> None:
        """Keep the headers of these objects (those that have some).

        They are written with the next ``flush``, which a full buffer begins by itself.
        """
        for info in infos:
            if info.headers is not None:
                self._unwritten[info.key] = info
        if len(self._unwritten) >= UNWRITTEN_MAX:
            self.flush()

    def forget(self, keys: Sequence[Key]) -> None:
        """These objects have other headers now, which are not known here. Repeatable."""
        for key in keys:
            self._unwritten.pop(key, None)
        if self._database is None or not keys:
            return
        try:
            self._database.execute("BEGIN")
            self._database.executemany("DELETE FROM head WHERE key = ?", [(key,) for key in keys])
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def flush(self, before_ns: int | None = None) -> None:
        """Write what was remembered since the last time, in one transaction. Repeatable.

        With ``before_ns`` only what was modified before: a newer object may change once more within
        the second of its LastModified, and a kill must not leave the first of the two on disk.
        """
        due = [
            info
            for info in self._unwritten.values()
            if before_ns is None or info.last_modified_ns < before_ns
        ]
        if self._database is None or not due:
            return
        rows = [
            (
                info.key,
                info.etag,
                info.last_modified_ns // 1_000_000_000,
                self._encode(info.headers),
            )
            for info in due
        ]
        for info in due:
            del self._unwritten[info.key]
        try:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR REPLACE INTO head VALUES (?, ?, ?, ?)", rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def recall_capabilities(self, now_ns: int) -> Capabilities | None:
        """What an earlier mount saw the store honour, unless that is too long ago."""
        if self._database is None:
            return None
        try:
            row = self._database.execute("SELECT seen_ns, body FROM capabilities").fetchone()
            if row is None or not 0 <= now_ns - row[0] < CAPABILITIES_NS:
                return None
            return msgspec.msgpack.decode(row[1], type=Capabilities)
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            self._give_up(error)
            return None

    def remember_capabilities(self, seen: Capabilities, now_ns: int) -> None:
        """Keep what the store was just seen to honour."""
        if self._database is None:
            return
        try:
            self._database.execute("BEGIN")
            self._database.execute("DELETE FROM capabilities")
            self._database.execute(
                "INSERT INTO capabilities VALUES (?, ?)", (now_ns, self._encode(seen))
            )
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("the memory of attributes cannot be used and is left out: %s", error)
        if self._database is not None:
            self._database.close()
            self._database = None

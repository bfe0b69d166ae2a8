"""The put log: which versions a mount has put, so that a manifest can name exactly those.

One row per key, in a database of its own beside the journal. A row is written before the journal
forgets the change, so a kill in between leaves none out. What cannot be written (a full disk) never
holds an upload up, nor does the disk's flush: where a power cut damaged the list, or something could
not be noted, it says of itself that it is not whole.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from s3mount import db
from s3mount.boot_id import boot_id
from s3mount.clock import DATE_NS_MAX, clamped_ns
from s3mount.errors import LocalDiskError, MountError
from s3mount.manifest.model import Entry
from s3mount.names import OWN_NAME
from s3mount.refs import ContentRef, Key
from s3mount.spool.journal.changes import Change, Delete
from s3mount.spool.journal.path_filter import at_or_below

log = logging.getLogger(__name__)

NAME = "puts.sqlite"
PUTS_MAX = 10_000_000
"""Keys that are remembered, some 200 bytes each; beyond, the list is not whole."""

MIGRATIONS = (
    """
    -- The version that each key has by this mount's hand; none where the mount deleted it again.
    -- mode and mtime_ns are NULL where the mount knows none.
    CREATE TABLE put (
        key TEXT PRIMARY KEY, version_id TEXT NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,
        mode INTEGER, mtime_ns INTEGER
    ) WITHOUT ROWID;
    -- 'ended': the mount ended with everything in S3, and the next one begins a new list.
    -- 'gap': why some key may be missing. 'boot': the machine's boot in which the list was written.
    CREATE TABLE note (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
    """,
)


_Row: TypeAlias = tuple[Key, str, int, str, int | None, int | None]


class PutLog:
    """The list of one mount, in its state folder. For one thread. Nothing here raises.

    It goes on with what a mount left that did not end with everything in S3.
    """

    def __init__(self, folder: Path, *, puts_max: int = PUTS_MAX) -> None:
        self._path = folder / NAME
        self._puts_max = puts_max
        self._database: sqlite3.Connection | None = None
        self._count = 0
        self._has_gap = False

    def open(self) -> None:
        """Begin a list, or go on with an interrupted mount's; before that, nothing is noted."""
        was_there = self._path.exists()
        try:
            self._database = db.open_database(self._path, MIGRATIONS, flushes=False)
            self._begin(self._database, was_there)
        except (LocalDiskError, sqlite3.Error) as error:
            log.warning("the list of what this mount puts is begun anew: %s", error)
            self._begin_again(str(error))

    def _begin(self, database: sqlite3.Connection, was_there: bool) -> None:
        notes = dict(database.execute("SELECT name, text FROM note").fetchall())
        boot = boot_id()
        interrupted = was_there and "ended" not in notes and notes.get("boot") != boot
        if "ended" in notes:
            database.executescript("BEGIN; DELETE FROM put; DELETE FROM note; COMMIT;")
            notes = {}
        database.execute("INSERT OR REPLACE INTO note VALUES ('boot', ?)", (boot,))
        self._has_gap = "gap" in notes
        if interrupted:
            self._gap("the machine was restarted while it was mounted")
        (self._count,) = database.execute("SELECT count(*) FROM put").fetchone()

    def _begin_again(self, why: str) -> None:
        self.close(is_all_sent=False)
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(NAME + suffix).unlink(missing_ok=True)
        try:
            self._database = db.open_database(self._path, MIGRATIONS, flushes=False)
            self._gap(f"the list could not be read: {why}")
        except (LocalDiskError, OSError) as error:
            log.warning("what this mount puts is not listed: %s", error)

    def stored(self, answers: Iterable[tuple[Key, Change, ContentRef | None]]) -> None:
        """S3 has these contents under their keys by our hand; ``None``: nothing, we deleted it."""
        rows: dict[Key, _Row | None] = {}
        for key, change, content in answers:
            try:
                rows[key] = None if content is None else _row(key, change, content)
            except Exception as error:  # noqa: BLE001  one key that cannot be noted is a gap, no more
                self._gap(f"{key!r} could not be noted: {error}")
        put = [row for row in rows.values() if row is not None]
        if self._count + len(put) > self._puts_max:
            self._gap(f"more than {self._puts_max:,} keys were put")
            del put[max(0, self._puts_max - self._count) :]
        if self._database is None or not rows:
            return
        # Counts a key again that is put again: a bound, not a number to show.
        self._count += len(put)
        gone = [(key,) for key, row in rows.items() if row is None]
        try:
            self._database.execute("BEGIN")
            self._database.executemany("DELETE FROM put WHERE key = ?", gone)
            self._database.executemany("INSERT OR REPLACE INTO put VALUES (?, ?, ?, ?, ?, ?)", put)
            self._database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  what cannot be noted is a gap, no more
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            self._gap(f"{next(iter(rows))!r} and others could not be noted: {error}")

    def _gap(self, why: str) -> None:
        """Remember that the list is not whole, and say so once."""
        if self._has_gap or self._database is None:
            return
        log.warning("the list of what this mount puts is not whole: %s", why)
        self._has_gap = True
        try:
            self._database.execute("INSERT OR REPLACE INTO note VALUES ('gap', ?)", (why,))
        except sqlite3.Error:
            # Without room for this word, no list at all is better than one with an unknown gap.
            self._database.close()
            self._database = None
            self._path.unlink(missing_ok=True)

    def close(self, *, is_all_sent: bool) -> None:
        """End; with all in S3, the next mount begins a new list. Repeatable."""
        database, self._database = self._database, None
        if database is None:
            return
        try:
            if is_all_sent:
                database.execute("INSERT OR REPLACE INTO note VALUES ('ended', '')")
            database.close()
        except sqlite3.Error as error:
            log.warning("the list of what this mount has put stays for the next one: %s", error)


def _row(key: Key, change: Change, content: ContentRef) -> _Row:
    attributes = None if isinstance(change, Delete) else change.attributes
    return (
        *(key, content.version_id or "null", content.size, content.etag),
        attributes.mode if attributes is not None else None,
        None if attributes is None else clamped_ns(attributes.mtime_ns, DATE_NS_MAX),
    )


def read_puts(folder: Path, bucket: str, prefix: Key, paths: Iterable[str] = ()) -> Iterator[Entry]:
    """What the mount of a state folder has put, at or below ``paths`` (relative to ``prefix``), by key.

    Without what it keeps for itself below ``OWN_NAME``.
    The mount may go on meanwhile: one moment is read. Raises MountError when the list is not whole or
    cannot be read.
    """
    wanted = [(prefix + path.strip("/")).rstrip("/") for path in paths]
    path = folder / NAME
    if not path.exists():
        raise MountError(f"{folder} has no list of what the mount has put")
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            database.execute("BEGIN")
            gap = database.execute("SELECT text FROM note WHERE name = 'gap'").fetchone()
            if gap is not None:
                raise MountError(
                    f"not all that the mount has put is known ({gap[0]}); s3mount manifest create lists "
                    "what the bucket holds"
                )
            for key, *row in database.execute("SELECT * FROM put ORDER BY key"):
                if at_or_below(prefix + OWN_NAME, key):
                    continue
                if not wanted or any(at_or_below(above, key) for above in wanted):
                    version_id, size, etag, mode, mtime_ns = row
                    yield Entry(bucket, key, version_id, size, etag, None, mode, mtime_ns)
        finally:
            database.close()
    except sqlite3.Error as error:
        raise MountError(f"{path} cannot be read: {error}") from error

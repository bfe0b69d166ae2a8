"""A damaged journal is set aside, what can be read of it goes on, and a report says what became of it.

The new journal is built beside the old one. Only when it is complete are the old files moved to
``damaged/TIME``, and it takes their place; a kill at any point leaves a state from which the next start
goes on. What the lost rows were about is then told by the labels of the blobs (``labels``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from s3mount.errors import LocalDiskError
from s3mount.refs import Key
from s3mount.spool.journal.journal import MIGRATIONS

log = logging.getLogger(__name__)

JOURNAL = "journal.sqlite"
BLOBS = "blobs"
COPIES_MAX = 50
TICK_NS = 10_000_000
"""The kernel's clock for times of files goes on at least so often."""
DAMAGED = "damaged"
REPORT = "report.json"
_REBUILDING = "journal.rebuilding"
_REBUILT = "journal.rebuilt-"
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_IO_SHORT_READ = 522
_DAMAGE_CODES = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))


class KeptBlob(msgspec.Struct, frozen=True):
    """A blob in ``damaged/TIME/blobs`` that could not be adopted, its key as far as known, and why."""

    blob_id: str
    size: int
    key: Key
    why: str


class Damage(msgspec.Struct, frozen=True):
    """What was found damaged at ``at_ns``, and what became of it; ``report.json`` of its folder.

    ``is_open``: the blobs have not been looked through yet. ``saved``: how many changes of a damaged
    journal went on. ``adopted``: keys of changes that were taken from labels. ``lost_rows``: keys of
    rows that could not be read.
    """

    folder: str
    at_ns: int
    why: str
    is_open: bool = True
    saved: int = 0
    adopted: tuple[Key, ...] = ()
    lost_rows: tuple[Key, ...] = ()
    kept_blobs: tuple[KeptBlob, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.why}; set aside in {self.folder}", f"{self.saved} changes read and kept"]
        if self.adopted:
            parts.append(f"{len(self.adopted)} taken from labels")
        if self.lost_rows:
            parts.append(f"{len(self.lost_rows)} rows not readable")
        if self.kept_blobs:
            parts.append(f"{len(self.kept_blobs)} files that nobody claims kept there")
        return ", ".join(parts)


def heal(folder: Path, *, newer_too: bool = False) -> None:
    """See to it that the journal in the state folder can be used; a damaged one is set aside.

    Where there is none although there are blobs, that is damage, too. A journal of a newer release
    is no damage (LocalDiskError), unless ``newer_too`` asks for it to be set aside. Repeatable, may be
    killed at any point. Raises LocalDiskError.
    """
    try:
        _finish(folder)
        why = _examine(folder, newer_too)
        if why is None:
            return
        damage = open_damage(folder, why)
        saved = _rebuild(folder, Path(damage.folder).name)
        write_report(msgspec.structs.replace(damage, saved=saved))
        _finish(folder)
    except OSError as error:
        raise LocalDiskError(
            f"the damaged journal in {folder} cannot be set aside: {error.strerror}"
        ) from error
    log.error("%s; %d changes were read from it and go on", why, saved)


def damages(folder: Path) -> list[Damage]:
    """The reports of all damage in a state folder, oldest first."""
    found = []
    for path in sorted((folder / DAMAGED).glob(f"*/{REPORT}")):
        try:
            report = msgspec.json.decode(path.read_bytes(), type=Damage)
        except (OSError, msgspec.MsgspecError) as error:
            report = Damage("", 0, f"its report cannot be read: {error}", is_open=False)
        found.append(msgspec.structs.replace(report, folder=str(path.parent)))
    return found


def open_damage(folder: Path, why: str) -> Damage:
    """A new folder for damaged things, and its report. Raises OSError."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for number in range(1, 1000):
        place = folder / DAMAGED / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            place.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            continue
        damage = Damage(str(place), time.time_ns(), why)
        write_report(damage)
        return damage
    raise OSError(17, f"{folder / DAMAGED} is full of damage of this second")


def write_report(damage: Damage) -> None:
    """Write or replace the report of ``damage``. Raises OSError."""
    path = Path(damage.folder) / REPORT
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(damage), indent=2))
    _sync(fresh)
    fresh.rename(path)
    _sync(path.parent)


def keep_row(damage: Damage, number: int, body: bytes) -> None:
    """Keep what is left of a row that cannot be read. Raises OSError."""
    rows = Path(damage.folder) / "rows"
    rows.mkdir(mode=0o700, exist_ok=True)
    (rows / f"{number}.msgpack").write_bytes(body)


def keep_blob(damage: Damage, path: Path) -> None:
    """Move a blob that nobody claims away. Raises OSError."""
    place = Path(damage.folder) / BLOBS
    place.mkdir(mode=0o700, exist_ok=True)
    path.rename(place / path.name)


def readable(rows: Path) -> tuple[dict[str, list[tuple[object, ...]]], str | None]:
    """All rows of the journal at ``rows`` that can be read, by table, and why not all of it can.

    The file is opened for writing (its write-ahead log is taken in): give it a copy.
    """
    found: dict[str, list[tuple[object, ...]]] = {}
    why: str | None = None
    for table, columns, keys in _schema(_version(rows)):
        content, problem = _readable_table(rows, table, columns, keys)
        found[table] = content
        why = why or problem
    ahead = found.pop("ahead", [])
    if found.pop("step", []):
        changes = {row[0]: row for row in found["change"]} | {row[0]: row for row in ahead}
        found["change"] = [row for row in changes.values() if row[2] is not None]
    return found, why


def _version(journal: Path) -> int:
    """Which schema the journal has; the newest where that cannot be read."""
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(journal)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        finally:
            connection.close()
        if 0 < version < len(MIGRATIONS):
            return int(version)
    return len(MIGRATIONS)


@contextmanager
def copied(journal: Path) -> Iterator[Path]:
    """A copy of a journal, to be read and thrown away; it may be written meanwhile. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="s3mount-journal-") as place:
        copy = Path(place) / JOURNAL
        for _ in range(COPIES_MAX):
            before = _state_of(journal)
            for suffix in _SUFFIXES:
                source = Path(f"{journal}{suffix}")
                Path(f"{copy}{suffix}").unlink(missing_ok=True)
                if suffix != "-shm":
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copyfile(source, f"{copy}{suffix}")
            if before == _state_of(journal) and time.time_ns() - before[0] > TICK_NS:
                break
            time.sleep(2 * TICK_NS / 1e9)
        yield copy


def _state_of(journal: Path) -> tuple[int, bytes]:
    """What changes whenever pages go from the log to the database, or the log begins anew: then two files copied
    one after the other do not fit together.
    """
    try:
        changed_ns = journal.stat().st_mtime_ns
    except FileNotFoundError:
        return 0, b""
    try:
        with open(f"{journal}-wal", "rb") as log_file:
            return changed_ns, log_file.read(32)
    except FileNotFoundError:
        return changed_ns, b""


def _examine(folder: Path, newer_too: bool) -> str | None:
    """Why the journal cannot be used, if so. Raises LocalDiskError where that is no damage."""
    journal = folder / JOURNAL
    if not journal.exists() or not journal.stat().st_size:
        return _missing(folder, journal)
    try:
        connection = sqlite3.connect(uri(journal, "rw"), uri=True)
        try:
            # As the journal itself is opened: without a file that is mapped into memory.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            return _examine_open(connection, journal, newer_too)
        finally:
            connection.close()
    except sqlite3.Error as error:
        if is_damage(error):
            return f"the journal is damaged ({error})"
        raise LocalDiskError(f"cannot use the journal {journal}: {error}") from error


def _missing(folder: Path, journal: Path) -> str | None:
    blobs = folder / BLOBS
    if not blobs.is_dir() or not any(path.stat().st_size for path in blobs.iterdir()):
        return None
    return "the journal is empty" if journal.exists() else "the journal is gone"


def _examine_open(connection: sqlite3.Connection, journal: Path, newer_too: bool) -> str | None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        if newer_too:
            return f"the journal is from a newer release of s3mount (schema {version})"
        raise LocalDiskError(
            f"{journal} was made by a newer release of s3mount (schema {version}); use that release, "
            f"or set its changes aside: s3mount recover {journal.parent} --set-aside"
        )
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    if version == 0:
        return "the journal is no journal of s3mount" if tables else None
    if missing := {"change", "part", "upload"} - tables:
        return f"the journal lacks {', '.join(sorted(missing))}"
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    return None if verdict == "ok" else f"the journal is damaged ({' '.join(verdict.split())})"


def is_damage(error: sqlite3.Error) -> bool:
    """Does ``error`` say that the file is damaged, rather than locked, unreadable or the disk full?"""
    code = getattr(error, "sqlite_errorcode", None)
    if not isinstance(code, int):
        return False
    return code & 0xFF in _DAMAGE_CODES or code == _IO_SHORT_READ


def _rebuild(folder: Path, stamp: str) -> int:
    """Build the journal that is to take the damaged one's place; how many changes it has."""
    fresh = folder / _REBUILDING
    fresh.unlink(missing_ok=True)
    with copied(folder / JOURNAL) as copy:
        tables, problem = readable(copy)
    if problem is not None:
        # Which checksums are void may be among what is lost: none of them counts.
        tables["sums"] = []
        tables["unsettled"] = [(blob_id,) for blob_id in _blob_ids(tables["change"])]
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        for number, script in enumerate(MIGRATIONS, 1):
            connection.executescript(f"BEGIN;{script};PRAGMA user_version={number};COMMIT;")
        connection.execute("BEGIN")
        for table, rows in tables.items():
            if rows:
                marks = ", ".join("?" * len(rows[0]))
                connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise LocalDiskError(f"cannot build a new journal in {folder}: {error}") from error
    finally:
        connection.close()
    _sync(fresh)
    fresh.rename(folder / f"{_REBUILT}{stamp}")
    _sync(folder)
    return len(tables["change"])


def _blob_ids(rows: list[tuple[object, ...]]) -> set[str]:
    """The blobs that rows of changes name, as far as they can be read."""
    found = set()
    for row in rows:
        body = row[-1]
        if isinstance(body, bytes):
            with contextlib.suppress(msgspec.MsgspecError):
                found.add(msgspec.msgpack.decode(body, type=_BlobOf).blob_id)
    return found - {""}


class _BlobOf(msgspec.Struct):
    """The one field of a change that is asked for."""

    blob_id: str = ""


def _finish(folder: Path) -> None:
    """Let a journal that was built take its place, if there is one: from here on a kill does no harm."""
    for rebuilt in sorted(folder.glob(f"{_REBUILT}*")):
        place = folder / DAMAGED / rebuilt.name.removeprefix(_REBUILT)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for suffix in _SUFFIXES:
            old = folder / f"{JOURNAL}{suffix}"
            if old.exists():
                # Never over what is there: the log of a journal may follow in a later run.
                old.rename(place / old.name)
        rebuilt.rename(folder / JOURNAL)
        _sync(folder)


def _schema(version: int) -> list[tuple[str, list[str], list[str]]]:
    """Every table of the schema ``version``: name, columns, primary key."""
    connection = sqlite3.connect(":memory:")
    try:
        for script in MIGRATIONS[:version]:
            connection.executescript(script)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")]
        found = []
        for name in names:
            if name.startswith("sqlite_"):
                continue
            columns = connection.execute(f"PRAGMA table_info({name})").fetchall()
            keys = sorted((column[5], column[1]) for column in columns if column[5])
            found.append((name, [column[1] for column in columns], [key for _, key in keys]))
        return found
    finally:
        connection.close()


def _readable_table(
    path: Path, table: str, columns: list[str], keys: list[str]
) -> tuple[list[tuple[object, ...]], str | None]:
    """Rows from the front until damage stops it, then from the back; and the damage."""
    rows: dict[tuple[object, ...], tuple[object, ...]] = {}
    problem: str | None = None
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{key} {direction}" for key in keys)
        try:
            connection = sqlite3.connect(path)
            try:
                cursor = connection.execute(
                    f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}"
                )
                for row in cursor:
                    rows[tuple(row[columns.index(key)] for key in keys)] = row
                return list(rows.values()), problem
            finally:
                connection.close()
        except sqlite3.Error as error:
            problem = f"the journal is damaged ({error})"
    return list(rows.values()), problem


def uri(path: Path, mode: str) -> str:
    """The database at ``path`` for SQLite, to be opened only if it is there."""
    return f"file:{quote(str(path))}?mode={mode}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

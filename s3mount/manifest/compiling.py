"""From the lines of a manifest to a catalog: streamed, in bounded memory, in any order of lines.

Rows are appended as they come; the index by name is made at the end, by SQLite's own external sort.
Directories alone are looked up on the way, by an index of their own.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

from s3mount import db
from s3mount.errors import LocalDiskError, ManifestError
from s3mount.manifest.catalog import FILE, IMPLIED, INDEX, MARKED, MIGRATIONS, ROOT
from s3mount.manifest.formats.values import INTEGER_MAX
from s3mount.manifest.model import Entry
from s3mount.names import is_name

BATCH_ROWS = 4096
DIRECTORIES_MAX = 100_000
"""Directories whose numbers are held in memory while compiling: about 20 MiB."""
UNSHOWN_MAX = 1000
"""So many keys that have no place are named; all are counted."""
PLAIN_LETTERS_MAX = 63
"""A name of at most so many letters has at most 255 bytes in UTF-8 (and needs no closer look)."""
OPCODES_BETWEEN_LOOKS = 10_000_000
"""Of SQLite's, while it sorts: about a second."""
SORT_CACHE_KIB = 64 * 1024

NO_PATH = "it is no path"
A_DIRECTORY_TOO = "other keys make it a directory"

Progress = Callable[[int], None]
"""Told how many lines were read. May raise to give up."""


def compile_entries(entries: Iterable[Entry], path: Path, on_progress: Progress) -> None:
    """Write the catalog of ``entries`` to ``path``, which appears whole or not at all.

    For use in a thread. What an interrupted try left beside it is removed by nobody here: names of
    such files begin with that of the catalog and end with ``.new``. Raises LocalDiskError,
    ManifestError where a key is named with two versions, what ``entries`` raises, and what ``on_progress`` raises.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        _remove(fresh)
        compiler = Compiler(fresh, on_progress)
        try:
            compiler.add_all(entries)
            compiler.finish()
        finally:
            compiler.close()
        descriptor = os.open(fresh, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(fresh, path)
        db.force_to_disk(path)
    except sqlite3.Error as error:
        raise db.disk_error(f"cannot write the catalog {path}", error) from error
    except OSError as error:
        raise LocalDiskError(f"cannot write the catalog {path}: {error.strerror}") from error
    finally:
        _remove(fresh)


def _remove(path: Path) -> None:
    for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        name.unlink(missing_ok=True)


class Compiler:
    """One catalog in the making. Raises sqlite3.Error, LocalDiskError."""

    def __init__(self, path: Path, on_progress: Progress) -> None:
        self._database = db.open_database(path, MIGRATIONS)
        self._on_progress = on_progress
        self._rows: list[tuple[object, ...]] = []
        self._markers: list[tuple[object, ...]] = []
        self._directories: dict[tuple[int, str], int] = {}
        self._knows_all = True
        self._last = ROOT
        self._folder = ("", "")
        self._folder_number = 0
        self.lines = 0
        self.files = 0
        self.size_bytes = 0
        self.newest_ns = 0
        self.unshown = 0
        # Only the finished file counts: it is forced to disk, then renamed.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{SORT_CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(
            "CREATE UNIQUE INDEX directory ON entry (parent, name) WHERE kind > 0"
        )

    def close(self) -> None:
        """Close the file. Repeatable."""
        self._database.close()

    def add_all(self, entries: Iterable[Entry]) -> None:
        """Take in all lines."""
        self._database.execute("BEGIN")
        add, rows, markers = self._add, self._rows, self._markers
        for entry in entries:
            add(entry)
            if len(rows) + len(markers) >= BATCH_ROWS:
                self._flush()
                self._on_progress(self.lines)
        self._flush()

    def _add(self, entry: Entry) -> None:
        self.lines += 1
        key = entry.key
        folder, slash, name = key.rpartition("/")
        if (entry.bucket, folder) == self._folder and slash and self._folder_number:
            parent = self._folder_number
        else:
            parent = self._parent_of(entry.bucket, folder, bool(slash))
        if not parent or not key or (name and not _is_plain(name)):
            self._hide(entry.bucket, key, NO_PATH)
            return
        self.newest_ns = max(self.newest_ns, entry.last_modified_ns or 0)
        about = (
            entry.version_id,
            entry.size,
            entry.etag,
            entry.last_modified_ns,
            entry.mode,
            entry.mtime_ns,
        )
        if not name:
            self._markers.append((MARKED, *about, parent))
            return
        self._last += 1
        self.files += 1
        self.size_bytes += entry.size or 0
        self._rows.append((self._last, parent, name, FILE, *about))

    def _parent_of(self, bucket: str, folder: str, has_folder: bool) -> int:
        """The number of the directory; 0 when a part of its path is no name."""
        at = self._directory(ROOT, bucket)
        if not has_folder:
            return at
        self._folder, self._folder_number = (bucket, folder), 0
        for name in folder.split("/"):
            if not _is_plain(name):
                return 0
            at = self._directory(at, name)
        self._folder_number = at
        return at

    def _directory(self, parent: int, name: str) -> int:
        number = self._directories.get((parent, name))
        if number is not None:
            return number
        if not self._knows_all:
            found = self._database.execute(
                "SELECT number FROM entry WHERE parent = ? AND name = ? AND kind > 0",
                (parent, name),
            ).fetchone()
            if found is not None:
                number = self._directories[parent, name] = int(found[0])
                return number
        self._last += 1
        self._directories[parent, name] = self._last
        self._rows.append((self._last, parent, name, IMPLIED, None, None, "", None, None, None))
        return self._last

    def _hide(self, bucket: str, key: str, why: str) -> None:
        self.unshown += 1
        if self.unshown <= UNSHOWN_MAX:
            shown = f"{bucket}/{key}".encode("utf-8", "backslashreplace").decode()
            self._database.execute("INSERT INTO unshown VALUES (?, ?)", (shown, why))

    def _flush(self) -> None:
        statement = "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        self._database.executemany(statement, self._rows)
        self._database.executemany(
            "UPDATE entry SET kind = ?, version_id = ?, size = ?, etag = ?, last_modified_ns = ?, "
            "mode = ?, mtime_ns = ? WHERE number = ?",
            self._markers,
        )
        self._rows.clear()
        self._markers.clear()
        if len(self._directories) > DIRECTORIES_MAX:
            self._directories.clear()
            self._knows_all = False

    def finish(self) -> None:
        """Make the index, settle names that came more than once, and note what the whole is."""

        given_up: list[BaseException] = []

        def look() -> int:
            try:
                self._on_progress(self.lines)
            except BaseException as error:  # noqa: BLE001  carried past SQLite, which knows no exceptions
                given_up.append(error)
            return len(given_up)

        self._database.set_progress_handler(look, OPCODES_BETWEEN_LOOKS)
        try:
            self._database.execute("DROP INDEX directory")
            self._database.execute(INDEX)
            self._settle()
        except sqlite3.OperationalError:
            if given_up:
                raise given_up[0] from None
            raise
        finally:
            self._database.set_progress_handler(None, 0)
        facts = {
            "files": self.files,
            "bytes": min(self.size_bytes, INTEGER_MAX),
            "newest_ns": self.newest_ns,
            "unshown": self.unshown,
            "is_whole": 1,
        }
        self._database.executemany("INSERT INTO meta VALUES (?, ?)", list(facts.items()))
        self._database.execute("COMMIT")
        self._database.execute("PRAGMA journal_mode=WAL")

    def _settle(self) -> None:
        """Of each name one entry stays: the directory if there is one, else the last line's."""
        after = (0, "")
        while True:
            found = self._database.execute(
                "SELECT parent, name FROM entry WHERE (parent, name) > (?, ?) "
                "GROUP BY parent, name HAVING count(*) > 1 ORDER BY parent, name LIMIT ?",
                (*after, BATCH_ROWS),
            ).fetchall()
            for parent, name in found:
                self._settle_name(parent, name)
            if len(found) < BATCH_ROWS:
                return
            after = found[-1]

    def _settle_name(self, parent: int, name: str) -> None:
        rows = self._database.execute(
            "SELECT number, kind, version_id, size FROM entry WHERE parent = ? AND name = ? "
            "ORDER BY kind DESC, number DESC",
            (parent, name),
        ).fetchall()
        _, kind, version_id, _ = rows[0]
        for number, _, other_id, size in rows[1:]:
            self._database.execute("DELETE FROM entry WHERE number = ?", (number,))
            self.files -= 1
            self.size_bytes -= size or 0
            if kind != FILE:
                self._hide(*self._place_of(parent, name), A_DIRECTORY_TOO)
            elif other_id != version_id:
                bucket, key = self._place_of(parent, name)
                raise ManifestError(
                    f"the manifest names two versions of {key!r} in {bucket}: {other_id} and {version_id}"
                )

    def _place_of(self, number: int, name: str) -> tuple[str, str]:
        names = [name]
        while number != ROOT:
            number, name = self._database.execute(
                "SELECT parent, name FROM entry WHERE number = ?", (number,)
            ).fetchone()
            names.append(name)
        bucket, *path = reversed(names)
        return bucket, "/".join(path)


def _is_plain(name: str) -> bool:
    """As ``is_name``, and to be had in UTF-8."""
    if name.isascii() and len(name) <= PLAIN_LETTERS_MAX:
        return name not in ("", ".", "..") and "\0" not in name and "/" not in name
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return is_name(name)

"""SQLite for local state: opening, pragmas and migrations.

WAL with ``synchronous=NORMAL``: a commit costs about 23 us and survives the death of the process;
``force_to_disk`` makes what is committed survive a power cut. A connection lives in one thread,
unless it is opened for ``any_thread``: then its owner sees to it that one thread at a time uses it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from s3mount.errors import DiskFullError, LocalDiskError

ROOM_BYTES_MIN = 256 << 10
"""Below this no database is opened that maps a file: 32 KiB are mapped at first, and its log needs room, too."""
TEMPORARY_MEMORY_KIB = 64 << 10
"""A database without a name takes so much memory before it goes to a file."""


def open_database(
    path: Path,
    migrations: Sequence[str],
    *,
    any_thread: bool = False,
    flushes: bool = True,
    gives_back: bool = False,
    is_exclusive: bool = False,
) -> sqlite3.Connection:
    """Open or make the database at ``path`` and bring it to the newest schema.

    ``migrations[i]`` is a script that leads from schema i to schema i + 1; the number reached is
    kept in ``user_version``. The connection is in autocommit mode: callers say BEGIN themselves.
    Without ``flushes`` the disk is never waited for; a power cut may leave the database damaged.
    A database that is made with ``gives_back`` can be made shorter by ``PRAGMA incremental_vacuum``.
    One that ``is_exclusive`` can be opened by nobody else meanwhile, and needs no ``-shm`` file: SQLite maps that
    into memory, and where the disk has no room for its pages the process dies of SIGBUS.
    Any other is refused where the disk is as good as full.
    Raises LocalDiskError when the file cannot be used, is damaged, or is from a newer release.
    """
    if not is_exclusive:
        _must_have_room(path)
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, cached_statements=64, check_same_thread=not any_thread
        )
    except sqlite3.Error as error:
        raise LocalDiskError(f"cannot use the database {path}: {error}") from error
    try:
        if is_exclusive:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute(f"PRAGMA synchronous={'NORMAL' if flushes else 'OFF'}")
        if gives_back:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=2000")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(migrations):
            raise LocalDiskError(
                f"{path} was made by a newer release of s3mount (schema {version}); use that release"
            )
        _migrate(connection, version, migrations)
        if not is_exclusive:
            _fill_map(path)
    except sqlite3.Error as error:
        connection.close()
        raise LocalDiskError(f"cannot use the database {path}: {error}") from error
    except OSError as error:
        connection.close()
        raise DiskFullError(f"no room for the database {path}: {error.strerror}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def open_temporary(migrations: Sequence[str] = ()) -> sqlite3.Connection:
    """A database without a name, gone when it is closed; for any thread. As ``open_database`` otherwise.

    It lies in memory, and what is more than TEMPORARY_MEMORY_KIB in a file below ``$TMPDIR`` or /var/tmp.
    """
    connection = sqlite3.connect(
        "", isolation_level=None, cached_statements=64, check_same_thread=False
    )
    connection.execute(f"PRAGMA cache_size=-{TEMPORARY_MEMORY_KIB}")
    connection.execute("PRAGMA journal_mode=MEMORY")
    _migrate(connection, 0, migrations)
    return connection


def _migrate(connection: sqlite3.Connection, version: int, migrations: Sequence[str]) -> None:
    for number in range(version, len(migrations)):
        connection.executescript(
            f"BEGIN;{migrations[number]};PRAGMA user_version={number + 1};COMMIT;"
        )


def _must_have_room(path: Path) -> None:
    """Raises DiskFullError where SQLite might map a file into memory that the disk has no blocks for."""
    try:
        found = os.statvfs(path.parent)
    except OSError:
        # It is told when the file is opened.
        return
    if found.f_blocks and found.f_bavail * found.f_frsize < ROOM_BYTES_MIN:
        raise DiskFullError(f"no room for the database {path}: the local disk is full")


def _fill_map(path: Path) -> None:
    """Give the ``-shm`` file all its blocks: where they are smaller than a page SQLite leaves holes in it.

    By SQLite's own descriptor, as to close another one would end the locks that it holds. Raises OSError.
    """
    wanted = os.path.realpath(f"{path}-shm")
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                if os.readlink(f"/proc/self/fd/{name}") == wanted:
                    os.posix_fallocate(int(name), 0, max(os.fstat(int(name)).st_size, 1))


def disk_error(what: str, error: sqlite3.Error) -> LocalDiskError:
    """What a failed statement means, a full disk told from other trouble."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DiskFullError(f"the local disk is full: {what}")
    return LocalDiskError(f"{what}: {error}")


def force_to_disk(path: Path) -> None:
    """Make every transaction committed so far to the database at ``path`` survive a power cut.

    For use in a thread: it blocks for a disk flush. Commits since the last checkpoint lie in the
    write-ahead log; a checkpoint flushes the database file itself. Raises OSError.
    """
    for name in (f"{path}-wal", str(path.parent)):
        try:
            descriptor = os.open(name, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

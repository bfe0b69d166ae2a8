"""The folder of catalogs: each manifest compiled once, found again by what its bytes are.

Whoever uses a catalog holds a shared lock on its lock file; whoever makes or removes one needs the
exclusive lock. Losing the folder costs compiling again, and asking S3 again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from s3mount import db
from s3mount.errors import LocalDiskError, ManifestError
from s3mount.manifest.catalog import SCHEMA, Catalog
from s3mount.manifest.compiling import compile_entries
from s3mount.manifest.formats.reading import read_entries

log = logging.getLogger(__name__)

HASHED_BYTES = 1 << 20
LOCK_POLL_S = 0.1
SETTLED_NS = 2_000_000_000
"""A file whose ctime is so old cannot change again without getting another one."""

KNOWN = (
    """
    -- The digest that a file had when it had exactly this size and these times, so that a large one need
    -- not be read to be known again.
    CREATE TABLE known (
        path TEXT PRIMARY KEY, device INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, digest TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
)

Tell = Callable[[str], None]
"""Told what is being done, from time to time. May raise to give up."""


class HeldCatalog:
    """An open catalog that nobody removes meanwhile. Close it when done."""

    def __init__(self, catalog: Catalog, descriptor: int = -1) -> None:
        """``descriptor`` holds the lock; none for a catalog without a file."""
        self.catalog = catalog
        self.is_temporary = False
        self._descriptor = descriptor

    def close(self) -> None:
        """Close the catalog and let go of it; a temporary one is removed. Repeatable."""
        self.catalog.close()
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        if self.is_temporary:
            with contextlib.suppress(OSError):
                remove(self.catalog.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Library:
    """The catalogs in ``folder``, which take about ``size_bytes_max`` as long as none of them needs more."""

    def __init__(self, folder: Path, size_bytes_max: int) -> None:
        self._folder = folder
        self._size_bytes_max = size_bytes_max

    def digest_of(self, manifest: Path, tell: Tell) -> str:
        """The SHA-256 of the file's bytes, in hex: its identity. Blocks. Raises ManifestError.

        Not read again where its size and times are those that it had when it was read last.
        """
        try:
            before = os.stat(manifest)
            with contextlib.suppress(LocalDiskError, sqlite3.Error):
                known = self._recall(manifest, before)
                if known is not None:
                    return known
            hasher = hashlib.sha256()
            with open(manifest, "rb") as file:
                while chunk := file.read(HASHED_BYTES):
                    hasher.update(chunk)
                    if file.tell() % (256 * HASHED_BYTES) == 0:
                        tell(f"reading {manifest.name}")
            after = os.stat(manifest)
        except OSError as error:
            raise ManifestError(f"{manifest} cannot be read: {error.strerror}") from None
        digest = hasher.hexdigest()
        if _signature(before) != _signature(after):
            raise ManifestError(f"{manifest} was changed while it was read")
        if time.time_ns() - after.st_ctime_ns > SETTLED_NS:
            with contextlib.suppress(LocalDiskError, sqlite3.Error):
                self._remember(manifest, after, digest)
        return digest

    def of_manifest(
        self, manifest: Path, digest: str, bucket: str | None, tell: Tell
    ) -> HeldCatalog:
        """The catalog of a manifest with this digest; compiled now if it is not there. Blocks.

        ``bucket`` is where the keys lie if the manifest does not say. Raises ManifestError,
        LocalDiskError, and what ``tell`` raises.
        """
        identity = hashlib.sha256(f"{digest}\0{bucket or ''}".encode()).hexdigest()[:32]

        def make(path: Path) -> None:
            def progress(lines: int) -> None:
                tell(f"compiling {manifest.name} ({lines:,} entries so far)")

            compile_entries(read_entries(manifest, bucket=bucket), path, progress)

        return self._open(f"manifest-{identity}-{SCHEMA}", make, tell)

    def of_past(self, identity: str, at_ns: int, now_ns: int, settled_ns: int) -> HeldCatalog:
        """The catalog of a bucket (``identity``) at a time, which is filled while it is used. Blocks.

        Begun less than ``settled_ns`` after its time it is for this mount alone: what is told so early
        may not be the last word. Where the folder cannot be used, its disk is full say, it has no file.
        """
        name = f"past-{hashlib.sha256(identity.encode()).hexdigest()[:32]}-{at_ns}-{SCHEMA}"
        is_settled = now_ns - at_ns >= settled_ns
        if not is_settled:
            name += f"-{os.getpid()}-{time.time_ns():x}"

        def make(path: Path) -> None:
            Catalog(path).close()

        try:
            held = self._open(name, make, lambda doing: None)
        except LocalDiskError as error:
            log.warning("%s; what is looked at of this past is not kept", error)
            return HeldCatalog(Catalog(self._folder / f"{name}.sqlite", is_kept=False))
        held.is_temporary = not is_settled
        return held

    # ---------------------------------------------------------------- the folder

    def _open(self, name: str, make: Callable[[Path], None], tell: Tell) -> HeldCatalog:
        path = self._folder / f"{name}.sqlite"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                lock = self._lock(path, fcntl.LOCK_SH, tell)
                try:
                    if path.exists():
                        catalog = Catalog(path)
                        os.utime(_lock_path(path))
                        return HeldCatalog(catalog, lock)
                except BaseException as error:
                    os.close(lock)
                    if not _is_damage(error) or not remove(path):
                        raise
                    log.warning("%s; it is made anew", error)
                    continue
                os.close(lock)
                lock = self._lock(path, fcntl.LOCK_EX, tell)
                try:
                    # What a compiler left that was killed; a live one holds the lock.
                    for stale in self._folder.glob(f"{path.name}.*"):
                        if stale != _lock_path(path):
                            stale.unlink()
                    if not path.exists():
                        make(path)
                finally:
                    os.close(lock)
        except OSError as error:
            raise LocalDiskError(
                f"the folder {self._folder} cannot be used: {error.strerror}"
            ) from None

    @staticmethod
    def _lock(path: Path, how: int, tell: Tell) -> int:
        """A descriptor that holds the lock of a catalog. Waits for it; raises OSError and what ``tell`` does."""
        name = _lock_path(path)
        while True:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while not _try_lock(descriptor, how):
                    tell(f"waiting for another mount to compile {path.name}")
                    time.sleep(LOCK_POLL_S)
                if _is_at(descriptor, name):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # Somebody removed it with its catalog meanwhile.
            os.close(descriptor)

    def prune(self) -> None:
        """Remove the catalogs used longest ago until the others take no more than they may. Blocks.

        Those in use stay. What cannot be removed is left.
        """
        try:
            found = [(os.stat(lock).st_mtime_ns, lock) for lock in self._folder.glob("*.lock")]
        except OSError as error:
            log.info("old catalogs are not looked for: %s", error)
            return
        total = 0
        for _, lock in sorted(found, reverse=True):
            path = lock.with_name(lock.name.removesuffix(".lock"))
            with contextlib.suppress(OSError):
                total += sum(each.stat().st_size for each in _files_of(path))
                if total > self._size_bytes_max:
                    remove(path)

    # ------------------------------------------------------------ known digests

    def _known(self) -> sqlite3.Connection:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return db.open_database(self._folder / "known.db", KNOWN)

    def _recall(self, manifest: Path, seen: os.stat_result) -> str | None:
        with contextlib.closing(self._known()) as database:
            found = database.execute(
                "SELECT digest FROM known WHERE path = ? AND device = ? AND inode = ? AND size = ? "
                "AND mtime_ns = ? AND ctime_ns = ?",
                (str(manifest.absolute()), *_signature(seen)),
            ).fetchone()
        return None if found is None else str(found[0])

    def _remember(self, manifest: Path, seen: os.stat_result, digest: str) -> None:
        with contextlib.closing(self._known()) as database:
            database.execute(
                "INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?, ?, ?)",
                (str(manifest.absolute()), *_signature(seen), digest),
            )


def _is_damage(error: BaseException) -> bool:
    words = ("malformed", "not a database", "no such")
    return isinstance(error, LocalDiskError) and any(word in str(error) for word in words)


def remove(path: Path) -> bool:
    """Remove a catalog unless somebody uses it; was it removed? Raises OSError."""
    name = _lock_path(path)
    descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not _try_lock(descriptor, fcntl.LOCK_EX) or not _is_at(descriptor, name):
            return False
        for each in _files_of(path):
            each.unlink(missing_ok=True)
        name.unlink()
    finally:
        os.close(descriptor)
    return True


def _files_of(path: Path) -> list[Path]:
    return [each for each in path.parent.glob(f"{path.name}*") if each != _lock_path(path)]


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Is the file still the one that has this name?"""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _signature(seen: os.stat_result) -> tuple[int, int, int, int, int]:
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns

"""A manifest's entries in the order of their paths, in memory while they are few, else through a file."""

from __future__ import annotations

import contextlib
import itertools
import operator
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from s3mount import db
from s3mount.errors import LocalDiskError
from s3mount.manifest.model import Entry

HELD_MAX = 200_000
"""So many entries are sorted in memory, at about 600 bytes each."""
BATCH = 10_000


class Ordered:
    """The entries of a manifest by bucket and key. To be closed; ``entries`` may be gone through once.

    ``count`` tells how many, ``buckets`` how many buckets they are in. With one bucket keys are the
    paths, with several the bucket is the first folder.
    """

    def __init__(self, given: Iterable[Entry], scratch: Path) -> None:
        """Reads all of ``given``; raises what it raises, and LocalDiskError when ``scratch`` cannot be used."""
        source = iter(given)
        held = list(itertools.islice(source, HELD_MAX))
        self._spill: _Spill | None = None
        rest = list(itertools.islice(source, 1))
        if rest:
            self._spill = _Spill(scratch)
            try:
                self._spill.take(itertools.chain(held, rest, source))
            except BaseException:
                self._spill.close()
                raise
            self.count, self.buckets = self._spill.count, self._spill.buckets
            self.entries = self._spill.entries()
            return
        buckets = {entry.bucket for entry in held}
        by = "key" if len(buckets) <= 1 else ("bucket", "key")
        held.sort(key=operator.attrgetter(*([by] if isinstance(by, str) else by)))
        self.count, self.buckets = len(held), len(buckets)
        self.entries = iter(held)

    def close(self) -> None:
        """Remove the file, if there is one. Repeatable."""
        if self._spill is not None:
            self._spill.close()


class _Spill:
    """Entries in a SQLite file without a name, which is gone with the process."""

    def __init__(self, scratch: Path) -> None:
        import tempfile  # and what it loads in turn: few manifests are this long

        self._folder = contextlib.ExitStack()
        try:
            scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix="sorting-", dir=scratch)
            path = Path(self._folder.enter_context(folder)) / "entries"
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=OFF")
            self._database.execute("PRAGMA synchronous=OFF")
            self._database.execute(
                "CREATE TABLE entry (bucket TEXT, key TEXT, number INTEGER, value BLOB, "
                "PRIMARY KEY (bucket, key, number)) WITHOUT ROWID"
            )
        except OSError as error:
            self._folder.close()
            raise LocalDiskError(f"{scratch}: {error.strerror}") from error
        except sqlite3.Error as error:
            self._folder.close()
            raise db.disk_error(f"cannot sort in {scratch}", error) from error
        self.count = self.buckets = 0

    def take(self, entries: Iterable[Entry]) -> None:
        encode = msgspec.msgpack.Encoder().encode
        numbers = itertools.count()
        buckets = set()
        try:
            self._database.execute("BEGIN")
            for entry in entries:
                buckets.add(entry.bucket)
                # A key that is no text for SQLite is none for a file name either: it sorts by what it shows.
                key = entry.key.encode("utf-8", "backslashreplace").decode()
                self._database.execute(
                    "INSERT INTO entry VALUES (?, ?, ?, ?)",
                    (entry.bucket, key, next(numbers), encode(entry)),
                )
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise db.disk_error("cannot sort the manifest's entries", error) from error
        self.count, self.buckets = next(numbers), len(buckets)

    def entries(self) -> Iterator[Entry]:
        decode = msgspec.msgpack.Decoder(Entry).decode
        rows = self._database.execute("SELECT value FROM entry ORDER BY bucket, key, number")
        while batch := rows.fetchmany(BATCH):
            for (value,) in batch:
                yield decode(value)

    def close(self) -> None:
        self._database.close()
        self._folder.close()

"""The file to which each batch is appended when it is done, so that a later run leaves it out."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import msgspec

from s3mount.bulk.batches.wire import Verified
from s3mount.errors import LocalDiskError, StateInUseError, UsageError

SYNC_S = 1.0


class Header(msgspec.Struct, frozen=True):
    """The first line: of which work the results are. Only the same goes on with them.

    ``manifest``: the SHA-256 of its bytes. ``bucket``: of manifests that name none.
    """

    manifest: str
    bucket: str | None
    endpoint_url: str | None
    content: bool
    s3mount_verified: int = 1


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Record(msgspec.Struct, frozen=True):
    first: int
    rows: int
    found: Verified


class _Place(NamedTuple):
    rows: int
    offset: int
    length: int


class ResultLog:
    """Results of batches by their first rows, in a file of one JSON document a line.

    A last line that was cut off is dropped, and a batch of which something could not be read counts as not done.
    Raises UsageError for a file with results of other work, StateInUseError where another process appends to it,
    LocalDiskError.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self._places: dict[int, _Place] = {}
        self._synced_s = 0.0
        with ExitStack() as unless_used:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = unless_used.enter_context(
                    open(path, "a+b", buffering=0, opener=_open_private)
                )
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._end = self._read(header)
            except BlockingIOError:
                raise StateInUseError(f"{path}: another process appends to it") from None
            except OSError as error:
                raise self._unusable(error) from error
            unless_used.pop_all()

    def __enter__(self) -> ResultLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def done(self) -> Mapping[int, int]:
        """The first row of each batch that is done, and how many it has."""
        return {first: place.rows for first, place in self._places.items()}

    def add(self, first: int, count: int, found: Verified) -> None:
        """Append a result; it is on the disk within a second or so. Raises LocalDiskError."""
        record = _Record(first, count, found)
        try:
            self._append(msgspec.json.encode(record), first, count)
            now_s = time.monotonic()
            if now_s - self._synced_s >= SYNC_S:
                os.fdatasync(self._file.fileno())
                self._synced_s = now_s
        except OSError as error:
            raise self._unusable(error) from error

    def take(self, first: int) -> tuple[int, Verified] | None:
        """How many rows the batch has that begins with row ``first``, and its result; ``None`` before it is done.

        Once for each. Raises LocalDiskError.
        """
        place = self._places.pop(first, None)
        if place is None:
            return None
        try:
            line = os.pread(self._file.fileno(), place.length, place.offset)
        except OSError as error:
            raise self._unusable(error) from error
        return place.rows, msgspec.json.decode(line, type=_Record).found

    def _append(self, line: bytes, first: int, count: int) -> None:
        data = line + b"\n"
        if self._file.write(data) != len(data):
            os.ftruncate(self._file.fileno(), self._end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._places[first] = _Place(count, self._end, len(data))
        self._end += len(data)

    def _read(self, header: Header) -> int:
        """Take in what is there; where the next line goes."""
        wanted = msgspec.json.encode(header) + b"\n"
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as reader:
            first_line = reader.readline()
            if not first_line.endswith(b"\n"):
                # Empty, or its maker was killed at once; it has no result either way.
                if first_line and not wanted.startswith(first_line):
                    raise self._foreign()
                os.ftruncate(reader.fileno(), 0)
                self._file.write(wanted)
                return len(wanted)
            if first_line != wanted:
                raise self._foreign()
            end = len(first_line)
            for line in reader:
                try:
                    record = msgspec.json.decode(line, type=_Record)
                except msgspec.DecodeError:
                    break
                if not line.endswith(b"\n"):
                    break
                if not record.found.sums.unread:
                    self._places[record.first] = _Place(record.rows, end, len(line))
                end += len(line)
        os.ftruncate(self._file.fileno(), end)
        return end

    def _foreign(self) -> UsageError:
        return UsageError(
            f"{self.path} has the results of another manifest or of other options: give the same ones, or another file"
        )

    def _unusable(self, error: OSError) -> LocalDiskError:
        return LocalDiskError(f"{self.path} cannot be used: {error.strerror}")

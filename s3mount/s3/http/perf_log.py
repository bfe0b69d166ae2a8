"""A record of each request, in a file: what was asked, how often, how fast, and what was expected."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec
import trio

from s3mount.errors import LocalDiskError
from s3mount.refs import Key
from s3mount.s3.http.requests import Call

log = logging.getLogger(__name__)

CSV_ENDING = ".csv"


class RequestRecord(msgspec.Struct, frozen=True):
    """One request, with all its tries.

    ``seq`` counts requests as they end; ``kind`` is S3's operation as ``status --json`` names it. ``bytes`` were
    moved by the last try. ``success_ms`` is how long that took (0: it failed), ``total_ms`` includes the tries
    before and the waits between. ``MBps`` is ``bytes`` over ``success_ms``, ``MBps_est`` what was expected of such
    a request when it began; 1 MB is 10**6 bytes. ``status`` is the HTTP status, 0 when nothing was answered.
    """

    seq: int
    kind: str
    key: Key
    attempts: int
    bytes: int
    success_ms: float
    total_ms: float
    MBps: float
    MBps_est: float
    status: int


def record_of(
    seq: int, call: Call, status: int, began_s: float, s_per_byte: float
) -> RequestRecord:
    """The record of a call that ends now. ``began_s`` is trio's time, ``s_per_byte`` what was expected then."""
    now_s = trio.current_time()
    success_s = now_s - call.tried_at_s if 200 <= status < 300 else 0.0
    return RequestRecord(
        seq=seq,
        kind=call.kind,
        key=call.key,
        attempts=call.tries,
        bytes=call.moved,
        success_ms=round(1e3 * success_s, 3),
        total_ms=round(1e3 * (now_s - began_s), 3),
        MBps=round(1e-6 * call.moved / success_s, 5) if success_s else 0.0,
        MBps_est=round(1e-6 / s_per_byte, 5),
        status=status,
    )


Recorder: TypeAlias = "Callable[[RequestRecord], None]"
"""What is told of each request as it ends. Called in the loop: it must neither block for long nor raise."""


class PerfLog:
    """Appends a line for each record to ``path``, in one write, so that several processes may share it.

    JSON lines, or CSV with a header where the name ends in ``.csv``. Raises LocalDiskError when it cannot be opened;
    once it cannot be written a warning says so, and requests go on.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_csv = path.endswith(CSV_ENDING)
        self._is_broken = False
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if self._is_csv and not os.fstat(self._fd).st_size:
                os.write(self._fd, _csv_line(RequestRecord.__struct_fields__))
        except OSError as error:
            raise LocalDiskError(f"--perf-log {path}: {error.strerror}") from error

    def __call__(self, record: RequestRecord) -> None:
        """Write it."""
        line = (
            _csv_line(msgspec.structs.astuple(record))
            if self._is_csv
            else msgspec.json.encode(record) + b"\n"
        )
        try:
            os.write(self._fd, line)
        except OSError as error:
            if not self._is_broken:
                log.warning("requests are not recorded: %s: %s", self._path, error.strerror)
            self._is_broken = True

    def close(self) -> None:
        """Repeatable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def records_in(path: str) -> Iterator[RequestRecord]:
    """The records of a log in JSON lines, one by one. Raises LocalDiskError."""
    decoder = msgspec.json.Decoder(RequestRecord)
    try:
        with open(path, "rb") as lines:
            yield from map(decoder.decode, lines)
    except OSError as error:
        raise LocalDiskError(f"{path}: {error.strerror}") from error


def _csv_line(values: tuple[object, ...]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue().encode("utf-8", "backslashreplace")

"""The outcome of one call as a word, so that tables of calls can be compared."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

DONE = "done"
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
AT_FDCWD = -100

libc = ctypes.CDLL(None, use_errno=True)


def outcome(action: Callable[[], object]) -> str:
    """Perform ``action``: ``done``, or the name of the errno that it ended with."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return DONE


def open_and_close(path: Path, flags: int, mode: int = 0o644) -> None:
    """``open(2)`` and ``close(2)``."""
    os.close(os.open(path, flags, mode))


def renameat2(source: Path, target: Path, flags: int) -> None:
    """``renameat2(2)``. Raises OSError."""
    _checked(
        libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags), source
    )


class TimeSpec(ctypes.Structure):
    """``struct timespec`` of 64-bit Linux."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def utimensat(path: Path, accessed: tuple[int, int], modified: tuple[int, int]) -> None:
    """``utimensat(2)`` with (seconds, nanoseconds or UTIME_*). Raises OSError."""
    times = (TimeSpec * 2)(TimeSpec(*accessed), TimeSpec(*modified))
    _checked(libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0), path)


def _checked(result: int, path: Path) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))

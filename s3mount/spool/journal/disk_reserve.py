"""The disk reserve: a little room that is kept on the disk for what makes room."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

RESERVE_BYTES = 256 * 1024
"""Room for the removal of a few dozen rows, each of which lets a blob go that takes more."""


class Reserve:
    """A file that keeps a little room on the disk: without any, not even what makes room can be journalled."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_there = False
        self.fill()

    def fill(self) -> None:
        """Take the room (again), if there is any. Never raises for want of it."""
        if self._is_there:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
                self._is_there = True
            finally:
                os.close(descriptor)
        except OSError as error:
            log.debug("no room for a reserve: %s", error)
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def spend(self) -> None:
        """Give the room back to the disk. Repeatable."""
        self._is_there = False
        with contextlib.suppress(OSError):
            os.unlink(self._path)

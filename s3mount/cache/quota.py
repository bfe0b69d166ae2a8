"""The quota of the disk cache: how much room is taken, how much may be, and whether the disk works at all."""

from __future__ import annotations

import logging
import sqlite3

import trio

from s3mount.background import log_fault
from s3mount.cache.cache_catalog import CacheCatalog
from s3mount.cache.entry import Entry
from s3mount.cache.folder import CacheFolder
from s3mount.config import MIB
from s3mount.errors import LocalDiskError, S3MountError

logger = logging.getLogger(__name__)

RETRY_DISK_S = 30.0
"""How long a failed cache disk is left alone."""


class Quota:
    """What all entries of one namespace take on disk, held against a cap that falls as others fill the disk.

    ``recorded_total`` is what the catalog counts, of all mounts; ``freeing_bytes`` are on their way off the disk.
    """

    def __init__(self, files: CacheFolder, size_bytes_max: int, free_bytes_min: int) -> None:
        self.files = files
        self.catalog: CacheCatalog | None = None
        self.size_bytes_max = self._allowed_bytes = size_bytes_max
        self._free_bytes_min = free_bytes_min
        self.recorded_total = 0
        self.freeing_bytes = 0
        self.room_wanted = trio.Event()
        self.room_needed = 0
        self._beyond_record = 0
        self._disk_retry_at_s = 0.0
        self._disk_failing = False

    # -- the disk's health

    @property
    def usable(self) -> bool:
        """The disk may be used for what is not on it yet."""
        if self.catalog is None:
            return False
        return not self._disk_failing or trio.current_time() >= self._disk_retry_at_s

    def disk_failed(self, error: Exception) -> None:
        """Note that the disk failed: reads go through memory for a while. One warning.

        What no disk raises is logged with its traceback.
        """
        self._disk_retry_at_s = trio.current_time() + RETRY_DISK_S
        if not isinstance(error, (OSError, sqlite3.Error, S3MountError)):
            log_fault("caching", error)
        if not self._disk_failing:
            self._disk_failing = True
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            logger.warning(
                "the cache in %s fails (%s); reading without it", self.files.root, reason
            )

    def disk_worked(self) -> None:
        """Note that the disk works (again)."""
        if self._disk_failing:
            self._disk_failing = False
            logger.info("the cache in %s works again", self.files.root)

    def require_disk(self) -> None:
        """Raise LocalDiskError when nothing can be stored now."""
        if not self.usable:
            raise LocalDiskError(f"the cache in {self.files.root} cannot be used")

    # -- room

    @property
    def total_bytes(self) -> int:
        """Disk space of all entries, with blocks that are on their way to the disk or off it."""
        return self.recorded_total + self._beyond_record + self.freeing_bytes

    def note_disk_room(self, free_bytes: int, disk_bytes: int) -> None:
        """So much of the disk is free: the cap falls where less than the floor would be left, and rises again.

        On a small disk the floor is a tenth of it.
        """
        floor = min(self._free_bytes_min, disk_bytes // 10)
        if floor:
            left = max(0, self.total_bytes + free_bytes - floor)
            self.size_bytes_max = min(self._allowed_bytes, left)
            self.has_room(0)

    @property
    def headroom_bytes(self) -> int:
        """Eviction stops at this much below the cap, and begins at half of it."""
        return min(self.size_bytes_max // 8, 512 * MIB)

    def has_room(self, needed: int) -> bool:
        """``needed`` more bytes fit below the cap. Starts eviction when it gets narrow."""
        after = self.total_bytes + needed
        if after > self.size_bytes_max - self.headroom_bytes // 2:
            self.room_wanted.set()
        return after <= self.size_bytes_max

    def want_room(self, needed: int) -> None:
        """Have the next round of eviction make at least this much room; does not wait for it."""
        self.room_needed = max(self.room_needed, needed)
        self.room_wanted.set()

    def _account(self, entry: Entry, held: int, recorded: int) -> None:
        before = entry.held_bytes - entry.recorded_bytes
        self._beyond_record += held - recorded - before
        entry.held_bytes = held
        entry.recorded_bytes = recorded

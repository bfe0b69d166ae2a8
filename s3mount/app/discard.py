"""Giving up what a state folder holds, without a mount."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from s3mount.app.settings import recall
from s3mount.daemon.ownership import StateLock
from s3mount.errors import LocalDiskError, MountError
from s3mount.refs import Key
from s3mount.spool.journal.path_filter import given_up_with, select
from s3mount.spool.spool import Spool


def discard_in(
    folder: Path, mountpoint: str, source: str, paths: Sequence[str], *, is_rehearsal: bool
) -> list[Key]:
    """Give up what is pending at or below ``paths`` (relative to the mount that was there); the keys.

    ``is_rehearsal``: only tell. Raises StateInUseError, LocalDiskError, and MountError when there is
    nothing.
    """
    prefix = ""
    with contextlib.suppress(LocalDiskError):
        prefix = recall(folder).prefix
    with StateLock(folder, mountpoint, source) as lock:
        spool = Spool.open(folder, size_bytes_max=sys.maxsize)
        try:
            found = select(list(spool.changes.values()), prefix, paths)
            keys = given_up_with(spool.changes, [change.key for change in found])
            if not keys:
                raise MountError(f"nothing is pending at {', '.join(paths)}")
            if not is_rehearsal:
                spool.record([], keys)
        finally:
            lock.note("ended", len(spool.changes), spool.dependencies.put_bytes)
            spool.close()
    return keys

"""Labels: what a blob is for, written beside its bytes, so that the loss of the journal is not theirs.

The label of a blob is the journal's row of its change, in an extended attribute of the file (2 us; ext4
takes a block of 4 KiB more for it). The journal is the truth; labels are read only where its rows are
lost. A blob without one belongs to nobody: it was never closed, or S3 has it. A label that is not true any
more is overwritten where it stands: to remove it frees its block, which took 3 ms in the mount's loop where
the disk is told of each (ext4 without a journal, mounted with discard), this 7 us.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import Change, Put

log = logging.getLogger(__name__)

NAME = "user.s3mount.change"
SIZE_BYTES_MAX = 2048
"""What ext4 keeps of them in one block of 4 KiB, with room for others."""


_NO_MESSAGE = b"\xc1"
"""The one byte that MessagePack never uses."""
_NOBODY = _NO_MESSAGE + os.urandom(247)
"""What no label is, with a number behind it: ext4 looks for blocks of the same content to share. Long, so that it
needs one."""


class Labels:
    """Writes and reads labels; where the file system keeps none, says so once and does nothing."""

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._is_possible = True
        self._cleared = itertools.count()

    def write(self, blob: Blob, change: Put) -> None:
        """Let ``blob`` say that it is for ``change``. Best effort: never raises."""
        if not self._is_possible or blob.is_reference:
            return
        # Without checksums: who reads it cannot know whether the bytes changed since. Nor does a deletion wait
        # for it then: those had no label.
        label = self._encode(msgspec.structs.replace(change, sums=b"", former=()))
        if len(label) > SIZE_BYTES_MAX:
            self.clear(blob)
            return
        self._try(lambda: os.setxattr(blob.place, NAME, label))

    def clear(self, blob: Blob) -> None:
        """``blob`` belongs to nobody any more. Best effort, repeatable: never raises."""
        if self._is_possible:
            label = _NOBODY + next(self._cleared).to_bytes(8, "big")
            self._try(lambda: os.setxattr(blob.place, NAME, label, os.XATTR_REPLACE))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.EPERM, errno.ENOSYS):
                self._is_possible = False
                log.info("the spool's file system keeps no extended attributes: no labels")
            elif error.errno not in (errno.ENODATA, errno.ENOENT):
                log.info("a blob's label could not be written: %s", error)


def read_label(path: Path) -> Change | None:
    """The change that the blob at ``path`` was last for; ``None`` where it tells nothing."""
    try:
        change: Change = msgspec.msgpack.decode(os.getxattr(path, NAME), type=Change)
    except (OSError, msgspec.MsgspecError):
        return None
    return change

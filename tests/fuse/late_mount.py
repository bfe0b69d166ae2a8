"""``s3mount`` whose answers to readdir reach the kernel ``LATE_S`` after they were composed.

``python -m tests.fuse.late_mount mount ...``. So they do on a busy machine, whose kernel takes an answer in only when
the process that asked runs again.
"""

from __future__ import annotations

import sys
from unittest import mock

import pyfuse3
import trio

from s3mount.cli import main
from s3mount.fuse.operations import Operations

LATE_S = 0.03

in_time = Operations.readdir


async def late(self: Operations, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
    """What readdir does, and a pause."""
    await in_time(self, pyfuse3.FileHandleT(fh), start_id, token)
    await trio.sleep(LATE_S)


if __name__ == "__main__":
    with mock.patch.object(Operations, "readdir", late):
        sys.exit(main())

"""The folders of a process that keeps what is not in S3 yet."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from s3mount.config import MountConfig
from s3mount.errors import LocalDiskError
from s3mount.spool.spool import Spool


def be_private() -> None:
    """What this process makes outside of the mount is for its user alone, folders above it too.

    Whatever umask it was started with; modes of files in the mount are those of the programs that make them.
    """
    os.umask(0o077)


def check_writable(name: str, folder: Path) -> None:
    """Make a folder (mode 0700) if needed and write to it. Raises LocalDiskError saying why not.

    A full disk is no reason: what an earlier mount left there is what makes room, once it is sent.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"s3mount")
            file.flush()
    except OSError as error:
        if error.errno == errno.ENOSPC and folder.is_dir():
            return
        raise LocalDiskError(
            f"the {name} folder {folder} is not writable: {error.strerror}; "
            f"choose another with --{name}-dir"
        ) from None


@asynccontextmanager
async def open_spool(config: MountConfig) -> AsyncIterator[Spool]:
    """The spool of a mount. In a thread, as an earlier mount may have left a lot. Raises LocalDiskError."""
    opening = partial(Spool.open, Path(config.state_dir), size_bytes_max=config.spool_bytes_max)
    spool = await trio.to_thread.run_sync(opening)
    try:
        yield spool
    finally:
        spool.close()

"""Files without a name for bytes on their way, and the paths by which the engine process reaches them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from s3mount.errors import LocalDiskError


def temporary() -> BinaryIO:
    """A file without a name. Raises LocalDiskError."""
    try:
        return cast(BinaryIO, tempfile.TemporaryFile(prefix="s3mount-"))
    except OSError as error:
        raise LocalDiskError(f"no temporary file can be made: {error.strerror}") from error


def path_of(file: BinaryIO) -> str:
    """By which another process reaches it."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


@contextmanager
def scratch() -> Iterator[tuple[BinaryIO, str]]:
    """A file without a name that is gone with the block, and a path by which another process reaches it.

    Raises LocalDiskError.
    """
    with temporary() as file:
        yield file, path_of(file)

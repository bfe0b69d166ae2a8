"""Where the bytes of an upload come from."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import trio

from s3mount.errors import ChecksumError, RejectedError
from s3mount.refs import Body, ByteRange, FileSlice


class SourceChangedError(ChecksumError):
    """The bytes to upload are others than when the upload began."""


class Source(Protocol):
    """Bytes of a known length that may be asked for in any order.

    ``size`` is right after ``state``. ``is_local``: they are on this machine, so that what S3 has of them can be
    proven by reading them.
    """

    is_local: bool

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    async def state(self) -> str:
        """What it is now: another text when its bytes are others. Raises RejectedError, SourceError."""
        ...

    def part(self, span: ByteRange) -> AbstractAsyncContextManager[Body]:
        """The bytes of a part, as long as the block runs. Raises as ``state``, and SourceChangedError."""
        ...


class FileSource:
    """The first ``size`` bytes of a local file."""

    is_local = True

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size

    async def state(self) -> str:
        """See ``Source.state``: by what a stat tells."""
        await trio.lowlevel.checkpoint()
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise RejectedError(f"{self.path}: {error.strerror}") from error
        return f"{self.size} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"

    def body(self, span: ByteRange) -> FileSlice:
        """A part, without waiting."""
        return FileSlice(self.path, span.start, span.length)

    @asynccontextmanager
    async def part(self, span: ByteRange) -> AsyncIterator[Body]:
        """See ``Source.part``."""
        await trio.lowlevel.checkpoint()
        yield self.body(span) if span.length else b""

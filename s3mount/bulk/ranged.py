"""Files of other servers of which any range can be asked for: into parts of an upload, or into a local file."""

from __future__ import annotations

import abc
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from s3mount.errors import DiskFullError, SourceError
from s3mount.refs import Body, ByteRange, FileSlice
from s3mount.s3.checksums import CacheBlockSums
from s3mount.transfer.fetching import OpenFile
from s3mount.transfer.scratch import scratch

Write = Callable[[bytes], object]


class RangedSource(abc.ABC):
    """See ``transfer.source.Source``. ``look`` sets ``size`` and ``validator``, its state if anything tells that."""

    is_local = False
    size = 0
    validator = ""

    async def state(self) -> str:
        """See ``Source.state``: size and validator, which are asked for."""
        if not await self.look():
            raise SourceError("the server gives no ranges of it any more")
        return f"{self.size} {self.validator}"

    @abc.abstractmethod
    async def look(self) -> bool:
        """Ask what there is; can ranges be asked for? Raises SourceError."""

    @abc.abstractmethod
    async def fetch(self, span: ByteRange, write: Write) -> None:
        """Give ``write`` the bytes of ``span``, in order. Raises SourceError, SourceChangedError."""


class Ranged:
    """A file of which any range can be asked for, as a source. ``slots`` bounds the ranges under way."""

    is_local = False

    def __init__(self, remote: RangedSource, slots: trio.CapacityLimiter) -> None:
        self.remote = remote
        self._slots = slots

    @property
    def size(self) -> int:
        """See ``Source.size``."""
        return self.remote.size

    async def state(self) -> str:
        """See ``Source.state``."""
        return await self.remote.state()

    @asynccontextmanager
    async def part(self, span: ByteRange) -> AsyncIterator[Body]:
        """See ``Source.part``."""
        if not span.length:
            await trio.lowlevel.checkpoint()
            yield b""
            return
        with scratch() as (file, path):
            async with self._slots:
                await self.remote.fetch(span, file.write)
            file.flush()
            yield FileSlice(path, 0, span.length)


def partial_filler(
    remote: RangedSource, file: OpenFile, moved: Callable[[int], None]
) -> Callable[[ByteRange], Awaitable[None]]:
    """Fetches ranges into an open partial file, with the checksums of their blocks."""

    async def fill(span: ByteRange) -> None:
        sums = CacheBlockSums(file.descriptor, file.place(span))
        at = span.start

        def write(data: bytes) -> None:
            nonlocal at
            sums.update(data)
            view = memoryview(data)
            while view:
                written = os.pwrite(file.descriptor, view, at)
                at += written
                view = view[written:]
            moved(len(data))

        try:
            await remote.fetch(span, write)
        except OSError as error:
            raise DiskFullError(f"it cannot be written: {error.strerror}") from error

    return fill

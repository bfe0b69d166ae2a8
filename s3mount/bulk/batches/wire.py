"""What goes to workers and comes back: entries of a manifest, what to do with them, and what came of it.

Never a secret, and never bytes of objects: one JSON document a line.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import trio

from s3mount.config import GIB, StoreConfig
from s3mount.manifest.model import Entry
from s3mount.manifest.verifying import Problem, Verification


class Size(msgspec.Struct, frozen=True):
    """How much one batch holds: entries, and bytes of their objects; a larger object is a batch of its own."""

    entries: int = 2000
    size_bytes: int = GIB


class Batch(msgspec.Struct, frozen=True):
    """Entries that follow each other in a manifest; ``first`` is the row of the first of them."""

    first: int
    entries: list[Entry]

    def halves(self) -> tuple[Batch, Batch]:
        """The two of it, for who looks for the entry that makes it fail."""
        middle = len(self.entries) // 2
        return (
            Batch(self.first, self.entries[:middle]),
            Batch(self.first + middle, self.entries[middle:]),
        )


class Task(msgspec.Struct, frozen=True):
    """The entries of one batch, as a worker gets them to verify: their fields, in the order of ``Entry``."""

    config: StoreConfig
    content: bool
    rows: list[tuple[Any, ...]]

    @classmethod
    def of(cls, batch: Batch, config: StoreConfig, content: bool) -> Task:
        """What is to be done with ``batch``."""
        return cls(config, content, [msgspec.structs.astuple(entry) for entry in batch.entries])

    def entries(self) -> Iterator[Entry]:
        """The batch's entries."""
        return (Entry(*row) for row in self.rows)


class Line(msgspec.Struct, frozen=True, array_like=True):
    """A problem, with as much of its entry as names it."""

    bucket: str
    key: str
    version_id: str | None
    why: str
    is_unproven: bool = False
    is_unread: bool = False

    @classmethod
    def of(cls, problem: Problem) -> Line:
        """What is told of ``problem``."""
        entry = problem.entry
        marks = (problem.is_unproven, problem.is_unread)
        return cls(entry.bucket, entry.key, entry.version_id, problem.why, *marks)

    def problem(self) -> Problem:
        """The same for who reports it."""
        entry = Entry(self.bucket, self.key, self.version_id)
        return Problem(entry, self.why, self.is_unproven, self.is_unread)


class Verified(msgspec.Struct):
    """What came of a batch; ``problems`` in the order of its entries.

    ``failed``: a fault in the worker, which may be of one entry.
    """

    sums: Verification
    problems: list[Line]
    failed: str = ""


def cut(entries: Iterable[Entry], done: Mapping[int, int], size: Size) -> Iterator[Batch]:
    """Batches of ``entries``, in their order. ``done``: rows to leave out, the first of them and how many."""
    held: list[Entry] = []
    first = size_bytes = done_until = 0
    for row, entry in enumerate(entries):
        done_until = max(done_until, row + done.get(row, 0))
        object_bytes = entry.size or 0
        is_over = size_bytes + object_bytes > size.size_bytes
        if held and (row < done_until or is_over or len(held) >= size.entries):
            yield Batch(first, held)
            held, size_bytes = [], 0
        if row >= done_until:
            first = first if held else row
            held.append(entry)
            size_bytes += object_bytes
    if held:
        yield Batch(first, held)


class GoneError(Exception):
    """Nobody is at the other end any more."""


class Lines:
    """Lines of bytes, over a socket. What sends and receives raises GoneError where its other end is gone."""

    def __init__(self, connected: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        self._held = bytearray()

    async def send(self, line: bytes) -> None:
        """Send one, which has no newline in it."""
        try:
            await self._stream.send_all(line + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise GoneError from None

    async def receive(self) -> bytes:
        """The next one."""
        looked_at = 0
        while (end := self._held.find(b"\n", looked_at)) < 0:
            looked_at = len(self._held)
            try:
                chunk = await self._stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                chunk = b""
            if not chunk:
                raise GoneError
            self._held += chunk
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        return line

    def close(self) -> None:
        """Close the socket; who waits for a line gets GoneError. Repeatable."""
        self._stream.socket.close()

"""Has the entries of a manifest verified in batches by other processes, and gives what came of them in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import msgspec
import trio

from s3mount.bulk.batches.result_log import ResultLog
from s3mount.bulk.batches.wire import Batch, GoneError, Line, Lines, Size, Task, Verified, cut
from s3mount.config import StoreConfig
from s3mount.engine.process import Child, EngineProcess, Spawn, child_command
from s3mount.errors import EngineError
from s3mount.manifest.model import Entry
from s3mount.manifest.verifying import Problem, Verification
from s3mount.tasks import in_parallel

TRIES_MAX = 3
"""So often a batch is given out before it is split, and a single entry before it is given up."""


def spawn_worker() -> Child:
    """A process of this machine that performs batches. Raises OSError."""
    return EngineProcess(child_command("s3mount.bulk.batches.worker"))


class Worker(Protocol):
    """Performs batches, one at a time."""

    async def perform(self, task: bytes) -> Verified:
        """Do a Task. Raises EngineError where no other would be done either."""
        ...


Pool = AbstractAsyncContextManager[list[Worker]]


class _LocalWorker:
    """A process that is started when there is a batch for it, and anew when it died."""

    def __init__(self, spawn: Spawn, nursery: trio.Nursery) -> None:
        self._spawn = spawn
        self._nursery = nursery
        self._lines: Lines | None = None

    async def perform(self, task: bytes) -> Verified:
        """What it answers, or that it ended. Raises EngineError where none can be started."""
        try:
            if self._lines is None:
                child = self._spawn()
                self._lines = Lines(child.socket)
                self._nursery.start_soon(self._watch, child, self._lines)
            await self._lines.send(task)
            return msgspec.json.decode(await self._lines.receive(), type=Verified)
        except GoneError:
            self._lines = None
            return Verified(Verification(), [], failed="the worker ended in the middle of it")
        except OSError as error:
            raise EngineError(f"no worker can be started: {error.strerror}") from error

    async def _watch(self, child: Child, lines: Lines) -> None:
        try:
            await child.read_stderr()
        finally:
            child.kill()
            with trio.CancelScope(shield=True):
                await child.wait()
            lines.close()
            child.close()


@asynccontextmanager
async def local_workers(count: int, spawn: Spawn = spawn_worker) -> AsyncIterator[list[Worker]]:
    """Processes of this machine, until the block ends. What it raises comes out as it is, in no group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield [_LocalWorker(spawn, nursery) for _ in range(count)]
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Spread:
    """One run by the workers of ``pool``. ``stopped``: why the rest was given up, if it was."""

    def __init__(self, log: ResultLog, config: StoreConfig, pool: Pool, *, content: bool) -> None:
        self._log = log
        self._config = config
        self._pool = pool
        self._content = content
        self._idle: list[Worker] = []
        self._next_row = 0
        self.entries_done = 0
        self.stopped = ""

    async def run(
        self, entries: Iterable[Entry], size: Size, take: Callable[[Verified], None]
    ) -> None:
        """Give ``take`` what was found, batch by batch, in the order of ``entries``.

        What the log has is left out, and what is done is added to it. Cancellable: a later run with the same log
        does the rest. Raises LocalDiskError, and what reading ``entries`` raises.
        """

        async def do(batch: Batch) -> None:
            worker = self._idle.pop()
            found = await self._perform(worker, batch)
            self._idle.append(worker)
            self._log.add(batch.first, len(batch.entries), found)
            self.entries_done += len(batch.entries)
            self._deliver(take)

        batches = cut(entries, self._log.done(), size)
        self._deliver(take)
        async with self._pool as self._idle:
            slots = trio.CapacityLimiter(len(self._idle))
            share = self._config.down_bytes_per_s
            share = share and max(1, share // len(self._idle))
            self._config = msgspec.structs.replace(self._config, down_bytes_per_s=share)
            try:
                await in_parallel(slots, batches, do)
            except EngineError as error:
                self.stopped = str(error)

    def _deliver(self, take: Callable[[Verified], None]) -> None:
        while (found := self._log.take(self._next_row)) is not None:
            self._next_row += found[0]
            take(found[1])

    async def _perform(self, worker: Worker, batch: Batch, tries: int = TRIES_MAX) -> Verified:
        """Have it done; in halves where it fails each time, until the entry is known that makes it fail.

        Raises EngineError where the rest of the manifest would fail as well.
        """
        task = msgspec.json.encode(Task.of(batch, self._config, self._content))
        for _ in range(tries):
            found = await worker.perform(task)
            if found.sums.stopped:
                raise EngineError(found.sums.stopped)
            if not found.failed:
                return found
        if len(batch.entries) == 1:
            why = f"cannot be read: {found.failed}"
            line = Line.of(Problem(batch.entries[0], why, is_unread=True))
            return Verified(Verification(checked=1, problems=1, unread=1), [line])
        both = Verified(Verification(), [])
        for half in batch.halves():
            tries = TRIES_MAX if len(half.entries) == 1 else 1
            part = await self._perform(worker, half, tries)
            both.sums.add(part.sums)
            both.problems += part.problems
        return both

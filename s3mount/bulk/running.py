"""Performs what bulk commands plan: many at once, each with an outcome of its own, until it makes no sense to go on.

A command that is interrupted leaves what it has done, and nothing half under a final name: whatever is under way is
cancelled, which every transfer here withstands.
"""

from __future__ import annotations

import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, NamedTuple, TypeVar

import msgspec
import trio

from s3mount.bulk.report import Outcome, Report
from s3mount.bulk.selecting import Refuse
from s3mount.config import StoreConfig
from s3mount.engine.client import EngineClient
from s3mount.errors import (
    DiskFullError,
    EngineError,
    ExpiredCredentialsError,
    NoCredentialsError,
    NoSuchBucketError,
    OutputError,
    S3MountError,
    SourceError,
    StoreError,
    WrongRegionError,
)
from s3mount.manifest.buckets import Buckets, open_buckets
from s3mount.pack.store import open_packed
from s3mount.s3.store import Store
from s3mount.tasks import first_error
from s3mount.transfer.patience import Patience

WORKERS_MAX = 128
"""Objects under way at once; the store's own window lets fewer requests through where that is better."""
REQUESTS_AT_ONCE = 64
"""Ranges and parts under way at once, of all objects together."""
PACKS_TTL_S = 10.0
"""How long a command believes what it knows of packs."""
FATAL = (
    DiskFullError,
    EngineError,
    ExpiredCredentialsError,
    NoCredentialsError,
    NoSuchBucketError,
    OutputError,
    WrongRegionError,
)
"""Errors that all that follows would meet as well."""

T = TypeVar("T")


class Session:
    """What the commands of one process share: the stores, warm, and how many requests are under way."""

    def __init__(self, stores: Buckets[StoreConfig, Store]) -> None:
        self._stores = stores
        self.slots = trio.CapacityLimiter(REQUESTS_AT_ONCE)

    async def store(self, config: StoreConfig, bucket: str) -> Store:
        """The store of ``bucket``, asked as ``config`` says. Raises UsageError for too many buckets."""
        return await self._stores.of(msgspec.structs.replace(config, bucket=bucket))


@asynccontextmanager
async def _opened(config: StoreConfig) -> AsyncIterator[Store]:
    """One bucket; members of the packs that ``config`` names are objects in it."""
    bucket, _, folder = config.packs_in.partition("/")
    async with EngineClient(config) as store:
        if bucket != config.bucket:
            yield store
            return
        how = {"ttl_s": PACKS_TTL_S, "lists_folders": False}
        async with open_packed(store, bucket, folder, **how) as packed:
            yield packed


@asynccontextmanager
async def open_session(
    open_one: Callable[[StoreConfig], AbstractAsyncContextManager[Store]] = _opened,
) -> AsyncIterator[Session]:
    """A session, closed with the block; each store in it has a process of its own, as a mount's, by default."""
    async with open_buckets(open_one) as stores:
        yield Session(stores)


class Done(NamedTuple):
    """What came of a task: ``skipped`` says why nothing was to be done, ``etag`` is the object's that it was about."""

    size_bytes: int = 0
    version_id: str | None = None
    skipped: str | None = None
    etag: str = ""


class Task(NamedTuple):
    """One object's work. ``options`` are what ``run`` needs to do the same.

    ``store`` is asked whether it is there at all when many tasks fail.
    """

    operation: str
    source: str
    destination: str | None
    work: Callable[[], Awaitable[Done]]
    options: Sequence[str] = ()
    store: Store | None = None


def refusing(report: Report, operation: str) -> Refuse:
    """Counts and tells, from whatever thread, a local path that a walk cannot take."""
    token = trio.lowlevel.current_trio_token()

    def refuse(path: str, why: str) -> None:
        token.run_sync_soon(report.fail, operation, path, None, SourceError(why))

    return refuse


class Performer:
    """Performs the tasks of one command and reports each."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._patience = Patience()

    async def perform(self, task: Task) -> bool:
        """Do ``task``, or in a dry run only tell it; did it succeed?

        Raises an error that all others would meet as well: FATAL, or that nothing answers any more.
        """
        report, began_s = self.report, time.monotonic()
        try:
            done = Done() if report.is_dry_run else await task.work()
        except S3MountError as error:
            if isinstance(error, FATAL):
                raise
            seconds = time.monotonic() - began_s
            report.fail(task.operation, task.source, task.destination, error, seconds)
            if isinstance(error, StoreError) and error.retryable and task.store is not None:
                await self._patience.unheard(task.store, error)
            return False
        self._patience.heard()
        outcome = Outcome(
            operation=task.operation,
            success=True,
            source=task.source,
            destination=task.destination,
            bytes=done.size_bytes,
            seconds=round(time.monotonic() - began_s, 6),
            version_id=done.version_id,
            skipped=done.skipped,
        )
        report.take(outcome, options=task.options)
        return True


async def for_each(
    items: AsyncIterable[T], do: Callable[[T], Awaitable[object]], *, workers: int = WORKERS_MAX
) -> None:
    """Await ``do(item)`` for each, in their order, ``workers`` at once. ``items`` are asked for one by one.

    The first error cancels the rest and is raised, by itself if it is an S3MountError.
    """
    source = items.__aiter__()
    asking = trio.Lock()
    over = trio.Event()
    started = 0

    async def work() -> None:
        while True:
            async with asking:
                if over.is_set():
                    return
                try:
                    item = await source.__anext__()
                except StopAsyncIteration:
                    over.set()
                    return
                if not asking.statistics().tasks_waiting:
                    begin()
            await do(item)

    def begin() -> None:
        nonlocal started
        if started < workers:
            started += 1
            nursery.start_soon(work)

    with first_error():
        async with trio.open_nursery() as nursery:
            begin()


class OneByOne(AsyncIterator[T]):
    """What an iterable that does not block gives, for who awaits it."""

    def __init__(self, source: Iterable[T]) -> None:
        self._source = iter(source)

    async def __anext__(self) -> T:
        await trio.lowlevel.checkpoint()
        for each in self._source:
            return each
        raise StopAsyncIteration


class Flattened(Generic[T]):
    """The items of batches, one by one."""

    def __init__(self, batches: AsyncIterable[Sequence[T]]) -> None:
        self._batches = batches.__aiter__()
        self._batch: Iterator[T] = iter(())

    def __aiter__(self) -> Flattened[T]:
        return self

    async def __anext__(self) -> T:
        for item in self._batch:
            return item
        while True:
            self._batch = iter(await self._batches.__anext__())
            for item in self._batch:
                return item

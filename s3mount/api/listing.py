"""The objects below a prefix: to go through, and to do something with all of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import trio

from s3mount.api.outcomes import Collected, Progress, Summary, collected
from s3mount.bulk.deleting import Deleter
from s3mount.bulk.location import S3Location
from s3mount.bulk.report import Report
from s3mount.bulk.running import WORKERS_MAX, Done, Flattened, Performer, Task, for_each
from s3mount.bulk.selecting import Item, Send
from s3mount.bulk.transfers import Exists, Transfers
from s3mount.checkout.paths import refusal
from s3mount.errors import DestinationError, S3MountError
from s3mount.s3.store import Store

T = TypeVar("T")


class Listed(Protocol):
    """What a listing needs of its bucket."""

    nursery: trio.Nursery
    store: Store

    @property
    def name(self) -> str:
        """See ``Bucket.name``."""
        ...

    def folder_at(self, place: str) -> S3Location:
        """See ``Bucket.folder_at``."""
        ...

    def transfers(self, report: Report, **how: Any) -> Transfers:
        """See ``Bucket.transfers``."""
        ...


class Listing:
    """``async for item in bucket.list("prefix/")``. Each time it is gone through S3 is asked anew.

    ``map``, ``delete``, ``download``, ``copy`` and ``move`` go through it themselves. An ``Item`` has ``key`` (all of
    it), ``name`` (from the listed folder on), ``size``, ``etag``, ``modified_ns``, ``storage_class``, ``version_id``.
    Going through it raises StoreError.
    """

    def __init__(self, bucket: Listed, produce: Callable[[Send], Awaitable[None]]) -> None:
        self._bucket = bucket
        self._produce = produce

    def __aiter__(self) -> AsyncIterator[Item]:
        return Flattened(_Batches(self._bucket.nursery, self._produce))

    async def all(self) -> list[Item]:
        """All items."""
        return [item async for item in self]

    async def map(
        self, do: Callable[[Item], Awaitable[T]], *, workers: int = WORKERS_MAX
    ) -> list[T]:
        """What ``do`` gives for each item, in their order, ``workers`` at once.

        The first S3MountError ends it all and is raised; other exceptions do so in a group, as trio raises them.
        """
        results: dict[int, T] = {}
        numbers = iter(range(1 << 62))

        async def one(item: Item) -> None:
            number = next(numbers)
            results[number] = await do(item)

        await for_each(self, one, workers=workers)
        return [results[number] for number in range(len(results))]

    async def delete(self, *, progress: Progress | None = None) -> Summary:
        """Delete all, 1,000 in a request. Raises SomeFailedError."""
        async with collected("delete", progress) as report:
            batches = _Batches(self._bucket.nursery, self._produce)
            await Deleter(self._bucket.store, report, "delete").run(batches)
        return report.summary

    async def download(
        self,
        folder: str | os.PathLike[str],
        *,
        progress: Progress | None = None,
        exists: Exists = "overwrite",
    ) -> Summary:
        """Fetch all into ``folder``, each under its name; what was cut off is gone on with. Raises SomeFailedError."""
        async with collected("download", progress) as report:
            transfers = self._bucket.transfers(report, file_exists=exists)
            top = os.fspath(folder)

            async def down(item: Item) -> Done:
                why = refusal(item.name)
                if why:
                    raise DestinationError(why)
                return await transfers.down(item, self._bucket.name, os.path.join(top, item.name))

            await self._perform(report, "download", lambda item: f"{top}/{item.name}", down)
        return report.summary

    async def copy(
        self, to: str, *, progress: Progress | None = None, exists: Exists = "overwrite"
    ) -> Summary:
        """Copy all, each under its name below ``to``: a prefix here, or ``s3://``. Raises SomeFailedError."""
        return await self._across("copy", to, progress, exists, deletes_source=False)

    async def move(
        self, to: str, *, progress: Progress | None = None, exists: Exists = "overwrite"
    ) -> Summary:
        """As ``copy``; then each is deleted, if it is still the version that was copied. Raises SomeFailedError."""
        return await self._across("move", to, progress, exists, deletes_source=True)

    async def _across(
        self,
        operation: str,
        to: str,
        progress: Progress | None,
        exists: Exists,
        *,
        deletes_source: bool,
    ) -> Summary:
        folder = self._bucket.folder_at(to)
        async with collected(operation, progress) as report:
            transfers = self._bucket.transfers(report, exists=exists, deletes_source=deletes_source)

            async def across(item: Item) -> Done:
                return await transfers.across(item, self._bucket.name, folder.at(item.name))

            await self._perform(report, operation, lambda item: folder.at(item.name).url, across)
        return report.summary

    async def _perform(
        self,
        report: Collected,
        operation: str,
        destination: Callable[[Item], str],
        work: Callable[[Item], Awaitable[Done]],
    ) -> None:
        performer = Performer(report)

        async def one(item: Item) -> None:
            report.expect(1, item.size or 0)
            await performer.perform(
                Task(
                    operation,
                    item.url,
                    destination(item),
                    partial(work, item),
                    store=self._bucket.store,
                )
            )

        await for_each(self, one)


class _Batches:
    """What ``produce`` sends, as it is asked for. It runs in ``nursery``, until this is let go of or at its end."""

    def __init__(self, nursery: trio.Nursery, produce: Callable[[Send], Awaitable[None]]) -> None:
        self._nursery = nursery
        self._produce = produce
        self._failure: S3MountError | None = None
        self._receive: trio.MemoryReceiveChannel[list[Item]] | None = None

    def __aiter__(self) -> _Batches:
        return self

    async def __anext__(self) -> list[Item]:
        if self._receive is None:
            send, self._receive = trio.open_memory_channel[list[Item]](1)
            self._nursery.start_soon(self._run, send)
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise self._failure from None
            raise StopAsyncIteration from None

    async def _run(self, send: trio.MemorySendChannel[list[Item]]) -> None:
        with send:
            try:
                await self._produce(send.send)
            except S3MountError as error:
                self._failure = error
            except trio.BrokenResourceError:
                # Nobody wants the rest.
                return

    def __del__(self) -> None:
        if self._receive is not None:
            self._receive.close()

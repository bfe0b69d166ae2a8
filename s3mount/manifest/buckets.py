"""What is opened once for each bucket, when it is first asked for: a store, or a store with its cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeVar

import trio

from s3mount.errors import S3MountError, StoreError, UsageError

BUCKETS_MAX = 64
"""Buckets that one command may ask where each has a process of its own."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Buckets(Generic[K, T]):
    """What ``open_one`` makes of each bucket. All are closed with ``nursery``, or by ``closing``.

    ``K`` is what tells one from the other: a name, or all settings.
    """

    def __init__(
        self,
        open_one: Callable[[K], AbstractAsyncContextManager[T]],
        nursery: trio.Nursery,
        *,
        buckets_max: int | None = BUCKETS_MAX,
    ) -> None:
        self._open_one = open_one
        self._nursery = nursery
        self._buckets_max = buckets_max
        self._failed: dict[K, S3MountError] = {}
        self._opening = trio.Lock()
        self.opened: dict[K, T] = {}
        self.closing = trio.Event()

    async def of(self, bucket: K) -> T:
        """What is open for ``bucket``. Raises UsageError above ``buckets_max``, and what opening raises.

        What the store says against it, or the usage, is raised from then on as that of ``fail`` is.
        """
        if bucket in self.opened or bucket in self._failed:
            await trio.lowlevel.checkpoint()
        else:
            async with self._opening:
                if bucket not in self.opened and bucket not in self._failed:
                    await self._open(bucket)
        if bucket in self._failed:
            # Raised again and again: it must not gather a traceback of all of them.
            raise self._failed[bucket].with_traceback(None)
        return self.opened[bucket]

    def fail(self, bucket: K, error: S3MountError) -> None:
        """From now on whoever asks for ``bucket`` gets this error: it is true of all that is in it."""
        self._failed[bucket] = error

    async def _open(self, bucket: K) -> None:
        if self._buckets_max is not None and len(self.opened) >= self._buckets_max:
            raise UsageError(f"more than {self._buckets_max} buckets are named")
        try:
            self.opened[bucket] = await self._nursery.start(self._keep_open, bucket)
        except (StoreError, UsageError) as error:
            self.fail(bucket, error)

    async def _keep_open(self, bucket: K, *, task_status: trio.TaskStatus[T]) -> None:
        async with self._open_one(bucket) as opened:
            task_status.started(opened)
            await self.closing.wait()


@asynccontextmanager
async def open_buckets(
    open_one: Callable[[K], AbstractAsyncContextManager[T]],
    *,
    buckets_max: int | None = BUCKETS_MAX,
) -> AsyncIterator[Buckets[K, T]]:
    """``Buckets`` until the block ends. What the block raises comes out as it is, in no group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        buckets = Buckets(open_one, nursery, buckets_max=buckets_max)
        try:
            yield buckets
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
            failure = error
        buckets.closing.set()
    if failure is not None:
        raise failure

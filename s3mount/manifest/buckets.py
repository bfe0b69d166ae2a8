"""The stores of several buckets, each opened when it is first asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeAlias, TypeVar

import trio

from s3mount.errors import UsageError
from s3mount.s3.store import Store

BUCKETS_MAX = 64
"""Buckets that one command may ask: each has a process of its own."""

K = TypeVar("K", bound=Hashable)


class Stores(Generic[K]):
    """See ``open_buckets``. ``K`` is what tells one from the other: a name, or all settings."""

    def __init__(
        self, open_store: Callable[[K], AbstractAsyncContextManager[Store]], nursery: trio.Nursery
    ) -> None:
        self._open_store = open_store
        self._nursery = nursery
        self._stores: dict[K, Store] = {}
        self._opening = trio.Lock()
        self.closing = trio.Event()

    async def store(self, of: K) -> Store:
        """The store of ``of``. Raises UsageError above BUCKETS_MAX, and what opening raises."""
        found = self._stores.get(of)
        if found is not None:
            await trio.lowlevel.checkpoint()
            return found
        async with self._opening:
            if of not in self._stores:
                if len(self._stores) >= BUCKETS_MAX:
                    raise UsageError(f"more than {BUCKETS_MAX} buckets are named")
                self._stores[of] = await self._nursery.start(self._keep_open, of)
            return self._stores[of]

    async def _keep_open(self, of: K, *, task_status: trio.TaskStatus[Store]) -> None:
        async with self._open_store(of) as store:
            task_status.started(store)
            await self.closing.wait()


Buckets: TypeAlias = Stores[str]


@asynccontextmanager
async def open_buckets(
    open_store: Callable[[K], AbstractAsyncContextManager[Store]],
) -> AsyncIterator[Stores[K]]:
    """Stores, until the block ends. What the block raises comes out as it is, in no group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        stores: Stores[K] = Stores(open_store, nursery)
        try:
            yield stores
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
            failure = error
        stores.closing.set()
    if failure is not None:
        raise failure

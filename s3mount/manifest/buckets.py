"""The stores of the buckets that a manifest names, each opened when it is first asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from s3mount.errors import UsageError
from s3mount.manifest.location import OpenStore
from s3mount.s3.store import Store

BUCKETS_MAX = 64
"""Buckets that one manifest may span here: each has a process of its own."""


class Buckets:
    """See ``open_buckets``."""

    def __init__(self, open_store: OpenStore, nursery: trio.Nursery) -> None:
        self._open_store = open_store
        self._nursery = nursery
        self._stores: dict[str, Store] = {}
        self._opening = trio.Lock()
        self.closing = trio.Event()

    async def store(self, bucket: str) -> Store:
        """The store of ``bucket``. Raises UsageError above BUCKETS_MAX, and what opening raises."""
        found = self._stores.get(bucket)
        if found is not None:
            await trio.lowlevel.checkpoint()
            return found
        async with self._opening:
            if bucket not in self._stores:
                if len(self._stores) >= BUCKETS_MAX:
                    raise UsageError(f"the manifest names more than {BUCKETS_MAX} buckets")
                self._stores[bucket] = await self._nursery.start(self._keep_open, bucket)
            return self._stores[bucket]

    async def _keep_open(self, bucket: str, *, task_status: trio.TaskStatus[Store]) -> None:
        async with self._open_store(bucket) as store:
            task_status.started(store)
            await self.closing.wait()


@asynccontextmanager
async def open_buckets(open_store: OpenStore) -> AsyncIterator[Buckets]:
    """Stores by bucket, until the block ends. What the block raises comes out as it is, in no group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        buckets = Buckets(open_store, nursery)
        try:
            yield buckets
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery
            failure = error
        buckets.closing.set()
    if failure is not None:
        raise failure

"""Deletes many objects or versions: 1,000 in a request, several requests at once, each object with an outcome."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Sequence

from s3mount.bulk.report import Outcome, Report
from s3mount.bulk.running import FATAL, Flattened, for_each
from s3mount.bulk.selecting import Item
from s3mount.errors import S3MountError, StoreError
from s3mount.s3.store import Store
from s3mount.transfer.patience import Patience

KEYS_MAX = 1000
REQUESTS_AT_ONCE = 8
"""DeleteObjects is work for the store: each of them is a thousand deletions."""


class Deleter:
    """Deletes what it is given from one store. A dry run only tells."""

    def __init__(self, store: Store, report: Report, operation: str = "rm") -> None:
        self._store = store
        self._report = report
        self._operation = operation
        self._patience = Patience()

    async def run(self, batches: AsyncIterable[Sequence[Item]]) -> None:
        """Delete all. Raises S3MountError where the rest would fail alike; what was deleted is."""
        await for_each(_Repacked(batches), self._delete, workers=REQUESTS_AT_ONCE)

    async def _delete(self, items: Sequence[Item]) -> None:
        began_s = time.monotonic()
        failures: Sequence[S3MountError | None] = [None] * len(items)
        retryable: StoreError | None = None
        if not self._report.is_dry_run:
            keys = [item.key for item in items]
            version_ids = [item.version_id for item in items]
            try:
                failures = await self._store.delete_many(keys, version_ids=version_ids)
                self._patience.heard()
            except FATAL:
                raise
            except StoreError as error:
                failures = [error] * len(items)
                retryable = error if error.retryable else None
        seconds = time.monotonic() - began_s
        for item, failure in zip(items, failures, strict=True):
            self._tell(item, failure, seconds)
        if retryable is not None:
            await self._patience.unheard(self._store, retryable)

    def _tell(self, item: Item, failure: S3MountError | None, seconds: float) -> None:
        if failure is not None:
            self._report.fail(self._operation, item.url, None, failure, seconds)
            return
        done = Outcome(
            operation=self._operation,
            success=True,
            source=item.url,
            seconds=round(seconds, 6),
            version_id=item.version_id,
        )
        options = ("--version-id", item.version_id) if item.version_id is not None else ()
        self._report.take(done, options=options)


class _Repacked:
    """Batches of as many items as one request takes."""

    def __init__(self, batches: AsyncIterable[Sequence[Item]]) -> None:
        self._items = Flattened(batches)
        self._is_over = False

    def __aiter__(self) -> _Repacked:
        return self

    async def __anext__(self) -> list[Item]:
        packed: list[Item] = []
        while not self._is_over and len(packed) < KEYS_MAX:
            try:
                packed.append(await self._items.__anext__())
            except StopAsyncIteration:
                self._is_over = True
        if not packed:
            raise StopAsyncIteration
        return packed

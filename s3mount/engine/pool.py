"""One engine for each bucket that is asked, started at the first request, a few at a time.

A snapshot may span any number of buckets, in several regions; each needs an address and a signer of
its own, which is what an engine is. Those that are idle make room for others.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from s3mount.config import StoreConfig
from s3mount.engine.client import EngineClient
from s3mount.errors import S3MountError
from s3mount.refs import (
    ByteRange,
    ETag,
    FileSlice,
    Key,
    ObjectInfo,
    VersionId,
    VersionPage,
)

ENGINES_MAX = 4
"""Engines at a time: about 60 MiB of memory each."""


class EnginePool:
    """Engines by bucket. ``config`` is theirs, but for the bucket."""

    def __init__(
        self,
        config: StoreConfig,
        nursery: trio.Nursery,
        *,
        engines_max: int = ENGINES_MAX,
        make: Callable[[StoreConfig], EngineClient] = EngineClient,
    ) -> None:
        self._config = config
        self._nursery = nursery
        self._engines_max = engines_max
        self._make = make
        self._running: OrderedDict[str, EngineClient] = OrderedDict()
        self._calls: dict[str, int] = {}
        self._idle = trio.Event()
        self._changing = trio.Lock()
        self._ended: dict[str, float] = {}
        self.started = 0

    def bucket(self, name: str) -> PooledStore:
        """What can be asked of a bucket. Starts nothing."""
        return PooledStore(self, name)

    @asynccontextmanager
    async def engine(self, bucket: str) -> AsyncIterator[EngineClient]:
        """The engine of a bucket, which is not ended meanwhile. Waits for one of the others where there
        are too many and none is idle: requests are bounded in time."""
        engine = self._running.get(bucket) or await self._start(bucket)
        self._running.move_to_end(bucket)
        self._calls[bucket] += 1
        try:
            yield engine
        finally:
            self._calls[bucket] -= 1
            if not self._calls[bucket]:
                self._idle.set()

    async def _start(self, bucket: str) -> EngineClient:
        async with self._changing:
            while bucket not in self._running and len(self._running) >= self._engines_max:
                idle = next((name for name in self._running if not self._calls[name]), None)
                if idle is None:
                    self._idle = trio.Event()
                    await self._idle.wait()
                else:
                    await self._end(idle)
            if bucket not in self._running:
                engine = self._make(msgspec.structs.replace(self._config, bucket=bucket))
                await self._nursery.start(engine.run)
                self.started += 1
                self._running[bucket] = engine
                self._calls[bucket] = 0
            return self._running[bucket]

    async def _end(self, bucket: str) -> None:
        engine = self._running.pop(bucket)
        del self._calls[bucket]
        with contextlib.suppress(S3MountError):
            _add_up(self._ended, await engine.statistics())
        await engine.stop()

    async def renew_credentials(self) -> None:
        """See ``Store.renew_credentials``, for all engines. Raises the first error."""
        for engine in list(self._running.values()):
            await engine.renew_credentials()

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """See ``Store.set_rates``, for each engine, later ones too. Raises the first error."""
        self._config = msgspec.structs.replace(
            self._config, up_bytes_per_s=up_bytes_per_s, down_bytes_per_s=down_bytes_per_s
        )
        for engine in list(self._running.values()):
            await engine.set_rates(up_bytes_per_s, down_bytes_per_s)

    async def set_log_level(self, level: str) -> None:
        """See ``Store.set_log_level``, for each engine. Raises the first error."""
        for engine in list(self._running.values()):
            await engine.set_log_level(level)

    async def close(self) -> None:
        """End all engines. Calls under way end first, within bounds."""
        for engine in list(self._running.values()):
            await engine.stop()

    async def statistics(self) -> dict[str, float]:
        """The counters of all engines, of those that have ended as well."""
        total = dict(self._ended)
        for engine in list(self._running.values()):
            with contextlib.suppress(S3MountError):
                _add_up(total, await engine.statistics())
        return total


class PooledStore:
    """The part of ``Store`` that reads, for one bucket of a pool."""

    def __init__(self, pool: EnginePool, bucket: str) -> None:
        self._pool = pool
        self._bucket = bucket

    async def head(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.head``."""
        async with self._pool.engine(self._bucket) as engine:
            return await engine.head(key, version_id=version_id)

    async def get(
        self,
        key: Key,
        *,
        byte_range: ByteRange | None = None,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
    ) -> tuple[ObjectInfo, bytes]:
        """See ``Store.get``."""
        async with self._pool.engine(self._bucket) as engine:
            return await engine.get(
                key, byte_range=byte_range, version_id=version_id, if_match=if_match
            )

    async def fetch(
        self,
        key: Key,
        byte_range: ByteRange,
        sink: FileSlice,
        *,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> ObjectInfo:
        """See ``Store.fetch``."""
        async with self._pool.engine(self._bucket) as engine:
            return await engine.fetch(
                key,
                byte_range,
                sink,
                version_id=version_id,
                if_match=if_match,
                on_progress=on_progress,
            )

    async def list_versions_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        key_marker: str | None = None,
        version_marker: VersionId | None = None,
        max_keys: int = 1000,
    ) -> VersionPage:
        """See ``Store.list_versions_page``."""
        async with self._pool.engine(self._bucket) as engine:
            return await engine.list_versions_page(
                prefix,
                delimiter=delimiter,
                key_marker=key_marker,
                version_marker=version_marker,
                max_keys=max_keys,
            )

    async def noncurrent_rule(self, prefix: str = "") -> str:
        """See ``Store.noncurrent_rule``."""
        async with self._pool.engine(self._bucket) as engine:
            return await engine.noncurrent_rule(prefix)

    async def try_version_dates(self, temporary_key: Key) -> bool | None:
        """See ``Store.try_version_dates``."""
        async with self._pool.engine(self._bucket) as engine:
            return await engine.try_version_dates(temporary_key)


def _add_up(total: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        greatest = name.endswith("_max_s")
        total[name] = max(total.get(name, 0.0), value) if greatest else total.get(name, 0.0) + value

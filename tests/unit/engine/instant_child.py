"""An engine process whose store answers at once and remembers nothing: what is left is the boundary."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from s3mount.config import StoreConfig
from s3mount.engine.child import main
from s3mount.refs import ANY, Body, Condition, Key, ObjectHeaders, ObjectInfo, PutResult, VersionId
from s3mount.s3.store import Store
from s3mount.testing.memory_store import MemoryStore


class InstantStore(MemoryStore):
    """Answers HEAD and PUT from nothing."""

    async def head(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        await trio.lowlevel.checkpoint()
        return ObjectInfo(key, 4096, "0" * 32, 0)

    async def put(
        self, key: Key, body: Body, headers: ObjectHeaders, *, condition: Condition = ANY
    ) -> PutResult:
        await trio.lowlevel.checkpoint()
        return PutResult("0" * 32)


@asynccontextmanager
async def open_store(_: StoreConfig) -> AsyncIterator[Store]:
    await trio.lowlevel.checkpoint()
    yield InstantStore()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], open_store))

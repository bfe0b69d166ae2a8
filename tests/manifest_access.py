"""``s3mount manifest`` with its stores in this process: on a real server, or on a bucket in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from s3mount.app import manifests
from s3mount.errors import NoSuchBucketError
from s3mount.s3.client import S3Store
from s3mount.s3.store import Store
from s3mount.testing.memory_store import MemoryStore


@asynccontextmanager
async def open_in_this_process(access: manifests.Access, bucket: str) -> AsyncIterator[Store]:
    """In place of ``Access.open_store``, which starts a process."""
    async with S3Store(msgspec.structs.replace(access.config, bucket=bucket)) as store:
        yield store


def use(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands find ``store`` where its bucket is named, and no other bucket."""

    @asynccontextmanager
    async def open_store(access: manifests.Access, bucket: str) -> AsyncIterator[Store]:
        if bucket != store.bucket:
            raise NoSuchBucketError(f"the bucket {bucket!r} does not exist")
        async with store:
            yield store

    monkeypatch.setattr(manifests.Access, "open_store", open_store)

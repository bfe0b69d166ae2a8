"""What is opened once for each bucket: at the first call, also of many at once; until the block ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from s3mount.config import StoreConfig
from s3mount.errors import LocalDiskError, NoSuchBucketError, S3MountError, UsageError
from s3mount.manifest.buckets import open_buckets
from s3mount.refs import ObjectHeaders
from tests.sim.world import simulated


class Opener:
    """Opens a bucket as its own name, slowly. ``error`` is raised instead."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open: set[str] = set()
        self.error: S3MountError | None = None

    @asynccontextmanager
    async def __call__(self, bucket: str) -> AsyncIterator[str]:
        self.asked.append(bucket)
        await trio.sleep(1)
        if self.error is not None:
            raise self.error
        self.open.add(bucket)
        try:
            yield bucket
        finally:
            self.open.remove(bucket)


@simulated
async def test_each_is_opened_once_and_closed_with_the_block() -> None:
    opener = Opener()
    found: list[str] = []
    async with open_buckets(opener) as buckets:

        async def ask(bucket: str) -> None:
            found.append(await buckets.of(bucket))

        async with trio.open_nursery() as nursery:
            for bucket in ("one", "two") * 5:
                nursery.start_soon(ask, bucket)
        assert sorted(opener.asked) == sorted(opener.open) == ["one", "two"]
    assert sorted(found) == ["one"] * 5 + ["two"] * 5
    assert not opener.open


@pytest.mark.parametrize(
    ("error", "asked"), [(NoSuchBucketError("no"), 1), (LocalDiskError("full"), 3)]
)
def test_what_the_store_says_against_a_bucket_stands(error: S3MountError, asked: int) -> None:
    async def main() -> None:
        opener = Opener()
        opener.error = error
        async with open_buckets(opener) as buckets:
            for _ in range(3):
                with pytest.raises(type(error)):
                    await buckets.of("one")
            assert len(opener.asked) == asked
            opener.error = None
            assert await buckets.of("two") == "two"
            buckets.fail("two", error)
            with pytest.raises(type(error)):
                await buckets.of("two")

    simulated(main)()


def test_settings_tell_stores_apart() -> None:
    public = ObjectHeaders(metadata={"a": "b"}, acl={"x-amz-acl": "public-read"})
    told = {StoreConfig(bucket="one"), StoreConfig(bucket="one")}
    assert len(told | {StoreConfig(bucket="one", new_objects=public)}) == 2


@simulated
async def test_more_than_may_be_are_a_usage_error_that_leaves_the_block_in_no_group() -> None:
    opener = Opener()

    async def ask() -> None:
        async with open_buckets(opener, buckets_max=2) as buckets:
            for bucket in ("one", "two", "three"):
                await buckets.of(bucket)

    with pytest.raises(UsageError, match="more than 2 buckets"):
        await ask()
    assert not opener.open

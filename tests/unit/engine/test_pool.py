"""Engines by bucket: started when asked, a few at a time, never ended under a call."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import trio
import trio.testing

from s3mount.config import StoreConfig
from s3mount.engine.client import EngineClient
from s3mount.engine.pool import EnginePool
from s3mount.errors import EngineError, NoSuchKeyError
from s3mount.refs import ObjectInfo, VersionId


class Engine:
    """What the pool needs of an engine; a HEAD takes a second of virtual time."""

    def __init__(self, config: StoreConfig, log: list[str]) -> None:
        self.bucket = config.bucket
        self.calls = 0
        self.done = 0
        self._log = log
        self._stop = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self._log.append(f"start {self.bucket}")
        task_status.started()
        await self._stop.wait()

    async def stop(self) -> None:
        assert not self.calls, "ended under a call"
        self._log.append(f"stop {self.bucket}")
        self._stop.set()
        await trio.lowlevel.checkpoint()

    async def head(self, key: str, *, version_id: VersionId | None = None) -> ObjectInfo:
        self.calls += 1
        await trio.sleep(1)
        self.calls -= 1
        self.done += 1
        if key == "missing":
            raise NoSuchKeyError("no such key")
        return ObjectInfo(f"{self.bucket}/{key}", 0, "", 0, version_id)

    async def statistics(self) -> dict[str, float]:
        await trio.lowlevel.checkpoint()
        if self.bucket == "dead":
            raise EngineError("gone")
        return {"requests": self.done, "slowest_max_s": 1.0}


def in_virtual_time(test: Callable[[EnginePool, list[str]], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        async def main() -> None:
            log: list[str] = []
            async with trio.open_nursery() as nursery:
                pool = EnginePool(
                    StoreConfig(bucket=""),
                    nursery,
                    engines_max=2,
                    make=lambda config: cast(EngineClient, Engine(config, log)),
                )
                await test(pool, log)
                await pool.close()

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    # Else pytest takes the arguments of the test for fixtures.
    del run.__wrapped__
    return run


@in_virtual_time
async def test_an_engine_is_started_by_the_first_request(pool: EnginePool, log: list[str]) -> None:
    store = pool.bucket("a")
    assert log == []
    for _ in range(3):
        assert (await store.head("key", version_id="v")).key == "a/key"
    assert log == ["start a"]


@in_virtual_time
async def test_the_one_idle_for_longest_makes_room(pool: EnginePool, log: list[str]) -> None:
    for bucket in ("a", "b", "a", "c"):
        await pool.bucket(bucket).head("key")
    assert log == ["start a", "start b", "stop b", "start c"]
    assert await pool.statistics() == {"requests": 4, "slowest_max_s": 1.0}


@in_virtual_time
async def test_many_buckets_at_once_wait_for_each_other(pool: EnginePool, log: list[str]) -> None:
    found: list[str] = []

    async def ask(bucket: str) -> None:
        for number in range(3):
            told = await pool.bucket(bucket).head(f"{number}")
            found.append(told.key)

    async with trio.open_nursery() as nursery:
        for bucket in "abcdef":
            nursery.start_soon(ask, bucket)
    assert sorted(found) == sorted(f"{bucket}/{n}" for bucket in "abcdef" for n in range(3))
    running = 0
    for line in log:
        running += 1 if line.startswith("start") else -1
        assert running <= 2


@in_virtual_time
async def test_an_error_frees_its_engine(pool: EnginePool, log: list[str]) -> None:
    for bucket in ("a", "b", "c"):
        with pytest.raises(NoSuchKeyError):
            await pool.bucket(bucket).head("missing")
    assert log[-2:] == ["stop a", "start c"]


@in_virtual_time
async def test_an_engine_that_cannot_tell_its_counters_can_be_ended(
    pool: EnginePool, log: list[str]
) -> None:
    for bucket in ("dead", "b", "c"):
        await pool.bucket(bucket).head("key")
    assert "stop dead" in log
    assert (await pool.statistics())["requests"] == 2

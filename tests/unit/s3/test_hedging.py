"""What is late is asked again beside it, and the first whole answer counts.

Waits are 20 times as fast; sockets are real.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3mount.errors import NoSuchKeyError
from s3mount.refs import ByteRange, FileSlice
from s3mount.s3.client import S3Store
from tests.idle_clock import IdleClock
from tests.unit.s3.fault_server import (
    Behaviour,
    Exchange,
    FaultServer,
    behave,
    faulty_store,
    halfway,
    hang,
    md5,
    refuse,
)

CONTENT = hashlib.shake_256(b"x").digest(300_000)
PIN = md5(CONTENT)
WARM = 60
DEADLINE_S = 3.0
"""No try is given up sooner than this (TimeoutSettings.answer_min_s)."""
RATE = 20


def run(body: Callable[[FaultServer, S3Store], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(200):
            async with faulty_store() as (server, store):
                server.objects["key"] = CONTENT
                await body(server, store)
                assert (await store.statistics())["requests_running"] == 0

    clock = IdleClock(rate=RATE)
    trio.run(main, clock=clock, instruments=[clock])


async def slowly(exchange: Exchange) -> None:
    """As long as a store in another region needs, so that a busy machine's own delays are no more."""
    await trio.sleep(0.2)
    await behave(exchange)


async def seconds(work: Callable[[], Awaitable[object]]) -> float:
    began_s = trio.current_time()
    await work()
    return trio.current_time() - began_s


def fetching(store: S3Store, path: Path, *, pinned: bool = True) -> Callable[[], Awaitable[object]]:
    path.write_bytes(bytes(len(CONTENT)))
    return lambda: store.fetch(
        "key",
        ByteRange(0, len(CONTENT)),
        FileSlice(str(path), 0, len(CONTENT)),
        if_match=PIN if pinned else None,
    )


@pytest.mark.parametrize("straggler", [hang, halfway(hang)])
def test_a_get_that_hangs_is_answered_by_the_second(straggler: Behaviour) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = slowly
        for _ in range(WARM):
            await store.get("key")
        server.then(straggler)
        began_s = trio.current_time()
        assert (await store.get("key"))[1] == CONTENT
        assert trio.current_time() - began_s < DEADLINE_S
        told = await store.statistics()
        assert (told["hedges"], told["hedges_won"], told["overdue"]) == (1, 1, 0)
        assert (await store.get("key"))[1] == CONTENT

    run(body)


@pytest.mark.parametrize("straggler", [hang, halfway(hang)])
def test_a_fetch_that_hangs_is_answered_by_the_second(straggler: Behaviour, tmp_path: Path) -> None:
    """Also when half of the first one's bytes lie in the file already."""

    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = slowly
        path = tmp_path / "file"
        fetch = fetching(store, path)
        for _ in range(WARM):
            await fetch()
        path.write_bytes(bytes(len(CONTENT)))
        server.then(straggler)
        assert await seconds(fetch) < DEADLINE_S
        assert path.read_bytes() == CONTENT
        told = await store.statistics()
        assert (told["hedges"], told["hedges_won"]) == (1, 1)

    run(body)


def test_what_nothing_pins_is_not_fetched_twice(tmp_path: Path) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = slowly
        fetch = fetching(store, tmp_path / "file", pinned=False)
        for _ in range(WARM):
            await fetch()
        server.then(hang)
        assert await seconds(fetch) >= DEADLINE_S
        assert (await store.statistics())["hedges"] == 0

    run(body)


def test_a_second_that_fails_leaves_the_first_alone() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        async def late(exchange: Exchange) -> None:
            await trio.sleep(2)
            await behave(exchange)

        server.usually = slowly
        for _ in range(WARM):
            await store.get("key")
        server.then(late, refuse(404, "NoSuchKey"))
        assert (await store.get("key"))[1] == CONTENT
        told = await store.statistics()
        assert (told["hedges"], told["hedges_won"]) == (1, 0)
        del server.objects["key"]
        with pytest.raises(NoSuchKeyError):
            await store.get("key")

    run(body)


def test_changes_are_sent_once() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = slowly
        for number in range(WARM):
            await store.delete(f"{number}")
        server.then(hang)
        await store.delete("key")
        told = await store.statistics()
        assert (told["hedges"], told["overdue"]) == (0, 1)

    run(body)


def test_where_all_are_late_few_are_asked_twice() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        async def later(exchange: Exchange) -> None:
            await trio.sleep(1.5)
            await behave(exchange)

        server.usually = slowly
        for _ in range(WARM):
            await store.get("key")
        server.usually = later
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(store.get, "key")
        told = await store.statistics()
        assert told["hedges"] <= 0.03 * (WARM + 100) + 1

    run(body)

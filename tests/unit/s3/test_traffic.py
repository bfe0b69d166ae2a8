"""Rates, yielding and the round trip, at a real server."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from s3mount.config import StoreConfig
from s3mount.errors import UsageError
from s3mount.refs import ByteRange, FileSlice, ObjectHeaders
from s3mount.s3.client import S3Store
from s3mount.s3.http.statistics import Statistics
from s3mount.s3.http.traffic import (
    LOWER_EFFORT,
    ROUND_S,
    Peer,
    Traffic,
    put_behind_others,
)
from tests.servers import S3Server

KIB = 1 << 10
RATE = 512 * KIB
SIZE = 1024 * KIB
HEADERS = ObjectHeaders()


@pytest.fixture
def config(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> StoreConfig:
    for variable, value in s3_server.environment().items():
        monkeypatch.setenv(variable, value)
    return StoreConfig(bucket=bucket, endpoint_url=s3_server.endpoint_url, path_style=True)


async def seconds(*works: Callable[[], Awaitable[object]]) -> float:
    """How long they take, all at once."""
    began_s = trio.current_time()

    async def one(work: Callable[[], Awaitable[object]]) -> None:
        await work()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(one, work)
    return trio.current_time() - began_s


def test_bodies_go_up_at_the_rate_that_was_set(config: StoreConfig, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    limited = msgspec.structs.replace(config, up_bytes_per_s=RATE)

    async def main() -> None:
        async with S3Store(limited) as store:
            whole = FileSlice(str(path), 0, SIZE)
            took_s = await seconds(lambda: store.put("one", whole, HEADERS))
            assert SIZE / RATE - 0.2 < took_s < 2 * SIZE / RATE + 3
            some = [
                lambda name=name: store.put(name, bytes(SIZE // 8), HEADERS) for name in "abcdefgh"
            ]
            assert await seconds(*some) > SIZE / RATE - 0.2, "over all connections together"
            assert await seconds(lambda: store.get("a")) < 1, "the other way is free"

    trio.run(main)


def test_bodies_come_down_at_the_rate_that_was_set(config: StoreConfig, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    limited = msgspec.structs.replace(config, down_bytes_per_s=RATE)

    async def main() -> None:
        async with S3Store(limited) as store:
            await store.put("one", bytes(SIZE), HEADERS)
            sink = FileSlice(str(path), 0, SIZE)
            took_s = await seconds(lambda: store.fetch("one", ByteRange(0, SIZE), sink))
            assert SIZE / RATE - 0.3 < took_s < 2 * SIZE / RATE + 3

    trio.run(main)


def test_a_rate_makes_no_request_overdue_and_can_be_lifted(
    config: StoreConfig, tmp_path: Path
) -> None:
    """16 transfers at 64 KiB/s: each alone would crawl below what a deadline allows."""
    limited = msgspec.structs.replace(config, down_bytes_per_s=64 * KIB)
    size = 64 * KIB

    async def main() -> None:
        async with S3Store(limited) as store:
            await store.put("one", bytes(size), HEADERS)
            sinks = [tmp_path / str(n) for n in range(16)]
            for sink in sinks:
                sink.write_bytes(bytes(size))
            works = [
                lambda sink=sink: store.fetch(
                    "one", ByteRange(0, size), FileSlice(str(sink), 0, size)
                )
                for sink in sinks
            ]
            assert await seconds(*works[:8]) > 7
            told = await store.statistics()
            assert (told["overdue"], told["retries"]) == (0, 0)
            assert told["window_read"] == 4
            store._http.traffic.set_limits(0, 0)
            assert await seconds(*works[8:]) < 3
            assert (await store.statistics())["window_read"] > 4

    trio.run(main)


def test_in_the_background_transfers_arrive_as_well(config: StoreConfig) -> None:
    data = bytes(range(256)) * 2 * KIB

    async def main() -> None:
        async with S3Store(msgspec.structs.replace(config, background=True)) as store:
            with trio.fail_after(60):
                await store.put("one", data, HEADERS)
                assert (await store.get("one"))[1] == data
            told = await store.statistics()
            assert told["window_read"] <= 8
            assert told["round_trip_s"] > 0

    trio.run(main)


def test_connections_in_the_background_say_that_they_may_wait() -> None:
    with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        for each in (four, six):
            put_behind_others(each)
        assert four.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == LOWER_EFFORT
        assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == LOWER_EFFORT


def test_round_trips_are_met_while_much_is_moved_and_not_else() -> None:
    """The connection that tells them is closed at once, and nothing is asked by it."""

    async def main() -> None:
        statistics = Statistics()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(5)
            peer = Peer(socket.AF_INET, listener.getsockname())
            traffic = Traffic(StoreConfig(bucket="bucket"), statistics, lambda: peer)
            traffic.look(10.0)
            assert traffic.trip.base_s == 0
            statistics.bytes_received += 1 << 20
            traffic.look(10.0 + ROUND_S)
            accepted, _ = listener.accept()
            traffic.look(10.1 + ROUND_S)
            assert 0 < traffic.trip.base_s < 1
            assert accepted.recv(1) == b""
            accepted.close()
            listener.setblocking(False)
            traffic.look(10.2 + ROUND_S)
            traffic.look(10.1 + 2 * ROUND_S)
            with pytest.raises(BlockingIOError):
                listener.accept()

    trio.run(main)


def test_a_rate_is_not_negative() -> None:
    with pytest.raises(UsageError):
        StoreConfig(bucket="b", up_bytes_per_s=-1)

"""The HTTP client against a server that hangs, resets, truncates, trickles and refuses.

Waits are 20 times as fast, so that deadlines of seconds pass in fractions; sockets are real.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from s3mount.errors import (
    AccessDeniedError,
    ChecksumError,
    DeadlineError,
    NetworkError,
    NoSuchKeyError,
    NotS3Error,
    PreconditionFailedError,
    RejectedError,
    ServerFaultError,
    ThrottledError,
)
from s3mount.refs import ByteRange, Condition, FileSlice, ObjectHeaders
from s3mount.s3.client import S3Store
from tests.idle_clock import IdleClock
from tests.unit.s3.fault_server import (
    Behaviour,
    Exchange,
    FaultServer,
    behave,
    close,
    faulty_store,
    halfway,
    hang,
    md5,
    paced,
    raw,
    refuse,
    refuse_early,
    reset,
    stored_but,
)

RATE = 20
PLAIN = ObjectHeaders()
HEADERS = ObjectHeaders(metadata={"mode": "33188"})
ABSENT = Condition(if_absent=True)
CONTENT = hashlib.shake_256(b"x").digest(300_000)


def run(
    body: Callable[[FaultServer, S3Store], Awaitable[None]],
    *,
    tries_max: int = 8,
    connections_max: int = 128,
    receive_buffer: int = 0,
    offline_wait_s: float = 10.0,
) -> None:
    async def main() -> None:
        with trio.fail_after(400):
            async with faulty_store(
                tries_max=tries_max,
                connections_max=connections_max,
                receive_buffer=receive_buffer,
                offline_wait_s=offline_wait_s,
            ) as (server, store):
                await body(server, store)
                assert (await store.statistics())["requests_running"] == 0

    clock = IdleClock(rate=RATE)
    trio.run(main, clock=clock, instruments=[clock])


def test_a_hung_request_ends_at_its_deadline_and_is_repeated() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"content"
        server.then(hang)
        began = trio.current_time()
        assert (await store.get("key"))[1] == b"content"
        assert 5 < trio.current_time() - began < 12
        counted = await store.statistics()
        assert (counted["overdue"], counted["retries"], counted["requests"]) == (1, 1, 2)
        assert server.connections == 2

    run(body)


def test_a_store_that_hangs_for_ever_is_a_deadline_error_in_the_end() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(*[hang] * 3)
        with pytest.raises(DeadlineError) as raised:
            await store.head("key")
        assert raised.value.key == "key"
        assert len(server.seen) == 3

    run(body, tries_max=3)


def test_reads_are_not_tried_again_and_again_while_nobody_answers() -> None:
    """One look at a time, until the store is back; then at once."""

    async def body(server: FaultServer, store: S3Store) -> None:
        told: list[str] = []
        store.on_outage = told.append
        server.objects["key"] = b"content"
        server.usually = reset
        while not store.outage:
            with pytest.raises(NetworkError):
                await store.head("key")
        tried = len(server.seen)
        for _ in range(5):
            with pytest.raises(NetworkError):
                await store.head("key")
        assert len(server.seen) - tried <= 5, "eight tries each before"
        server.usually = behave
        assert (await store.get("key"))[1] == b"content"
        assert not store.outage
        assert [bool(reason) for reason in told] == [True, False]

    run(body, offline_wait_s=0)


def test_reads_wait_for_the_end_of_an_outage_as_long_as_they_may() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"content"
        server.usually = reset
        with trio.move_on_after(30):
            await store.head("key")
        assert store.outage, "the request waits on, though its tries would be used up"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get, "key")
            await trio.sleep(60)
            server.usually = behave

    run(body, tries_max=10_000, offline_wait_s=600)


def test_learned_latency_makes_deadlines_wait_for_a_slow_store() -> None:
    async def slowly(exchange: Exchange) -> None:
        await trio.sleep(4.5)
        await behave(exchange)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"content"
        server.then(*[slowly] * 8)
        for _ in range(8):
            await store.head("key")
        assert (await store.statistics())["retries"] == 0

    run(body)


@pytest.mark.parametrize("fault", [close, reset, halfway(close), halfway(reset), halfway(hang)])
def test_a_body_that_breaks_off_is_asked_for_again(fault: Behaviour) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = CONTENT
        server.then(fault, fault)
        assert (await store.get("key"))[1] == CONTENT
        assert (await store.statistics())["retries"] == 2

    run(body)


@pytest.mark.parametrize("fault", [close, reset, hang])
def test_a_fetch_that_breaks_off_goes_on_where_it_ended(tmp_path: Path, fault: Behaviour) -> None:
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(len(CONTENT)))
    progress: list[int] = []

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = CONTENT
        server.then(halfway(fault), halfway(fault))
        await store.fetch(
            "key",
            ByteRange(100, 200_000),
            FileSlice(str(sink), 0, 200_000),
            on_progress=progress.append,
        )
        ranges = [exchange.headers["range"] for exchange in server.seen]
        starts = [int(wanted[6:].partition("-")[0]) for wanted in ranges]
        if fault is reset:  # which may discard what was sent before
            assert 100 == starts[0] <= starts[1] <= starts[2]
        else:
            assert ranges == ["bytes=100-200099", "bytes=100100-200099", "bytes=150100-200099"]
        assert "if-match" not in server.seen[0].headers
        if starts[2] > 100:
            assert server.seen[2].headers["if-match"] == f'"{md5(CONTENT)}"'

    run(body)
    assert sink.read_bytes()[:200_000] == CONTENT[100:200_100]
    assert progress == sorted(progress)
    assert progress[-1] == 200_000


def shortened(exchange: Exchange) -> tuple[int, bytes, dict[str, str]]:
    """Half of the body under a head that announces just that."""
    status, body, headers = exchange.read()
    return status, body[: len(body) // 2], headers


async def announced_short(exchange: Exchange) -> None:
    await exchange.answer(*shortened(exchange))


async def chunked_short(exchange: Exchange) -> None:
    status, body, headers = shortened(exchange)
    head = exchange.start(status, 0, headers).replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    await exchange.stream.send_all(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))


async def announced_long(exchange: Exchange) -> None:
    status, body, headers = exchange.read()
    await exchange.answer(status, body + b"and more", headers)


@pytest.mark.parametrize("fault", [announced_short, chunked_short, announced_long])
def test_a_body_of_another_length_than_its_range_is_not_handed_out(
    tmp_path: Path, fault: Behaviour
) -> None:
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(1100))

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = CONTENT
        server.then(fault)
        await store.fetch("key", ByteRange(100, 1000), FileSlice(str(sink), 50, 1000))
        assert len(server.seen) == 2

    run(body)
    assert sink.read_bytes() == bytes(50) + CONTENT[100:1100] + bytes(50)


def test_a_short_range_in_memory_is_asked_for_again() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = CONTENT
        server.then(announced_short)
        _, got = await store.get("key", byte_range=ByteRange(100, 1000))
        assert got == CONTENT[100:1100]

    run(body)


def test_a_list_that_lacks_its_end_is_asked_for_again() -> None:
    whole = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"

    async def cut_off(exchange: Exchange) -> None:
        await exchange.answer(200, whole[:40])

    async def empty(exchange: Exchange) -> None:
        await exchange.answer(200, b"")

    async def complete(exchange: Exchange) -> None:
        await exchange.answer(200, whole)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(cut_off, complete)
        assert (await store.list_page("")).objects == ()
        server.then(empty, complete)
        assert (await store.list_page("")).objects == ()
        assert len(server.seen) == 4

    run(body)


def test_a_refusal_that_lacks_its_end_is_not_believed() -> None:
    async def cut_off(exchange: Exchange) -> None:
        await exchange.answer(404, b"<Error><Code>NoSuchBuc")

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"content"
        server.then(cut_off)
        assert (await store.get("key"))[1] == b"content"

    run(body)


def test_a_fetch_never_continues_with_another_version(tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(100))

    async def replaced(exchange: Exchange) -> None:
        exchange.server.objects["key"] = bytes(100)  # a store that ignores If-Match
        await behave(exchange)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = CONTENT[:100]
        server.then(halfway(close), replaced)
        with pytest.raises(PreconditionFailedError):
            await store.fetch("key", ByteRange(0, 100), FileSlice(str(sink), 0, 100))

    run(body)
    assert sink.read_bytes() == CONTENT[:50] + bytes(50)


def test_a_trickle_is_not_waited_for(tmp_path: Path) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = CONTENT
        server.then(paced(10, 0.5))
        began = trio.current_time()
        assert (await store.get("key"))[1] == CONTENT
        assert trio.current_time() - began < 15
        assert (await store.statistics())["overdue"] == 1

    run(body)


def test_a_slow_line_that_keeps_moving_is_left_alone(tmp_path: Path) -> None:
    data = hashlib.shake_256(b"slow").digest(1_500_000)
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(len(data)))

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = data
        server.then(paced(50_000, 0.5))  # 15 s, the average so far promised 1.5
        await store.fetch("key", ByteRange(0, len(data)), FileSlice(str(sink), 0, len(data)))
        assert (await store.statistics())["retries"] == 0

    run(body)
    assert sink.read_bytes() == data


def test_a_line_that_stops_after_moving_is_given_up_soon(tmp_path: Path) -> None:
    data = hashlib.shake_256(b"slow").digest(1_500_000)
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(len(data)))

    async def stops(exchange: Exchange) -> None:
        status, body, headers = exchange.read()
        await exchange.stream.send_all(exchange.start(status, len(body), headers))
        for start in range(0, 1_000_000, 50_000):
            await trio.sleep(0.5)
            await exchange.stream.send_all(body[start : start + 50_000])
        await hang(exchange)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = data
        server.then(stops)
        began = trio.current_time()
        await store.fetch("key", ByteRange(0, len(data)), FileSlice(str(sink), 0, len(data)))
        assert trio.current_time() - began < 10 + 5 + 5
        assert (await store.statistics())["overdue"] == 1

    run(body)
    assert sink.read_bytes() == data


async def swallow(exchange: Exchange, bytes_per_s: int, up_to: int) -> None:
    """Read a request's body slowly, in half seconds."""
    done = len(exchange.body)
    while done < up_to:
        await trio.sleep(0.5)
        left = min(bytes_per_s // 2, up_to - done)
        while left > 0:
            piece = await exchange.stream.receive_some(left)
            left -= len(piece)
            done += len(piece)
            if not piece:
                raise trio.BrokenResourceError("the client gave up")


@pytest.mark.parametrize(("size", "seconds"), [(900_000, 10), (6_000_000, 40)])
def test_a_slow_line_upwards_is_left_alone_too(tmp_path: Path, size: int, seconds: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(size))

    async def read_slowly(exchange: Exchange) -> None:
        await swallow(exchange, size // seconds, size)
        await exchange.answer(200, headers={"ETag": '"x"'})

    read_slowly.before_body = True  # type: ignore[attr-defined]

    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(read_slowly)
        began = trio.current_time()
        await store.upload_part("key", "id", 1, FileSlice(str(source), 0, size))
        assert trio.current_time() - began > seconds * 0.9
        counted = await store.statistics()
        assert (counted["retries"], counted["overdue"]) == (0, 0)

    run(body, receive_buffer=16384)


def test_a_line_upwards_that_stops_is_given_up(tmp_path: Path) -> None:
    size = 3_000_000
    source = tmp_path / "source"
    source.write_bytes(bytes(size))

    async def stop_reading(exchange: Exchange) -> None:
        await swallow(exchange, size // 10, size // 2)
        await trio.sleep(100)

    stop_reading.before_body = True  # type: ignore[attr-defined]

    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(stop_reading)
        began = trio.current_time()
        with pytest.raises(DeadlineError):
            await store.upload_part("key", "id", 1, FileSlice(str(source), 0, size))
        assert trio.current_time() - began < 30

    run(body, receive_buffer=16384, tries_max=1)


def test_a_store_that_asks_for_a_pause_gets_it() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"x"
        width = (await store.statistics())["window_read"]
        server.then(refuse(503, "SlowDown", {"Retry-After": "7"}))
        began = trio.current_time()
        await store.get("key")
        assert 7 <= trio.current_time() - began < 12
        counted = await store.statistics()
        assert counted["throttled"] == 1
        assert counted["window_read"] < width

    run(body)


def test_refusals_are_repeated_only_where_that_may_help() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(refuse(500, "InternalError"), refuse(503, "SlowDown"))
        with pytest.raises(NoSuchKeyError):
            await store.get("key")
        assert len(server.seen) == 3
        server.then(*[refuse(403, "AccessDenied")] * 2)
        with pytest.raises(AccessDeniedError):
            await store.get("key")
        assert len(server.seen) == 5, "and a list of the key, which is refused as well"
        server.then(refuse(400, "EntityTooLarge"))
        with pytest.raises(RejectedError):
            await store.put("key", b"", PLAIN)
        assert len(server.seen) == 6
        server.then(*[refuse(503, "SlowDown")] * 4)
        with pytest.raises(ThrottledError):
            await store.get("key")
        assert len(server.seen) == 10

    run(body, tries_max=4)


def test_kept_connections_are_used_again() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        for number in range(5):
            await store.put(f"{number}", b"", PLAIN)
            await store.put(f"{number}", b"data", HEADERS)
            await store.get(f"{number}")
            await store.head(f"{number}")
            with pytest.raises(NoSuchKeyError):
                await store.head("nothing")
            with pytest.raises(NoSuchKeyError):
                await store.get("nothing")
            await store.delete(f"{number}")
        assert server.connections == 1

    run(body)


def test_a_kept_connection_that_was_closed_costs_no_try() -> None:
    async def then_close(exchange: Exchange) -> None:
        await behave(exchange)
        await close(exchange)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(then_close)
        await store.put("key", b"x", PLAIN)
        await trio.sleep(1)
        await store.put("key", b"y", PLAIN)
        # The close may also cross the next request.
        server.then(close)
        await store.put("key", b"z", PLAIN)
        counted = await store.statistics()
        assert (counted["retries"], counted["requests_failed"]) == (0, 0)
        assert counted["connections_stale"] == 1
        assert server.objects["key"] == b"z"

    run(body, tries_max=1)


def test_an_answer_that_ends_with_the_connection_is_read_to_its_end() -> None:
    start = b'HTTP/1.1 200 OK\r\nETag: "abc"\r\n'

    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(
            raw(start + b"Connection: close\r\n\r\nuntil the end"),
            raw(
                start + b"Transfer-Encoding: chunked\r\n\r\n5\r\nchunk\r\n3;x=y\r\ned!\r\n0\r\n\r\n"
            ),
            raw(b"HTTP/1.1 100 Continue\r\n\r\n" + start + b"Content-Length: 2\r\n\r\nhi"),
        )
        for expected in (b"until the end", b"chunked!", b"hi"):
            assert (await store.get("key"))[1] == expected

    run(body, tries_max=1)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-6/9\r\nContent-Length: 2\r\n\r\nhi",
    ],
)
def test_an_answer_that_is_no_answer_is_the_servers_fault(nonsense: bytes) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"good"
        server.then(raw(nonsense))
        with pytest.raises((ServerFaultError, NotS3Error)):
            await store.get("key")

    run(body, tries_max=1)


def test_bytes_nobody_asked_for_end_a_connection() -> None:
    async def too_much(exchange: Exchange) -> None:
        head = exchange.start(200, 2, {"ETag": f'"{md5(b"hi")}"'})
        await exchange.stream.send_all(head + b"hi" + b"and more")

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"x"
        server.then(too_much)
        assert (await store.get("key"))[1] == b"hi"
        assert (await store.get("key"))[1] == b"x"
        assert server.connections == 2

    run(body)


def test_a_refusal_before_the_body_was_read_is_the_reason_that_counts(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(32 << 20))

    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(refuse_early(403, "AccessDenied"))
        with pytest.raises((AccessDeniedError, NetworkError)) as raised:
            await store.upload_part("key", "id", 1, FileSlice(str(source), 0, 32 << 20))
        assert isinstance(raised.value, AccessDeniedError)

    run(body, tries_max=1)


def test_bytes_that_are_not_what_their_digest_says_are_never_handed_out() -> None:
    async def damaged(exchange: Exchange) -> None:
        status, body, headers = exchange.read()
        await exchange.answer(status, body[:-1] + b"?", headers)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"content"
        server.then(damaged)
        assert (await store.get("key"))[1] == b"content"
        server.then(damaged, damaged, damaged)
        with pytest.raises(ChecksumError):
            await store.get("key")
        assert (await store.statistics())["checksum_errors"] == 4

    run(body)


@pytest.mark.parametrize("is_fetched", [False, True], ids=["get", "fetch"])
@pytest.mark.parametrize("etag", ["md5", "other"])
@pytest.mark.parametrize("damage", ["on the way", "none"])
def test_without_checksums_an_etag_proves_what_comes_whole(
    tmp_path: Path, damage: str, etag: str, is_fetched: bool
) -> None:
    """Always the same damage, at the end of each answer, is none of the store's whose ETags are no MD5s."""
    sink = tmp_path / "sink"
    sink.write_bytes(bytes(len(CONTENT)))
    progress: list[int] = []

    async def answer(exchange: Exchange) -> None:
        status, body, headers = exchange.read()
        if etag == "other":
            headers["ETag"] = f'"{md5(b"another")}"'
        if damage != "none":
            body = body[:-1] + bytes([body[-1] ^ 1])
        await exchange.answer(status, body, headers)

    async def read(store: S3Store) -> bytes:
        if not is_fetched:
            return (await store.get("key"))[1]
        place = FileSlice(str(sink), 0, len(CONTENT))
        whole = ByteRange(0, len(CONTENT))
        await store.fetch("key", whole, place, on_progress=progress.append)
        return sink.read_bytes()

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = CONTENT
        server.then(*[answer] * 5)
        if damage == "none":
            assert await read(store) == CONTENT
            assert progress == ([len(CONTENT)] if is_fetched else [])
            assert len(server.seen) == (1 if etag == "md5" else 5)
        else:
            with pytest.raises(ChecksumError):
                await read(store)
            assert progress == [], "nothing is told to have come that is not proven"

    run(body)


def test_a_store_that_keeps_other_bytes_than_were_sent_is_found_out() -> None:
    async def damages(exchange: Exchange) -> None:
        exchange.body = exchange.body[:-1] + b"?"
        await behave(exchange)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.echoes = False
        server.then(damages)
        await store.put("key", b"content", PLAIN)
        assert server.objects["key"] == b"content"
        assert "content-md5" not in server.seen[0].headers
        assert base64.b64decode(server.seen[1].headers["content-md5"]).hex() == md5(b"content")
        await store.put("key", b"content", PLAIN)
        assert "x-amz-checksum-crc64nvme" not in server.seen[2].headers

    run(body)


def test_a_store_that_does_not_take_checksums_gets_an_md5() -> None:
    async def picky(exchange: Exchange) -> None:
        await exchange.answer(
            400,
            b"<Error><Code>InvalidRequest</Code>"
            b"<Message>Unknown checksum algorithm</Message></Error>",
        )

    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(picky)
        await store.put("key", b"content", PLAIN)
        assert server.objects["key"] == b"content"
        assert "content-md5" in server.seen[1].headers

    run(body)


@pytest.mark.parametrize("fault", [close, reset, hang, refuse(500, "InternalError")])
def test_a_conditional_put_whose_answer_was_lost_is_recognised(fault: Behaviour) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        store.traits.if_absent = True
        server.then(stored_but(fault))
        result = await store.put("key", b"ours", HEADERS, condition=ABSENT)
        assert result.etag == md5(b"ours")
        assert [exchange.method for exchange in server.seen] == ["PUT", "PUT", "HEAD"]

    run(body)


def test_somebody_elses_object_is_not_taken_for_ours() -> None:
    async def theirs(exchange: Exchange) -> None:
        exchange.server.objects["key"] = b"theirs"
        await close(exchange)

    async def same_bytes(exchange: Exchange) -> None:
        exchange.server.objects["other"] = b"ours"  # but not our metadata
        await close(exchange)

    async def body(server: FaultServer, store: S3Store) -> None:
        store.traits.if_absent = True
        server.then(theirs)
        with pytest.raises(PreconditionFailedError):
            await store.put("key", b"ours", HEADERS, condition=ABSENT)
        server.then(same_bytes)
        with pytest.raises(PreconditionFailedError):
            await store.put("other", b"ours", HEADERS, condition=ABSENT)

    run(body)


def test_without_doubt_a_refusal_is_believed() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        store.traits.if_absent = True
        server.objects["key"] = b"ours"
        with pytest.raises(PreconditionFailedError):
            await store.put("key", b"ours", PLAIN, condition=ABSENT)
        assert [exchange.method for exchange in server.seen] == ["PUT"]

    run(body)


def test_a_full_disk_is_not_the_stores_fault() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"content"
        with pytest.raises(RejectedError) as raised:
            await store.fetch("key", ByteRange(0, 7), FileSlice("/dev/full", 0, 7))
        assert raised.value.code == "ENOSPC"
        assert len(server.seen) == 1

    run(body)


def test_a_cancelled_request_leaves_nothing_behind(tmp_path: Path) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = CONTENT
        server.then(halfway(hang), hang)
        for _ in range(2):
            with trio.move_on_after(1) as scope:
                await store.get("key")
            assert scope.cancelled_caught
        assert (await store.get("key"))[1] == CONTENT
        counted = await store.statistics()
        assert counted["requests_running"] == 0
        assert counted["overdue"] == 0

    run(body)


def test_no_more_requests_run_at_once_than_connections_are_allowed() -> None:
    async def slowly(exchange: Exchange) -> None:
        await trio.sleep(0.5)
        await behave(exchange)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"x"
        server.then(*[slowly] * 40)
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(store.head, "key")
        assert server.running_max == 4
        assert server.connections == 4

    run(body, connections_max=4)


def test_two_requests_in_a_hundred_that_hang_cost_seconds_and_no_data() -> None:
    count = 400
    chance = random.Random(2)

    async def sometimes_hang(exchange: Exchange) -> None:
        await (hang if chance.random() < 0.02 else behave)(exchange)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = sometimes_hang
        width = (await store.statistics())["window_write"]

        async def there_and_back(number: int) -> None:
            await store.put(f"{number}", b"%d" % number, HEADERS)
            assert (await store.get(f"{number}"))[1] == b"%d" % number

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(there_and_back, number)
        assert trio.current_time() - began < 60
        assert server.objects == {f"{n}": b"%d" % n for n in range(count)}
        counted = await store.statistics()
        again = counted["requests"] - 2 * count - counted["hedges"]
        assert counted["overdue"] == counted["retries"] == again
        assert counted["overdue"] + counted["hedges_won"] > 5
        assert counted["late_max_s"] < 5  # a quarter of a real second, on a busy machine
        assert counted["window_write"] >= width

    run(body)


def test_a_loaded_store_is_not_asked_everything_twice() -> None:
    chance = random.Random(3)

    async def heavily(exchange: Exchange) -> None:
        await trio.sleep(chance.uniform(1, 2))
        await behave(exchange)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.usually = heavily
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(store.put, f"{number}", b"x", PLAIN)
        counted = await store.statistics()
        assert (counted["requests"], counted["retries"]) == (200, 0)

    run(body)


def test_expired_credentials_are_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"x"
        await store.get("key")
        server.then(refuse(400, "ExpiredToken"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "fresh")
        await store.get("key")
        assert "Credential=key/" in server.seen[1].headers["authorization"]
        assert "Credential=fresh/" in server.seen[2].headers["authorization"]
        assert (await store.statistics())["credentials_refreshed"] == 1
        server.then(refuse(400, "ExpiredToken"))
        with pytest.raises(AccessDeniedError):
            await store.get("key")

    run(body)


def test_a_wrong_clock_is_corrected_by_the_stores() -> None:
    skewed = {"Date": "Sat, 21 Nov 2037 01:24:01 GMT"}

    async def refuse_skewed(exchange: Exchange) -> None:
        body = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
        lines = f"HTTP/1.1 403 X\r\nDate: {skewed['Date']}\r\nContent-Length: {len(body)}\r\n\r\n"
        await exchange.stream.send_all(lines.encode() + body)

    async def body(server: FaultServer, store: S3Store) -> None:
        server.objects["key"] = b"x"
        server.then(refuse_skewed)
        await store.get("key")
        assert server.seen[1].headers["x-amz-date"].startswith("20371121T01")
        server.then(refuse_skewed)
        with pytest.raises(AccessDeniedError) as raised:
            await store.get("key")
        assert "clock" in str(raised.value)

    run(body)


def test_bodies_are_signed_when_the_aws_configuration_wants_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configured = tmp_path / "config"
    configured.write_text("[default]\ns3 =\n    payload_signing_enabled = true\n")

    async def unsigned(server: FaultServer, store: S3Store) -> None:
        await store.put("key", b"content", PLAIN)
        assert server.seen[0].headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"

    async def signed(server: FaultServer, store: S3Store) -> None:
        await store.put("key", b"content", PLAIN)
        expected = hashlib.sha256(b"content").hexdigest()
        assert server.seen[0].headers["x-amz-content-sha256"] == expected

    run(unsigned)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(configured))
    run(signed)


def test_bytes_written_are_those_of_tries_that_did_not_fail() -> None:
    async def body(server: FaultServer, store: S3Store) -> None:
        server.then(refuse(500, "InternalError"), refuse(403, "AccessDenied"), hang)
        with pytest.raises(AccessDeniedError):
            await store.put("key", CONTENT, PLAIN)
        assert (await store.statistics())["bytes_written"] == 0
        with trio.move_on_after(1):
            await store.put("key", CONTENT, PLAIN)
        counted = await store.statistics()
        assert counted["bytes_written"] == 0
        assert counted["bytes_sent"] > 3 * len(CONTENT)
        await store.put("key", CONTENT, PLAIN)
        await store.head("key")
        assert len(CONTENT) < (await store.statistics())["bytes_written"] < len(CONTENT) + 2000

    run(body)

"""One connection, byte by byte, over a socket pair."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from s3mount.config import StoreConfig
from s3mount.errors import RejectedError, ServerFaultError
from s3mount.flow.timeouts import Timeouts
from s3mount.refs import FileSlice
from s3mount.s3.http.http_client import _Watch
from s3mount.s3.http.requests import Call
from s3mount.s3.http.statistics import Statistics
from s3mount.s3.http.traffic import Traffic
from s3mount.s3.http.wire import BrokenConnectionError, Connection

ANSWER = (
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\nETag: "a"\r\nX-Twice: 1\r\nx-twice: 2\r\n\r\nhello world'
)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"6\r\nhello \r\n5;ext=1\r\nworld\r\n0\r\nTrailer: x\r\n\r\n"
)


class Recorder:
    """A watch that remembers what it was told."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self.queue: list[int] = []
        self.events: list[str] = []

    def sent(self, n: int) -> None:
        self.sent_bytes += n

    def queued(self, n: int) -> None:
        self.queue.append(n)

    def sent_all(self) -> None:
        self.events.append("sent")

    def answer_began(self) -> None:
        self.events.append("answered")

    def received(self, n: int) -> None:
        self.received_bytes += n

    def paused(self, seconds: float) -> None:
        self.events.append("paused")


def pair() -> tuple[Connection, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return Connection(ours), theirs


async def read_all(connection: Connection) -> bytes:
    got = bytearray()
    head = await connection.read_head(Recorder())
    await connection.read_body(head, got.extend, Recorder())
    return bytes(got)


@given(answer=st.sampled_from([ANSWER, CHUNKED]), cuts=st.lists(st.integers(1, 150), max_size=8))
def test_an_answer_may_come_in_any_pieces(answer: bytes, cuts: list[int]) -> None:
    async def main() -> None:
        connection, peer = pair()
        watch = Recorder()
        got = bytearray()

        async def send() -> None:
            places = sorted({0, len(answer), *(cut % len(answer) for cut in cuts)})
            for start, stop in itertools.pairwise(places):
                peer.send(answer[start:stop])
                await trio.testing.wait_all_tasks_blocked()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            head = await connection.read_head(watch)
            length = await connection.read_body(head, got.extend, watch)
        assert (head.status, bytes(got), length) == (200, b"hello world", 11)
        assert watch.received_bytes == 11
        assert watch.events == ["answered"]
        assert connection.is_clean
        assert head.keep_alive
        assert head.has_end
        if answer is ANSWER:
            assert head.headers["etag"] == '"a"'
            assert head.headers["x-twice"] == "1, 2"
        assert not connection.is_stale()
        peer.close()
        assert connection.is_stale()
        connection.close()

    trio.run(main)


@pytest.mark.parametrize("cut", range(1, len(ANSWER), 7))
def test_an_answer_that_ends_early_is_broken_wherever_it_ends(cut: int) -> None:
    async def main() -> None:
        connection, peer = pair()
        peer.send(ANSWER[:cut])
        peer.close()
        with pytest.raises(BrokenConnectionError) as raised:
            await read_all(connection)
        assert raised.value.answered
        connection.close()

    trio.run(main)


def test_an_answer_without_an_end_of_its_own_is_not_kept() -> None:
    async def main() -> None:
        connection, peer = pair()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nto the end")
        peer.close()
        got = bytearray()
        head = await connection.read_head(Recorder())
        await connection.read_body(head, got.extend, Recorder())
        assert bytes(got) == b"to the end"
        assert not (head.keep_alive and head.has_end)
        connection.close()

    trio.run(main)


def test_two_lengths_in_one_answer_are_refused() -> None:
    async def main() -> None:
        connection, peer = pair()
        peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        with pytest.raises(ServerFaultError):
            await read_all(connection)
        peer.close()
        connection.close()

    trio.run(main)


def test_while_the_kernel_still_sends_the_watch_is_told(tmp_path: Path) -> None:
    size = 150_000  # fits into the socket's buffer at once, but counts as large
    source = tmp_path / "source"
    source.write_bytes(bytes(300_000))

    async def main() -> None:
        connection, peer = pair()
        watch = Recorder()

        async def read_slowly() -> None:
            left = len(b"HEAD") + 300_000
            while left:
                await trio.sleep(0.9)
                await trio.lowlevel.wait_readable(peer)
                left -= len(peer.recv(min(left, size // 3)))
            await trio.sleep(3)
            peer.send(ANSWER)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_slowly)
            with open(source, "rb") as file:
                body = FileSlice(str(source), 0, 300_000)
                await connection.send_file(b"HEAD", file.fileno(), body, watch)
            head = await connection.read_head(watch)
        assert head.status == 200
        assert watch.sent_bytes >= 300_000
        assert len(watch.queue) >= 3
        assert watch.queue[-1] == 0
        assert watch.events == ["sent", "answered"]
        peer.close()
        connection.close()

    trio.run(main, clock=trio.testing.MockClock(rate=20))


def test_a_file_that_shrank_is_not_sent(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(100))

    async def main() -> None:
        connection, peer = pair()
        body = FileSlice(str(source), 50, 51)
        with open(source, "rb") as file, pytest.raises(RejectedError):
            await connection.send_file(b"HEAD", file.fileno(), body, Recorder())
        peer.close()
        connection.close()

    trio.run(main)


def test_only_acknowledged_bytes_move_a_deadline() -> None:
    async def main() -> None:
        size = 8 << 20
        call = Call("upload_part", "PUT", "key", size_bytes=size)
        allowance = Timeouts().allowance(call.kind, size, 0)
        scope = trio.CancelScope(deadline=trio.current_time() + allowance.total_s)
        first = scope.deadline
        traffic = Traffic(StoreConfig(bucket="bucket"), Statistics(), lambda: None)
        watch = _Watch(scope, allowance, call, Statistics(), traffic, trio.current_time())
        watch.sent(size)
        watch.sent_all()
        await trio.sleep(allowance.total_s - 1)
        watch.queued(size)
        assert scope.deadline == first
        watch.queued(size // 2)
        assert scope.deadline == pytest.approx(trio.current_time() + allowance.answer_s)
        moved = scope.deadline
        await trio.sleep(2)
        watch.queued(size // 2)
        assert scope.deadline == moved

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_rest_that_a_rate_wants_moves_the_deadline_and_leaves_the_network_looked_at() -> None:
    async def main() -> None:
        size = 8 << 20
        call = Call("fetch", "GET", "key", size_bytes=size)
        allowance = Timeouts().allowance(call.kind, size, 0)
        scope = trio.CancelScope(deadline=trio.current_time() + allowance.total_s)
        first = scope.deadline
        looked: list[float] = []

        class Looked(Traffic):
            def look(self, now_s: float) -> None:
                looked.append(now_s)

        traffic = Looked(StoreConfig(bucket="bucket"), Statistics(), lambda: None)
        watch = _Watch(scope, allowance, call, Statistics(), traffic, trio.current_time())
        for _ in range(20):
            watch.received(64 << 10)
            watch.paused(1.0)
            await trio.sleep(1.0)
        assert scope.deadline >= first + 20
        assert len(looked) == 19

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

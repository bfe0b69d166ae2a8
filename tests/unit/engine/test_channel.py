"""Frames arrive whole and in order, however the stream is cut; nobody's memory grows without end."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from s3mount.engine import messages
from s3mount.engine.channel import (
    FRAME_BYTES_MAX,
    PENDING_BYTES_MAX,
    BrokenStreamError,
    Channel,
)
from s3mount.engine.messages import ToChild, ToParent
from s3mount.refs import ObjectInfo

INFO = ObjectInfo("k", 1, "e", 0)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_frames_arrive_whole_and_in_order_whatever_their_size(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    sizes = [0, 1, 255, 1 << 20, 5, 300_000, *range(500), (1 << 20) - 1, 3 << 20, 7]
    got: list[int] = []

    async def main() -> None:
        parent = Channel[ToParent](pair[0], messages.decoder_for_parent())
        child = Channel[ToChild](pair[1], messages.decoder_for_child())

        def handle(message: ToParent) -> None:
            assert isinstance(message, messages.Got)
            assert message.data == bytes([message.id % 256]) * sizes[message.id]
            got.append(message.id)
            if len(got) == len(sizes):
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.send_forever)
            nursery.start_soon(parent.receive_forever, handle)
            for number, size in enumerate(sizes):
                await child.room()
                child.post(messages.Got(number, INFO, bytes([number % 256]) * size))

    trio.run(main)
    assert got == list(range(len(sizes)))


def test_a_stream_may_be_cut_anywhere(pair: tuple[socket.socket, socket.socket]) -> None:
    frames = b"".join(
        struct.pack("<I", len(data)) + data
        for data in (messages.ENCODER.encode(messages.Done(n)) for n in range(40))
    )
    got: list[int] = []

    async def main() -> None:
        parent = Channel[ToParent](pair[0], messages.decoder_for_parent())

        def handle(message: ToParent) -> None:
            assert isinstance(message, messages.Done)
            got.append(message.id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent.receive_forever, handle)
            for at in range(len(frames)):
                pair[1].send(frames[at : at + 1])
                await trio.testing.wait_all_tasks_blocked()
            pair[1].close()

    trio.run(main)
    assert got == list(range(40))


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("<I", FRAME_BYTES_MAX + 1),
        struct.pack("<I", 3) + b"abc",
        struct.pack("<I", 0),
        struct.pack("<I", 2) + b"\x91\x63",
    ],
)
def test_what_is_no_message_ends_the_connection(
    pair: tuple[socket.socket, socket.socket], garbage: bytes
) -> None:
    async def main() -> None:
        parent = Channel[ToParent](pair[0], messages.decoder_for_parent())
        pair[1].send(garbage)
        with pytest.raises(BrokenStreamError):
            await parent.receive_forever(lambda message: None)

    trio.run(main)


def test_a_reader_that_does_not_read_holds_the_writers_up(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    posted = 0

    async def write(child: Channel[ToChild]) -> None:
        nonlocal posted
        while posted < 100:
            await child.room()
            child.post(messages.Got(posted, INFO, bytes(1 << 20)))
            posted += 1

    async def main() -> None:
        child = Channel[ToChild](pair[1], messages.decoder_for_child())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.send_forever)
            nursery.start_soon(write, child)
            await trio.testing.wait_all_tasks_blocked()
            assert posted <= 2 * (PENDING_BYTES_MAX >> 20) + 2
            assert child.is_full
            pair[0].close()  # now nobody will ever read: the writer is let go

    trio.run(main)
    assert posted == 100


def test_a_message_that_cannot_be_encoded_leaves_no_trace(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    got: list[ToParent] = []

    async def main() -> None:
        child = Channel[ToChild](pair[1], messages.decoder_for_child())
        parent = Channel[ToParent](pair[0], messages.decoder_for_parent())
        child.post(messages.Begun(1, "one"))
        with pytest.raises(UnicodeEncodeError):
            child.post(messages.Begun(2, "\udc80"))
        with pytest.raises(ValueError, match="too long"):
            child.post(messages.Got(2, INFO, bytes(FRAME_BYTES_MAX)))
        child.post(messages.Begun(3, "three"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.send_forever)
            nursery.start_soon(parent.receive_forever, got.append)
            await child.drain()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert got == [messages.Begun(1, "one"), messages.Begun(3, "three")]

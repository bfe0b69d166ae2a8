"""What a client says to the daemon that takes its files, and hears: docs/DAEMON.md.

One JSON value is one packet of a Unix socket (SOCK_SEQPACKET). The daemon speaks first, by ``Welcome``. Each file is a
``Hand``, whose packet carries the open file; its answers have its ``id`` and come in any order.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import TypeAlias

import msgspec
import trio

PROTOCOL = 1
PACKET_BYTES_MAX = 64 << 10
_FDS_MAX = 4


class Hand(msgspec.Struct, frozen=True, tag="hand"):
    """Take the file that comes with this packet for ``key`` of ``bucket``.

    ``wait``: ``Stored`` follows when S3 has it. ``by_reference``: it stays as it is where it is until then.
    ``is_stream``: it is read until it ends, and taken when ``Commit`` says that this was its end.
    """

    id: int
    bucket: str
    key: str
    wait: bool = True
    by_reference: bool = False
    is_stream: bool = False


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """The stream ended as it was to."""

    id: int


Request: TypeAlias = Hand | Commit


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """The first packet: the version of the protocol, and of the daemon."""

    protocol: int
    release: str


class Read(msgspec.Struct, frozen=True, tag="read"):
    """The stream has ended after so many bytes; nothing is taken before ``Commit``."""

    id: int
    size_bytes: int


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """The file survives any end of the daemon, and will be sent. Where S3 is not waited for, a power cut too."""

    id: int
    size_bytes: int


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """S3 has the file, or a later one of the same key."""

    id: int
    size_bytes: int
    etag: str
    version_id: str | None = None


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """It could not be done, for a reason in one line. ``is_kept``: it was taken, stays, and is tried again."""

    id: int
    message: str
    exit_code: int = 1
    is_kept: bool = False


Answer: TypeAlias = Welcome | Read | Taken | Stored | Refused

_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def decode_request(packet: bytes) -> Request:
    """The request in a packet. Raises msgspec.MsgspecError for anything else."""
    return _requests.decode(packet)


def decode_answer(packet: bytes) -> Answer:
    """The answer in a packet. Raises msgspec.MsgspecError for anything else."""
    return _answers.decode(packet)


async def send(
    connection: trio.socket.SocketType, message: Request | Answer, fd: int | None = None
) -> None:
    """Send one packet, with an open file if given. Raises OSError."""
    ancillary = []
    if fd is not None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    await connection.sendmsg([msgspec.json.encode(message)], ancillary)


async def receive(connection: trio.socket.SocketType) -> tuple[bytes, list[int]]:
    """The next packet and the files in it, which are the caller's to close; empty at the end. Raises OSError."""
    room = socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
    packet, ancillary, _, _ = await connection.recvmsg(
        PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return packet, list(fds)


def close_all(fds: list[int]) -> None:
    """Close each."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)

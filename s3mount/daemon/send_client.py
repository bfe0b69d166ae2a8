"""A program's side of the daemon's socket: hands files over, many at once, and hears what became of each."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from s3mount.daemon import handover, registry
from s3mount.daemon.handover import Answer, Commit, Hand, Read, Refused, Stored, Taken, Welcome
from s3mount.errors import MountError, S3MountError
from s3mount.tasks import first_error

SOCKET_NAME = "daemon.sock"
WELCOME_TIMEOUT_S = 60.0
"""A daemon that is only being started, by its socket, takes over first what it had."""


class HandRefusedError(S3MountError):
    """The daemon's answer, in its own words."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def default_socket() -> Path:
    """Where this user's daemon listens, or root's. May not be there."""
    places = [
        folder / SOCKET_NAME
        for uid in dict.fromkeys((os.geteuid(), 0))
        for folder in registry.run_dirs(uid)
    ]
    return next((each for each in places if each.exists()), places[0])


class SendClient:
    """One connection."""

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._waiting: dict[int, trio.MemorySendChannel[Answer]] = {}
        self._sending = trio.Lock()
        self._why_ended = ""

    async def hand(
        self, fd: int, bucket: str, key: str, *, wait: bool, by_reference: bool = False
    ) -> Stored | Taken:
        """Hand an open file over: ``Stored`` when S3 has it, or without ``wait`` ``Taken``.

        Raises HandRefusedError, and MountError when the daemon is gone. Cancelled, it may be sent all the same.
        """
        request = Hand(next(self._ids), bucket, key, wait, by_reference)
        return await self._outcome(request, fd)

    async def hand_stream(self, fd: int, bucket: str, key: str, *, wait: bool) -> Stored | Taken:
        """Hand over what a pipe gives until it ends. Raises as ``hand``."""
        request = Hand(next(self._ids), bucket, key, wait, is_stream=True)
        return await self._outcome(request, fd)

    async def _outcome(self, request: Hand, fd: int) -> Stored | Taken:
        send, receive = trio.open_memory_channel[Answer](4)
        self._waiting[request.id] = send
        try:
            await self._send(request, fd)
            async for answer in receive:
                if isinstance(answer, Refused):
                    kept = "; it is kept, and tried again" if answer.is_kept else ""
                    raise HandRefusedError(f"{answer.message}{kept}", answer.exit_code)
                if isinstance(answer, Read):
                    await self._send(Commit(request.id), None)
                elif isinstance(answer, Stored) or (isinstance(answer, Taken) and not request.wait):
                    return answer
        finally:
            self._waiting.pop(request.id, None)
        raise MountError(self._why_ended)

    async def _send(self, request: handover.Request, fd: int | None) -> None:
        if self._why_ended:
            raise MountError(self._why_ended)
        try:
            async with self._sending:
                await handover.send(self._connection, request, fd)
        except OSError as error:
            raise MountError(f"the daemon hung up: {error.strerror}") from None

    async def listen(self) -> None:
        """Take answers until the daemon hangs up."""
        with contextlib.suppress(OSError):
            try:
                await self._hear()
            except msgspec.MsgspecError as error:
                self._why_ended = f"the daemon cannot be understood: {error}"
        self._why_ended = self._why_ended or (
            "the daemon ended; what it had taken, it sends once it runs again"
        )
        for waiting in list(self._waiting.values()):
            waiting.close()

    async def _hear(self) -> None:
        while True:
            packet, fds = await handover.receive(self._connection)
            handover.close_all(fds)
            if not packet:
                return
            answer = handover.decode_answer(packet)
            waiting = None if isinstance(answer, Welcome) else self._waiting.get(answer.id)
            if waiting is not None:
                await waiting.send(answer)


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[SendClient]:
    """A client of the daemon that listens at ``path``. Raises MountError where there is none."""
    connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with connection:
        await _greet(connection, path)
        client = SendClient(connection)
        with first_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.listen)
                yield client
                nursery.cancel_scope.cancel()


async def _greet(connection: trio.socket.SocketType, path: Path) -> None:
    try:
        with trio.fail_after(WELCOME_TIMEOUT_S):
            with registry.short_path(path) as address:
                await connection.connect(address)
            packet, _ = await handover.receive(connection)
        welcome = handover.decode_answer(packet)
    except OSError as error:
        raise MountError(
            f"no daemon listens at {path} ({error.strerror}); s3mount daemon starts one"
        ) from None
    except trio.TooSlowError:
        raise MountError(f"the daemon at {path} does not answer") from None
    except msgspec.MsgspecError:
        welcome = None
    if not isinstance(welcome, Welcome) or welcome.protocol != handover.PROTOCOL:
        raise MountError(
            f"the daemon at {path} speaks another protocol: start it anew after an update of s3mount"
        )

"""Takes files over the daemon's Unix socket: as descriptors, so that nobody has sent what he could not read."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeAlias

import msgspec
import trio

from s3mount.background import Background, reason_of
from s3mount.bulk.location import parse_s3
from s3mount.daemon import handover
from s3mount.daemon.accepting import serve_each
from s3mount.daemon.handover import Hand, Read, Refused, Stored, Taken, Welcome
from s3mount.daemon.outbox import NotSentError, Outbox, path_of_open
from s3mount.errors import InternalError, S3MountError, SourceError, UsageError
from s3mount.spool.journal.changes import Put
from s3mount.spool.submission import Submissions
from s3mount.version import __version__

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 64
HANDS_MAX = 256
"""So many files of one connection are taken or waited for at once; then no more is read from it."""
ANSWER_TIMEOUT_S = 30.0

OpenOutbox: TypeAlias = Callable[[str], Awaitable[Outbox]]
"""The outbox of a bucket, opened where it is not. Raises S3MountError."""


class _HungUpError(Exception):
    """The client is gone, or does not listen."""


class Peer(NamedTuple):
    """Who is at the other end."""

    pid: int
    uid: int
    gid: int


class Intake:
    """Serves the clients of one listening socket until cancelled."""

    def __init__(self, outbox_of: OpenOutbox) -> None:
        self._outbox_of = outbox_of
        self._slots = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def run(self, listener: trio.socket.SocketType) -> None:
        """Take connections for ever."""
        await serve_each(listener, self._serve, self._slots)

    async def _serve(self, connection: trio.socket.SocketType) -> None:
        with contextlib.suppress(_HungUpError):
            await Conversation(connection, self._outbox_of).run()


class Conversation:
    """One client. What it hung up on is not taken, what was taken is sent all the same."""

    def __init__(self, connection: trio.socket.SocketType, outbox_of: OpenOutbox) -> None:
        self._connection = connection
        self._outbox_of = outbox_of
        self._peer = peer_of(connection)
        self._streams: dict[int, trio.Event] = {}
        self._sending = trio.Lock()
        self._hands = trio.CapacityLimiter(HANDS_MAX)

    async def run(self) -> None:
        """Until the client hangs up, or says what means nothing."""
        await self._answer(Welcome(handover.PROTOCOL, __version__))
        async with trio.open_nursery() as nursery:
            background = Background(nursery)
            while True:
                await self._hands.acquire_on_behalf_of(token := object())
                request, fds = await self._next()
                if isinstance(request, Hand):
                    background.start(self._take, request, fds, token)
                    continue
                handover.close_all(fds)
                if request is None:
                    nursery.cancel_scope.cancel()
                    return
                self._hands.release_on_behalf_of(token)
                if request.id in self._streams:
                    self._streams[request.id].set()

    async def _next(self) -> tuple[handover.Request | None, list[int]]:
        """The next request and the files that come with it; ``None`` at the end."""
        try:
            packet, fds = await handover.receive(self._connection)
        except OSError:
            return None, []
        if not packet:
            return None, fds
        try:
            return handover.decode_request(packet), fds
        except msgspec.MsgspecError as error:
            with contextlib.suppress(_HungUpError):
                await self._answer(Refused(0, f"the daemon does not know this request: {error}"))
            return None, fds

    async def _take(self, hand: Hand, fds: list[int], token: object) -> None:
        try:
            with _closing(fds):
                await self._answer(await self._outcome(hand, fds))
        except _HungUpError:
            log.debug("the client of %r hung up", hand.key)
        finally:
            self._hands.release_on_behalf_of(token)

    async def _outcome(self, hand: Hand, fds: list[int]) -> Taken | Stored | Refused:
        try:
            if len(fds) != 1:
                raise UsageError(
                    "no open file came with the request (too many open files in the daemon?)"
                )
            return await self._done(hand, fds)
        except NotSentError as error:
            return Refused(hand.id, str(error), error.exit_code, error.is_kept)
        except S3MountError as error:
            return Refused(hand.id, str(error), error.exit_code)
        except _HungUpError:
            raise
        except Exception as error:
            log.exception("internal error: %r was not taken", hand.key)
            return Refused(hand.id, str(InternalError(f"internal error: {reason_of(error)}")))

    async def _done(self, hand: Hand, fds: list[int]) -> Taken | Stored:
        """Do what is asked. Raises S3MountError."""
        to = parse_s3(f"s3://{hand.bucket}/{hand.key}", raw=True)
        if to.is_folder:
            raise UsageError(f"{to.url} names no key")
        outbox = await self._outbox_of(to.bucket)
        take = self._way(hand, to.key, fds[0])
        if not hand.wait:
            change = await outbox.take(to.key, take)
            return Taken(hand.id, change.size)

        size_bytes = 0

        async def taken(change: Put) -> None:
            nonlocal size_bytes
            size_bytes = change.size
            # It may be long until S3 has it.
            handover.close_all(fds)
            fds.clear()
            await self._answer(Taken(hand.id, size_bytes))

        result = await outbox.deliver(to.key, take, taken=taken)
        return Stored(hand.id, size_bytes, result.etag, result.version_id)

    def _way(self, hand: Hand, key: str, fd: int) -> Callable[[Submissions], Awaitable[Put]]:
        """How the file is taken: by reference too where that costs nothing, as its sender waits."""
        if hand.is_stream:
            owner = (self._peer.uid, self._peer.gid)
            confirm = partial(self._confirm, hand.id)
            return lambda submissions: submissions.stream(key, fd, owner, confirm)
        # Another user could put a file there that is not theirs to read.
        path = path_of_open(fd) if self._peer.uid == os.geteuid() else ""
        if hand.by_reference and not path:
            raise SourceError(
                "the daemon cannot open it by its name, as --by-reference needs; without, it is copied"
            )
        if path and (hand.by_reference or hand.wait):
            return lambda submissions: submissions.refer(key, fd, path)
        return lambda submissions: submissions.copy(key, fd, is_forced=not hand.wait)

    async def _confirm(self, hand_id: int, size_bytes: int) -> None:
        """Ask the client whether the stream's end was meant: it goes down with a program that was killed."""
        self._streams[hand_id] = trio.Event()
        try:
            await self._answer(Read(hand_id, size_bytes))
            await self._streams[hand_id].wait()
        finally:
            del self._streams[hand_id]

    async def _answer(self, answer: handover.Answer) -> None:
        try:
            async with self._sending:
                with trio.fail_after(ANSWER_TIMEOUT_S):
                    await handover.send(self._connection, answer)
        except (OSError, trio.TooSlowError):
            raise _HungUpError from None


@contextlib.contextmanager
def _closing(fds: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        handover.close_all(fds)


def peer_of(connection: trio.socket.SocketType) -> Peer:
    """Who connected, as the kernel tells."""
    size = struct.calcsize("3i")
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return Peer(*struct.unpack("3i", told))

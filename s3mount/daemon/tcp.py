"""The protocol of s3daemon: ``FILENAME ALIAS/BUCKET/KEY`` over TCP, one request a connection.

A request ends with a newline, or where its sender closes its half of the connection. The answer is ``Success``, or the
error in one line, and the end.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import trio

from s3mount.bulk.location import parse_s3
from s3mount.config import TcpConfig
from s3mount.daemon import peers
from s3mount.daemon.accepting import serve_each
from s3mount.daemon.intake import OpenOutbox
from s3mount.daemon.outbox import path_of_open
from s3mount.daemon.rights import Rights
from s3mount.errors import MountError, S3MountError, UsageError, reason
from s3mount.refs import Key
from s3mount.spool.journal.changes import Put
from s3mount.spool.submission import Submissions

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
"""So long a client may take to say what it wants; nobody waits behind it."""
ANSWER_TIMEOUT_S = 30.0
LINGER_S = 2.0
REQUEST_BYTES_MAX = 16 << 10
CONNECTIONS_MAX = 1000
BACKLOG = 128
SUCCESS = b"Success"
FORM = "the request must be FILENAME ALIAS/BUCKET/KEY"


class Asked(NamedTuple):
    """One request."""

    path: str
    bucket: str
    key: Key


def parse(line: bytes) -> Asked:
    """What a request asks for. The destination is the last word: names of files may hold blanks.

    Raises ValueError for anything else.

    >>> parse(b"/data/my file alias/bucket/a/key")
    Asked(path='/data/my file', bucket='bucket', key='a/key')
    >>> parse(b"it /bucket/key")
    Asked(path='it', bucket='bucket', key='key')
    """
    path, blank, destination = line.strip().rpartition(b" ")
    path = path.rstrip()
    parts = destination.split(b"/", 2)
    if b"\0" in line or not (blank and path) or len(parts) != 3:
        raise ValueError(FORM)
    try:
        to = parse_s3(f"s3://{parts[1].decode()}/{parts[2].decode()}", raw=True)
    except (S3MountError, UnicodeDecodeError) as error:
        raise ValueError(f"{FORM}: {error}") from None
    if to.is_folder:
        raise ValueError(f"{FORM}: a key does not end with a slash")
    return Asked(os.fsdecode(path), to.bucket, to.key)


class TcpServer:
    """Serves s3daemon's clients until cancelled. ``requests`` gets a line for each."""

    def __init__(self, config: TcpConfig, outbox_of: OpenOutbox, requests: logging.Logger) -> None:
        self._config = config
        self._outbox_of = outbox_of
        self._requests = requests
        self._rights = Rights(config.roots)
        self._working = trio.CapacityLimiter(config.clients_max)
        self._connections = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def run(self, listeners: list[socket.socket]) -> None:
        """Take connections for ever."""
        self._requests.info("Starting server")
        try:
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    listener.setblocking(False)
                    plain = trio.socket.from_stdlib_socket(listener)
                    nursery.start_soon(serve_each, plain, self._serve, self._connections)
        finally:
            self._rights.close()

    async def _serve(self, connection: trio.socket.SocketType) -> None:
        with contextlib.suppress(OSError, trio.TooSlowError):
            answer = await self._answer(connection)
            with trio.fail_after(ANSWER_TIMEOUT_S):
                await trio.SocketStream(connection).send_all(answer)
            connection.shutdown(socket.SHUT_WR)
            # Closed with something unread, the connection would be reset, and the answer lost.
            with trio.move_on_after(LINGER_S):
                while await connection.recv(REQUEST_BYTES_MAX):
                    pass

    async def _answer(self, connection: trio.socket.SocketType) -> bytes:
        # At once: of a connection that was closed it is not known whose it was.
        uid = await trio.to_thread.run_sync(_uid_of, connection)
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                line = await _read_request(connection)
        except trio.TooSlowError:
            return f"TimeoutError('no request within {REQUEST_TIMEOUT_S:g} s')".encode()
        if not line.strip():
            return b"Empty request"
        async with self._working:
            return await self._perform(line, uid)

    async def _perform(self, line: bytes, uid: int | None) -> bytes:
        began_s = time.time()
        shown = repr(line[:200].decode(errors="replace"))
        try:
            asked = parse(line)
            shown = asked.key
            await self._send(asked, uid)
        except (OSError, ValueError) as error:
            if isinstance(error, PermissionError):
                who = "somebody unknown" if uid is None else f"user {uid}"
                log.warning("refused: %s may not read what was named for %s", who, shown)
            return self._failed(began_s, shown, repr(error))
        except S3MountError as error:
            return self._failed(began_s, shown, reason(error))
        self._requests.info("%f %f sec - %s", began_s, time.time() - began_s, shown)
        return SUCCESS

    def _failed(self, began_s: float, shown: str, why: str) -> bytes:
        why = " ".join(why.split())
        self._requests.error("%f %f sec - %s: %s", began_s, time.time() - began_s, shown, why)
        return why.encode(errors="replace")

    async def _send(self, asked: Asked, uid: int | None) -> None:
        """Return when S3 has it. Raises OSError where it may not be read, and S3MountError."""
        fd = await trio.to_thread.run_sync(self._rights.open_as, asked.path, uid)
        try:
            outbox = await self._outbox_of(asked.bucket)
            # What is another user's may be put in its place: it is copied.
            path = path_of_open(fd) if uid == os.geteuid() else ""

            async def take(submissions: Submissions) -> Put:
                if path:
                    return await submissions.refer(asked.key, fd, path)
                return await submissions.copy(asked.key, fd, is_forced=False)

            # Who was told of the error tries again: it is not sent behind his back.
            await outbox.deliver(asked.key, take, tries_max=1, is_kept=False)
        finally:
            os.close(fd)


def _uid_of(connection: trio.socket.SocketType) -> int | None:
    with socket.socket(fileno=os.dup(connection.fileno())) as plain:
        try:
            return peers.uid_of_peer(plain)
        except OSError as error:
            log.warning("whose a connection is cannot be told: %s", error)
            return None


async def _read_request(connection: trio.socket.SocketType) -> bytes:
    """The first line, or all up to the half-close. Raises ValueError when it is too long, OSError."""
    received = bytearray()
    while b"\n" not in received and len(received) <= REQUEST_BYTES_MAX:
        chunk = await connection.recv(REQUEST_BYTES_MAX)
        if not chunk:
            break
        received += chunk
    return bytes(received.partition(b"\n")[0])[: REQUEST_BYTES_MAX + 1]


@contextlib.contextmanager
def bound(config: TcpConfig, passed: list[socket.socket]) -> Iterator[list[socket.socket]]:
    """The listening sockets, ``passed`` ones where there are any. Raises UsageError, MountError."""
    with contextlib.ExitStack() as stack:
        if passed:
            yield [stack.enter_context(each) for each in passed]
            return
        where = f"{config.host}:{config.port}"
        try:
            found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UsageError(f"--tcp {where}: {error.strerror}") from None
        listeners = []
        why = "it has no address here"
        for family, _, _, _, address in found:
            if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
                raise UsageError(
                    f"--tcp {where}: only addresses of this machine itself, as localhost"
                )
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            try:
                _listen(listener, family, address)
            except OSError as error:
                why = error.strerror or str(error)
                continue
            listeners.append(listener)
        if not listeners:
            raise MountError(f"cannot listen at {where}: {why}")
        yield listeners


def _listen(listener: socket.socket, family: int, address: object) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(address)  # type: ignore[arg-type]
    listener.listen(BACKLOG)


def requests_log(path: str) -> logging.Logger:
    """What is said of each request, as s3daemon said it: to ``path``, or to stderr. Raises MountError."""
    logger = logging.getLogger(f"{__name__}.requests")
    try:
        handler: logging.Handler = (
            logging.FileHandler(path, encoding="utf-8")
            if path
            else logging.StreamHandler(sys.stderr)
        )
    except OSError as error:
        raise MountError(f"{path} cannot be written: {error.strerror}") from None
    # Programs read these lines by this name.
    handler.setFormatter(logging.Formatter("{levelname} {asctime} __main__ - {message}", style="{"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return logger

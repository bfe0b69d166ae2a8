"""A relay in front of an S3 server: counts the requests that pass and can make them go wrong.

It speaks plain HTTP/1.1 with keep-alive, one request at a time on a connection, as S3 clients do.
The client signs the relay's address as its Host header and the relay hands the header on
untouched, so signatures stay valid. Threads: one that accepts, two for each connection; connections
above the bound wait in the listen queue.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn, Self
from urllib.parse import unquote, urlsplit

from tests.servers.lies import Lie

CHUNK_BYTES = 1 << 16
HEAD_BYTES_MAX = 1 << 16
INSIDE_BYTES = 1000
CONNECT_TIMEOUT_S = 5.0
HOLD_POLL_S = 0.05


class Fault(enum.Enum):
    """What may be done to a request instead of handing it on."""

    HANG = "read it, hand nothing on, never answer"
    HANG_AFTER = "hand it on, swallow the answer, never answer"
    HANG_INSIDE = "hand it on, answer with the first 1,000 bytes only, then nothing more"
    RESET = "close the connection with a reset before the request is handed on"


class Answer(NamedTuple):
    """An error answer given by the relay itself, in S3's form."""

    status: int
    code: str


class Request(NamedTuple):
    """One request as it passed: ``path`` is decoded, ``at_s`` is the monotonic clock, ``access_key`` signed it.

    ``asked`` is the range of bytes that it names (start, length), (0, 0) without one.
    """

    method: str
    path: str
    query: str
    length: int
    at_s: float
    access_key: str = ""
    asked: tuple[int, int] = (0, 0)


WRITING = ("PUT", "POST", "DELETE")
"""The methods that change a bucket."""

Decision = enum.Enum | Answer | Lie | None
"""A member of ``Fault``, or of what a relay of another kind knows, or an answer; ``None``: nothing."""
Decide = Callable[[Request], Decision]


class ConnectionEndedError(Exception):
    """One side closed the connection, or sent what is not HTTP."""


class Relay:
    """A listener on 127.0.0.1 that hands connections on to one upstream server.

    ``decide`` is called for every request, from many threads, and says what befalls it;
    ``None`` lets it pass. Use as a context manager, or ``start`` and ``close``.
    """

    def __init__(self, upstream_url: str, *, connections_max: int = 256) -> None:
        parts = urlsplit(upstream_url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{upstream_url}: the relay speaks plain HTTP only")
        self._upstream = (parts.hostname, parts.port or 80)
        self.decide: Decide = lambda request: None
        self._slots = threading.BoundedSemaphore(connections_max)
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._faulted: list[Request] = []
        self._connections: set[Connection] = set()
        self._open_gate = threading.Event()
        self._open_gate.set()
        self._held_methods: tuple[str, ...] = ()
        self._listener: socket.socket | None = None
        self._port = 0
        self._closed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address that clients use; it stays the same over ``stop`` and ``start``."""
        return f"http://127.0.0.1:{self._port}"

    def start(self, listener: socket.socket | None = None) -> None:
        """Accept connections, from ``listener`` or on the same port again after ``stop``."""
        if listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            listener.listen(128)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and cut all that are open: the server is down."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.cut()

    def close(self) -> None:
        """Stop for good; held requests end with their connections."""
        self._closed = True
        self.stop()
        self._open_gate.set()

    def hold(self, *methods: str) -> None:
        """Let requests come in, and hand none of them (with these methods) on until ``release``."""
        self._held_methods = methods
        self._open_gate.clear()

    def release(self) -> None:
        """Hand on what was held, and everything from now on."""
        self._open_gate.set()

    @contextlib.contextmanager
    def holding(self, *methods: str) -> Iterator[None]:
        """``hold`` for the time of a with block."""
        self.hold(*methods)
        try:
            yield
        finally:
            self.release()

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self._requests.clear()
            self._faulted.clear()

    def requests(self, method: str | None = None, *, path_part: str = "") -> list[Request]:
        """The requests that came since ``forget``, in order, faulted ones included."""
        with self._lock:
            seen = list(self._requests)
        return [
            request
            for request in seen
            if (method is None or request.method == method) and path_part in request.path
        ]

    def faulted(self) -> list[Request]:
        """The requests that met a fault or an error answer since ``forget``."""
        with self._lock:
            return list(self._faulted)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            self._slots.acquire()
            try:
                client, _ = listener.accept()
            except OSError:
                self._slots.release()
                return
            connection = self._connection(client)
            with self._lock:
                self._connections.add(connection)
            if self._listener is not listener:
                connection.cut()
            threading.Thread(target=connection.serve, daemon=True).start()

    def _connection(self, client: socket.socket) -> Connection:
        return Connection(self, client)

    def _left(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)
        self._slots.release()

    def _passing(self, request: Request) -> Decision:
        decision = self.decide(request)
        with self._lock:
            self._requests.append(request)
            if decision is not None:
                self._faulted.append(request)
        return decision

    def _wait_for_gate(self, connection: Connection, request: Request) -> None:
        if self._held_methods and request.method not in self._held_methods:
            return
        while not self._open_gate.wait(HOLD_POLL_S):
            if connection.ended:
                raise ConnectionEndedError
        if connection.ended:
            raise ConnectionEndedError


class Connection:
    """One client connection and its own connection to the upstream server."""

    def __init__(self, relay: Relay, client: socket.socket) -> None:
        self._relay = relay
        self._client = client
        self._server: socket.socket | None = None
        self._swallow = False
        self._answer_bytes_left: int | None = None
        self._buffer = b""
        self.ended = False

    def cut(self) -> None:
        """End both sides at once; the threads notice by themselves."""
        self.ended = True
        for end in (self._client, self._server):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        """Hand requests on until either side ends."""
        try:
            self._server = socket.create_connection(
                self._relay._upstream, timeout=CONNECT_TIMEOUT_S
            )
            self._server.settimeout(None)
            for end in (self._client, self._server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = threading.Thread(target=self._relay_answers, daemon=True)
            answers.start()
            while True:
                self._relay_request(self._server)
        except (ConnectionEndedError, OSError):
            self.cut()
        finally:
            self._client.close()
            if self._server is not None:
                self._server.close()
            self._relay._left(self)

    def _relay_request(self, server: socket.socket) -> None:
        head = self._read_head()
        request, length, chunked, expects_continue = parse_head(head)
        decision = self._relay._passing(request)
        if decision is Fault.RESET:
            self._reset()
        if isinstance(decision, Answer):
            self._client.sendall(error_answer(decision, request))
            if expects_continue:
                raise ConnectionEndedError
            for _ in self._body_pieces(length, chunked):
                continue
            return
        if decision is Fault.HANG:
            self._hang()
        self._swallow = decision is Fault.HANG_AFTER
        self._answer_bytes_left = INSIDE_BYTES if decision is Fault.HANG_INSIDE else None
        self._relay._wait_for_gate(self, request)
        server.sendall(head)
        for piece in self._body_pieces(length, chunked):
            server.sendall(piece)
        if decision is not None:
            self._hang()

    def _reset(self) -> NoReturn:
        """End the connection so that the client sees a reset."""
        linger_none = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
        raise ConnectionEndedError

    def _hang(self) -> NoReturn:
        """Take whatever the client still sends, until it gives up."""
        while self._client.recv(CHUNK_BYTES):
            continue
        raise ConnectionEndedError

    def _relay_answers(self) -> None:
        server = self._server
        assert server is not None
        try:
            while data := server.recv(CHUNK_BYTES):
                if self._swallow:
                    continue
                if self._answer_bytes_left is not None:
                    data = data[: self._answer_bytes_left]
                    self._answer_bytes_left -= len(data)
                self._client.sendall(data)
        except OSError:
            self.ended = True
        finally:
            if not self._swallow and self._answer_bytes_left is None:
                self.cut()

    def _receive(self) -> bytes:
        data = self._client.recv(CHUNK_BYTES)
        if not data:
            raise ConnectionEndedError
        return data

    def _read_head(self) -> bytes:
        while b"\r\n\r\n" not in self._buffer:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise ConnectionEndedError
            self._buffer += self._receive()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def _body_pieces(self, length: int, chunked: bool) -> Iterator[bytes]:
        if not chunked:
            yield from self._exactly(length)
            return
        while True:
            line = self._read_line()
            yield line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            yield from self._exactly(size + 2)
        while (line := self._read_line()) != b"\r\n":
            yield line
        yield line

    def _exactly(self, length: int) -> Iterator[bytes]:
        while length > 0:
            if not self._buffer:
                self._buffer = self._receive()
            piece, self._buffer = self._buffer[:length], self._buffer[length:]
            length -= len(piece)
            yield piece

    def _read_line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if len(self._buffer) > HEAD_BYTES_MAX:
                raise ConnectionEndedError
            self._buffer += self._receive()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line + b"\r\n"


def parse_head(head: bytes) -> tuple[Request, int, bool, bool]:
    """The request, the length of its body, whether that is chunked, whether 100 Continue is awaited."""
    try:
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
    except ValueError:
        raise ConnectionEndedError from None
    length, chunked, expects_continue, access_key = 0, False, False, ""
    asked = (0, 0)
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
        elif name.lower() == "transfer-encoding":
            chunked = "chunked" in value.lower()
        elif name.lower() == "expect":
            expects_continue = True
        elif name.lower() == "authorization":
            access_key = value.partition("Credential=")[2].partition("/")[0]
        elif name.lower() == "range":
            start, _, last = value.strip().removeprefix("bytes=").partition("-")
            asked = (int(start), int(last) + 1 - int(start))
    path, _, query = target.partition("?")
    request = Request(method, unquote(path), query, length, time.monotonic(), access_key, asked)
    return request, length, chunked, expects_continue


def error_answer(answer: Answer, request: Request) -> bytes:
    """The bytes of ``answer``."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{answer.code}</Code>'
        f"<Message>the relay answers {answer.status}</Message><RequestId>relay</RequestId></Error>"
    ).encode()
    shown = b"" if request.method == "HEAD" else body
    head = (
        f"HTTP/1.1 {answer.status} {answer.code}\r\nContent-Type: application/xml\r\n"
        f"x-amz-request-id: relay\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + shown

"""A relay that does to requests and answers what networks and servers do on bad days.

Where ``counting.Relay`` passes bytes on as they come, this one takes each request and each answer
whole, so that it can cut, spoil, delay, lose or repeat them at a chosen place.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.servers.counting import (
    CONNECT_TIMEOUT_S,
    Answer,
    Connection,
    ConnectionEndedError,
    Decision,
    Relay,
    Request,
    error_answer,
    parse_head,
)
from tests.servers.lies import Lie

TRICKLE_BYTES = 32 << 10
TRICKLE_S = 0.03
"""So many bytes in so long: 1 MiB/s."""


class Fate(enum.Enum):
    """What may befall a request or its answer on the way."""

    RESET_SENDING = "half of the request's body is taken, then the connection is reset"
    STALL_SENDING = "half of the request's body is taken, then nothing more"
    SPOIL_SENDING = "one bit of the request's body flips on its way"
    LOSE_ANSWER = "the server does it; the connection is reset instead of an answer"
    SWALLOW_ANSWER = "the server does it; the answer never comes"
    TWICE = "the server gets the request twice; the second answer comes back"
    RESET_RECEIVING = "half of the answer's body comes, then a reset"
    CUT = "half of the answer's body comes, then the end"
    SHORTEN = "half of the answer's body comes, under a head that announces just that"
    STALL_RECEIVING = "half of the answer's body comes, then nothing more"
    SPOIL_RECEIVING = "one bit of the answer's body flips on its way"
    TRICKLE = "the body comes slowly, in both directions"


SENDING = frozenset((Fate.RESET_SENDING, Fate.STALL_SENDING, Fate.SPOIL_SENDING))
"""Only for requests that have a body."""
RECEIVING = frozenset(
    (
        Fate.RESET_RECEIVING,
        Fate.CUT,
        Fate.SHORTEN,
        Fate.STALL_RECEIVING,
        Fate.SPOIL_RECEIVING,
    )
)
"""Only for answers that have a body."""


class Reply(NamedTuple):
    """An answer of the server, taken whole: ``head`` without its Content-Length."""

    head: bytes
    body: bytes
    length: int
    closes: bool

    def bytes_of(self, body: bytes, length: int) -> bytes:
        """The answer with this body, announcing ``length`` bytes."""
        return self.head + b"Content-Length: %d\r\n\r\n" % length + body


class FaultyRelay(Relay):
    """A Relay that also knows ``Fate`` and ``Lie``. ``met`` counts what happened, by fate and by answer."""

    def __init__(self, upstream_url: str, *, connections_max: int = 256) -> None:
        super().__init__(upstream_url, connections_max=connections_max)
        self.met: Counter[Decision] = Counter()

    def _connection(self, client: socket.socket) -> Connection:
        return FaultyConnection(self, client)

    def _happened(self, what: Decision) -> None:
        with self._lock:
            self.met[what] += 1


class FaultyConnection(Connection):
    """One client connection; the server's is made anew whenever the server ends it."""

    _relay: FaultyRelay

    def serve(self) -> None:
        """Hand requests on until the client ends."""
        try:
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                self._serve_one()
        except (ConnectionEndedError, OSError, http.client.HTTPException):
            # The client is not told in words: a server that breaks down does not do so either.
            self.ended = True
        finally:
            self._client.close()
            self._drop_server()
            self._relay._left(self)

    def _drop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _serve_one(self) -> None:
        head = self._read_head()
        request, length, chunked, expects_continue = parse_head(head)
        fate = self._relay._passing(request)
        if expects_continue:
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if isinstance(fate, Answer):
            self._take_body(length, chunked)
            self._relay._happened(fate)
            self._client.sendall(error_answer(fate, request))
            return
        if isinstance(fate, Lie):
            body = self._take_body(length, chunked)
            if fate.is_done:
                self._ask(request, head, body)
            self._relay._happened(fate)
            self._client.sendall(fate.answer(to_head=request.method == "HEAD"))
            return
        if fate in (Fate.RESET_SENDING, Fate.STALL_SENDING) and length:
            self._take_half(length, stalls=fate is Fate.STALL_SENDING)
        body = self._take_body(length, chunked, slowly=fate is Fate.TRICKLE)
        self._relay._wait_for_gate(self, request)
        if fate is Fate.SPOIL_SENDING and body:
            self._relay._happened(fate)
            body = _spoilt(body)
        reply = self._ask(request, head, body)
        if fate is Fate.TWICE:
            self._relay._happened(fate)
            reply = self._ask(request, head, body)
        self._answer(request, reply, fate)

    def _take_body(self, length: int, chunked: bool, *, slowly: bool = False) -> bytes:
        taken = bytearray()
        for piece in self._body_pieces(length, chunked):
            taken += piece
            if slowly:
                time.sleep(TRICKLE_S * len(piece) / TRICKLE_BYTES)
        return bytes(taken)

    def _take_half(self, length: int, *, stalls: bool) -> None:
        for _ in self._exactly(length // 2):
            continue
        self._relay._happened(Fate.STALL_SENDING if stalls else Fate.RESET_SENDING)
        if not stalls:
            self._reset()
        # Not read any further: what the client sends piles up in the kernel until it gives up.
        self._until_it_gives_up()

    def _until_it_gives_up(self) -> None:
        while not self.ended:
            time.sleep(0.05)
            state = self._client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            if state != TCP_ESTABLISHED:
                break
        raise ConnectionEndedError

    def _ask(self, request: Request, head: bytes, body: bytes) -> Reply:
        """One exchange with the server."""
        if self._server is None:
            self._server = socket.create_connection(
                self._relay._upstream, timeout=CONNECT_TIMEOUT_S
            )
            self._server.settimeout(None)
            self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.sendall(head + body)
        found = http.client.HTTPResponse(self._server, method=request.method)
        with contextlib.closing(found):
            found.begin()
            content = found.read()
            closes = found.will_close
        if closes:
            self._drop_server()
        kept = [
            f"{name}: {value}\r\n"
            for name, value in found.getheaders()
            if name.lower() not in ("content-length", "transfer-encoding", "connection")
        ]
        first = f"HTTP/1.1 {found.status} {found.reason}\r\n"
        told = found.getheader("content-length")
        length = int(told) if request.method == "HEAD" and told else len(content)
        return Reply((first + "".join(kept)).encode("latin-1"), content, length, closes)

    def _answer(self, request: Request, reply: Reply, fate: Decision) -> None:
        relay, body, half = self._relay, reply.body, reply.body[: len(reply.body) // 2]
        if fate is Fate.LOSE_ANSWER:
            relay._happened(fate)
            self._reset()
        if fate is Fate.SWALLOW_ANSWER:
            relay._happened(fate)
            self._hang()
        if fate is Fate.TRICKLE:
            relay._happened(fate)
            self._send_slowly(reply.bytes_of(body, reply.length))
            return
        if fate in RECEIVING and body:
            relay._happened(fate)
            if fate is Fate.SPOIL_RECEIVING:
                self._client.sendall(reply.bytes_of(_spoilt(body), reply.length))
                return
            if fate is Fate.SHORTEN:
                self._client.sendall(reply.bytes_of(half, len(half)))
                return
            self._client.sendall(reply.bytes_of(half, reply.length))
            if fate is Fate.CUT:
                raise ConnectionEndedError
            if fate is Fate.STALL_RECEIVING:
                self._hang()
            self._reset()
        self._client.sendall(reply.bytes_of(body, reply.length))

    def _send_slowly(self, data: bytes) -> None:
        for start in range(0, len(data), TRICKLE_BYTES):
            self._client.sendall(data[start : start + TRICKLE_BYTES])
            time.sleep(TRICKLE_S)


TCP_ESTABLISHED = 1


def _spoilt(body: bytes) -> bytes:
    """``body`` with one bit flipped, in its middle."""
    spoilt = bytearray(body)
    spoilt[len(body) // 2] ^= 0x10
    return bytes(spoilt)


class BadDays:
    """Decides by a seed what befalls requests: one of ``fates`` for a share of those that ``befalls`` picks.

    Nothing befalls the same request (method, path and query) more than ``in_a_row_max`` times: what
    goes wrong for ever is a server that is down, which other tests try.
    """

    def __init__(
        self,
        fates: Iterable[Fate | Answer],
        *,
        share: float,
        seed: int,
        in_a_row_max: int = 2,
        befalls: Callable[[Request], bool] = lambda request: True,
    ) -> None:
        self._fates = tuple(fates)
        self._share = share
        self._random = random.Random(seed)
        self._in_a_row_max = in_a_row_max
        self._befalls = befalls
        self._times: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Decision:
        """What befalls ``request``."""
        what = (request.method, request.path, request.query)
        with self._lock:
            if not self._befalls(request) or self._times[what] >= self._in_a_row_max:
                return None
            if self._random.random() >= self._share:
                return None
            self._times[what] += 1
            return self._random.choice(self._fates)

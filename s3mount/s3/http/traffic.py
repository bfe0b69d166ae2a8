"""What the requests of one store may do to the network: how many at once, how fast, and when they yield."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import trio

from s3mount.config import StoreConfig
from s3mount.flow.congestion import FLOOR, Gradient, RoundTrip
from s3mount.flow.rate import TokenBucket, Yielding
from s3mount.flow.timeouts import CRAWL_BYTES_PER_S
from s3mount.flow.window import Window
from s3mount.s3.http.limiter import Limiter
from s3mount.s3.http.statistics import Statistics

ROUND_S = 1.0
YIELDING_ROUND_S = 0.25
LOOK_S = 0.05
"""How often it is looked whether a round trip has ended."""
PROBE_S_MAX = 2.0
BUSY_BYTES = 256 << 10
"""Who moves less in a round learns nothing of the network, and opens no connection for it."""
BACKGROUND_REQUESTS = 8
"""Transfers at once that yield; one would do for the line, but not for the store's own delays."""
LOWER_EFFORT = 0x01 << 2
"""RFC 8622: traffic that routers may put behind all other."""
BACKGROUND_BUFFER_BYTES = 256 << 10
_ESTABLISHED, _CLOSE_WAIT, _SYN_SENT = 1, 8, 2
_RTT_AT, _RETRANSMITTED_AT = 8 + 4 * 15, 8 + 4 * 23
"""Where struct tcp_info has tcpi_rtt and tcpi_total_retrans (linux/tcp.h)."""


class Peer(NamedTuple):
    """Where connections go, by address."""

    family: int
    address: Any


class Pace:
    """Holds bodies to a rate, over all connections of one direction."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bucket = TokenBucket(bytes_per_s)

    @property
    def piece_bytes(self) -> int:
        """How much should be moved at once."""
        return self._bucket.piece_bytes

    def moved(self, n: int) -> float:
        """``n`` bytes were: seconds to wait before any more."""
        return self._bucket.moved(n, trio.current_time())

    def set_rate(self, bytes_per_s: float) -> None:
        """From now on this one; 0: none."""
        self._bucket.set_rate(bytes_per_s, trio.current_time())


class _Way:
    """One direction: its gate, what it may move, and how it yields."""

    def __init__(self, maximum: int, *, yields: bool) -> None:
        self.gate = Limiter(Window(maximum))
        self.gradient = Gradient(self.gate.window, floor=1 if yields else FLOOR)
        self.yielding = Yielding() if yields else None
        self.limit = 0
        self.pace: Pace | None = None
        self.moved_before = 0

    @property
    def may_hedge(self) -> bool:
        """May a request be sent that nobody waits for yet? Not on a line that is full, or held to a rate."""
        window = self.gate.window
        return self.pace is None and not window.is_held and self.gate.inside < window.size

    def apply(self) -> None:
        """Let the lower of both rates hold; at it no request may crawl so that its deadline would pass."""
        rates = [float(self.limit)] if self.limit else []
        if self.yielding is not None:
            rates.append(self.yielding.bytes_per_s)
        rate = min(rates, default=0.0)
        window = self.gate.window
        if not rate:
            self.pace = None
            window.cap(window.maximum)
            self.gate.admit()
            return
        if self.pace is None:
            self.pace = Pace(rate)
        else:
            self.pace.set_rate(rate)
        most = window.maximum if self.yielding is None else BACKGROUND_REQUESTS
        window.cap(min(most, max(FLOOR, int(rate / CRAWL_BYTES_PER_S))))
        self.gate.admit()


class Traffic:
    """Admits requests and holds bodies to rates. ``peer`` tells where connections go, once there was one.

    ``round_trip_s``: the least that an earlier run met. Where much is moved, a connection is opened now and then, and
    closed at once: its handshake tells the round trip, queues before the line included, whichever way bytes go.
    """

    def __init__(
        self,
        config: StoreConfig,
        statistics: Statistics,
        peer: Callable[[], Peer | None],
        round_trip_s: float = 0.0,
    ) -> None:
        self._statistics = statistics
        self._peer = peer
        self.yields = config.background
        reserve = max(1, config.connections_max // 4)
        self.reading = _Way(config.connections_max, yields=self.yields)
        self.writing = _Way(max(1, config.connections_max - reserve), yields=self.yields)
        self.trip = RoundTrip(round_trip_s)
        self._probe: socket.socket | None = None
        self._probe_began_s = 0.0
        self._round_began_s = 0.0
        self._next_look_s = 0.0
        self.set_limits(config.up_bytes_per_s, config.down_bytes_per_s)

    def set_limits(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """Hold bodies to these rates from now on; 0: to none. Repeatable."""
        self.writing.limit, self.reading.limit = up_bytes_per_s, down_bytes_per_s
        self.writing.apply()
        self.reading.apply()

    def connected(self, connection: socket.socket, now_s: float) -> None:
        """A connection was opened: its handshake was a round trip."""
        sample_s = _round_trip_s(connection)
        if sample_s:
            self.trip.queue_s(now_s, sample_s)

    def look(self, now_s: float) -> None:
        """To be called often while requests run; cheap but once a round."""
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_S
        if self._probe is None:
            self._begin_round(now_s)
            return
        state = self._probe.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == _SYN_SENT and now_s - self._probe_began_s < PROBE_S_MAX:
            return
        sample_s = _round_trip_s(self._probe) if state in (_ESTABLISHED, _CLOSE_WAIT) else 0.0
        self.close()
        if sample_s:
            self._end_round(now_s, sample_s)
        else:
            self.reading.gate.window.is_held = self.writing.gate.window.is_held = False
        self._next_look_s = self._probe_began_s + (YIELDING_ROUND_S if self.yields else ROUND_S)

    def _begin_round(self, now_s: float) -> None:
        peer = self._peer()
        moved = self._statistics.bytes_sent + self._statistics.bytes_received
        since = moved - self.reading.moved_before - self.writing.moved_before
        if peer is None or (since < BUSY_BYTES and not self.yields):
            self._mark(now_s)
            self._next_look_s = now_s + ROUND_S
            return
        self._probe_began_s = now_s
        try:
            self._probe = socket.socket(peer.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._probe.connect_ex(peer.address)
        except OSError:
            self.close()

    def _end_round(self, now_s: float, sample_s: float) -> None:
        queue_s, base_s = self.trip.queue_s(now_s, sample_s), self.trip.base_s
        lasted_s = max(now_s - self._round_began_s, LOOK_S)
        for way, total in (
            (self.reading, self._statistics.bytes_received),
            (self.writing, self._statistics.bytes_sent),
        ):
            way.gradient.round(now_s, base_s, queue_s, total, way.gate.inside)
            if way.yielding is not None:
                way.yielding.round(queue_s, (total - way.moved_before) / lasted_s)
                way.apply()
            else:
                way.gate.admit()
        self._mark(now_s)

    def _mark(self, now_s: float) -> None:
        self._round_began_s = now_s
        self.reading.moved_before = self._statistics.bytes_received
        self.writing.moved_before = self._statistics.bytes_sent

    def close(self) -> None:
        """Close the connection that is probed by. Repeatable."""
        if self._probe is not None:
            self._probe.close()
            self._probe = None


def _round_trip_s(connection: socket.socket) -> float:
    """How long the handshake took; 0 where a packet of it was sent again, or nothing is told."""
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RETRANSMITTED_AT + 4)
    if len(told) < _RETRANSMITTED_AT + 4 or struct.unpack_from("I", told, _RETRANSMITTED_AT)[0]:
        return 0.0
    return float(struct.unpack_from("I", told, _RTT_AT)[0]) * 1e-6


def put_behind_others(connection: socket.socket) -> None:
    """Mark a connection's packets as ones that may wait (RFC 8622), and let TCP yield where the kernel can."""
    options: list[tuple[int, int, int | bytes]] = [
        (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"lp"),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, BACKGROUND_BUFFER_BYTES),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, BACKGROUND_BUFFER_BYTES),
    ]
    if connection.family == socket.AF_INET6:
        options.append((socket.IPPROTO_IPV6, socket.IPV6_TCLASS, LOWER_EFFORT))
    else:
        options.append((socket.IPPROTO_IP, socket.IP_TOS, LOWER_EFFORT))
    for level, name, value in options:
        try:
            connection.setsockopt(level, name, value)
        except OSError:
            continue  # not here: a wish, no need

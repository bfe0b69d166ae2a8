"""The relay of the benchmarks: what it delays, what it does not, and that it loses nothing."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from bench.relay import RelayProcess

TIMEOUT_S = 60.0
Served = Callable[[socket.socket], None]


def echo(connection: socket.socket) -> None:
    """Send back what comes until the other side ends or breaks off."""
    with suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            connection.sendall(data)


@contextmanager
def serving(handler: Served) -> Iterator[tuple[str, int]]:
    """A server on loopback that runs ``handler`` for every connection; its address."""

    def handle(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(TIMEOUT_S)
            handler(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=handle, args=(connection,), daemon=True)
            threads.append(thread)
            thread.start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join(TIMEOUT_S)
            for thread in threads:
                thread.join(TIMEOUT_S)


def connect(relay: RelayProcess) -> socket.socket:
    """A connection through the relay."""
    made = socket.create_connection(("127.0.0.1", relay.port), timeout=TIMEOUT_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def round_trip_s(connection: socket.socket) -> float:
    """Send one byte and wait for it."""
    start_s = time.monotonic()
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    return time.monotonic() - start_s


def test_every_round_trip_is_delayed_both_ways() -> None:
    with serving(echo) as target, RelayProcess(target, 0.010) as relay, connect(relay) as client:
        times_s = [round_trip_s(client) for _ in range(20)]
    assert min(times_s) >= 0.020
    # A loaded machine may wake anybody late, but not 20 times in a row by as much as the delay.
    assert min(times_s) < 0.060


def test_no_delay_is_asked_no_delay_is_added() -> None:
    with serving(echo) as target, RelayProcess(target, 0.0) as relay, connect(relay) as client:
        assert min(round_trip_s(client) for _ in range(20)) < 0.020


def test_what_is_on_its_way_at_the_same_time_waits_together() -> None:
    def one(relay: RelayProcess) -> float:
        with connect(relay) as client:
            return round_trip_s(client)

    with (
        serving(echo) as target,
        RelayProcess(target, 0.25) as relay,
        ThreadPoolExecutor(40) as threads,
    ):
        start_s = time.monotonic()
        times_s = list(threads.map(one, [relay] * 40))
        took_s = time.monotonic() - start_s
    assert min(times_s) >= 0.5
    # One after another would be 40 x 0.5 s.
    assert took_s < 10


def test_bandwidth_is_not_bound_to_the_delay() -> None:
    size = 64 << 20

    def send(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(body)

    body = os.urandom(1 << 20) * (size >> 20)
    with serving(send) as target, RelayProcess(target, 0.1) as relay, connect(relay) as client:
        start_s = time.monotonic()
        client.sendall(b"x")
        digest, received = hashlib.sha256(), 0
        while data := client.recv(1 << 20):
            digest.update(data)
            received += len(data)
        took_s = time.monotonic() - start_s
    assert (received, digest.digest()) == (size, hashlib.sha256(body).digest())
    # A chunk of 256 KiB at most a round trip would take 51 s.
    assert took_s < 40


def test_a_half_closed_connection_still_carries_the_answer() -> None:
    def count(connection: socket.socket) -> None:
        total = 0
        while data := connection.recv(1 << 16):
            total += len(data)
        connection.sendall(str(total).encode())

    with serving(count) as target, RelayProcess(target, 0.005) as relay, connect(relay) as client:
        client.sendall(bytes(1_000_000))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"1000000"
        assert client.recv(100) == b""


def test_a_reader_that_stops_holds_the_writer_and_nobody_else() -> None:
    pushed = threading.Event()

    def push(connection: socket.socket) -> None:
        if connection.recv(1) == b"e":
            connection.sendall(b"e")
            return
        connection.settimeout(2.0)
        try:
            while True:
                connection.sendall(bytes(1 << 20))
        except TimeoutError:
            pushed.set()

    with serving(push) as target, RelayProcess(target, 0.005) as relay, connect(relay) as lazy:
        lazy.sendall(b"p")
        assert pushed.wait(TIMEOUT_S), "the relay took in more than its bound without a reader"
        with connect(relay) as other:
            other.sendall(b"e")
            assert other.recv(1) == b"e"


def test_a_server_that_is_gone_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = listener.getsockname()
    with RelayProcess(target, 0.005) as relay:
        for _ in range(3):
            with connect(relay) as client:
                try:
                    answer = client.recv(1)
                except ConnectionResetError:
                    answer = b""
                assert answer == b""


def test_an_aborting_client_leaves_the_relay_serving() -> None:
    with serving(echo) as target, RelayProcess(target, 0.005) as relay:
        for _ in range(20):
            rude = connect(relay)
            rude.sendall(bytes(100_000))
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            rude.close()
        with connect(relay) as client:
            assert round_trip_s(client) > 0


def test_closing_ends_the_process() -> None:
    with serving(echo) as target:
        relay = RelayProcess(target, 0.005)
        pid = relay.pid
        relay.close()
        relay.close()
    assert not os.path.exists(f"/proc/{pid}")

"""The line between two network namespaces is as long, as slow and as lossy as it is said to be."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading

import pytest

from bench.link import FAR, Conditions, Line
from tests.namespaces import in_namespaces

CLIENT = """
import json, socket, sys, time
began = time.monotonic()
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
trip = time.monotonic() - began
got = 0
began = time.monotonic()
while piece := peer.recv(1 << 16):
    got += len(piece)
took = time.monotonic() - began
print(json.dumps([trip, got, took]))
"""
SIZE = 500_000


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    in_namespaces("--net")


def fetched(conditions: Conditions) -> tuple[float, float]:
    """Seconds of the first round trip, and of ``SIZE`` bytes from the far end."""
    try:
        line = Line(conditions)
    except OSError as error:
        pytest.skip(str(error))
    with line, line.listen() as listener:
        listener.settimeout(20)

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(bytes(SIZE))

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        port = str(listener.getsockname()[1])
        done = subprocess.run(
            [*line.near, sys.executable, "-c", CLIENT, FAR, port],
            stdout=subprocess.PIPE,
            timeout=60,
            check=True,
        )
        server.join(20)
    trip_s, got, took_s = json.loads(done.stdout)
    assert got == SIZE
    return trip_s, took_s


def test_it_is_long_and_slow() -> None:
    trip_s, took_s = fetched(Conditions(rtt_ms=50, mbit=4))
    assert 0.05 <= trip_s < 1
    assert 0.95 <= took_s < 10, "0.5 MB at 0.5 MB/s"


def test_what_is_lost_is_sent_again() -> None:
    _, clean_s = fetched(Conditions(rtt_ms=20, mbit=100))
    _, lossy_s = fetched(Conditions(rtt_ms=20, mbit=100, loss=0.05))
    assert lossy_s > clean_s


def test_each_end_has_a_network_of_its_own() -> None:
    try:
        line = Line(Conditions())
    except OSError as error:
        pytest.skip(str(error))
    with line:
        told = subprocess.run(
            [*line.near, "ip", "-o", "-4", "addr"], stdout=subprocess.PIPE, timeout=20, check=True
        ).stdout.decode()
        assert "line0" in told
        with line.listen() as listener, pytest.raises(OSError, match=r"refused|unreachable|timed"):
            socket.create_connection((FAR, listener.getsockname()[1]), timeout=0.5)

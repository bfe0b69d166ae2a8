"""Measurements that need a clock inside the reader: run as a program on a mount, prints JSON.

``first-byte``: for every path on stdin, milliseconds from before open() until one byte is read.
``first-byte-raw``: the same for presigned URLs, each one GET on one kept connection.
``random FILE``: for every offset on stdin, read 16 KiB there; seconds in all.
``random-raw URL``: the same by one GET of that range each.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
import urllib.parse


def first_byte_ms(path: str) -> float:
    """Open ``path``, read one byte, in milliseconds."""
    start_s = time.perf_counter()
    handle = os.open(path, os.O_RDONLY)
    try:
        if len(os.read(handle, 1)) != 1:
            raise SystemExit(f"{path} is empty")
        return (time.perf_counter() - start_s) * 1e3
    finally:
        os.close(handle)


def first_byte_raw_ms(connection: http.client.HTTPConnection, url: str) -> float:
    """GET ``url`` until the first byte of its body, in milliseconds; the rest is read and dropped."""
    parts = urllib.parse.urlsplit(url)
    start_s = time.perf_counter()
    connection.request("GET", f"{parts.path}?{parts.query}")
    response = connection.getresponse()
    first = response.read(1)
    took_ms = (time.perf_counter() - start_s) * 1e3
    response.read()
    if response.status != 200 or len(first) != 1:
        raise SystemExit(f"GET was answered {response.status}")
    return took_ms


RANDOM_READ_BYTES = 16 << 10


def random_s(path: str, offsets: list[int]) -> float:
    """Read at each offset, one after another; seconds in all."""
    handle = os.open(path, os.O_RDONLY)
    try:
        start_s = time.perf_counter()
        for offset in offsets:
            if len(os.pread(handle, RANDOM_READ_BYTES, offset)) != RANDOM_READ_BYTES:
                raise SystemExit(f"{path}: nothing at {offset}")
        return time.perf_counter() - start_s
    finally:
        os.close(handle)


def random_raw_s(url: str, offsets: list[int]) -> float:
    """GET each range on one kept connection; seconds in all."""
    parts, connection = urllib.parse.urlsplit(url), _connected(url)
    start_s = time.perf_counter()
    for offset in offsets:
        headers = {"Range": f"bytes={offset}-{offset + RANDOM_READ_BYTES - 1}"}
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        if len(connection.getresponse().read()) != RANDOM_READ_BYTES:
            raise SystemExit(f"GET at {offset} brought something else")
    return time.perf_counter() - start_s


def _connected(url: str) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(url)
    tls = parts.scheme == "https"
    kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=60)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main() -> int:
    """Probe everything named on stdin, one a line, in that order."""
    names = sys.stdin.read().split("\n")
    if sys.argv[1] == "first-byte":
        times_ms = [first_byte_ms(name) for name in names]
    elif sys.argv[1] == "first-byte-raw":
        connection = _connected(names[0])
        times_ms = [first_byte_raw_ms(connection, name) for name in names]
    elif sys.argv[1] in ("random", "random-raw"):
        read = random_s if sys.argv[1] == "random" else random_raw_s
        json.dump(read(sys.argv[2], [int(name) for name in names]), sys.stdout)
        return 0
    else:
        raise SystemExit(f"no such probe: {sys.argv[1]}")
    json.dump(times_ms, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

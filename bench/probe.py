"""Measurements that need a clock inside the reader: run as a program on a mount, prints JSON.

``first-byte``: for every path on stdin, milliseconds from before open() until one byte is read.
``first-byte-raw``: the same for presigned URLs, each one GET on one kept connection.
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


def main() -> int:
    """Probe everything named on stdin, one a line, in that order."""
    names = sys.stdin.read().split("\n")
    if sys.argv[1] == "first-byte":
        times_ms = [first_byte_ms(name) for name in names]
    elif sys.argv[1] == "first-byte-raw":
        parts = urllib.parse.urlsplit(names[0])
        tls = parts.scheme == "https"
        kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=60)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times_ms = [first_byte_raw_ms(connection, name) for name in names]
    else:
        raise SystemExit(f"no such probe: {sys.argv[1]}")
    json.dump(times_ms, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

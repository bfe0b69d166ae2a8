"""An HTTP server that costs nothing, to measure a client: every body is zeros, or thrown away.

Run as ``python bare_server.py [CERTIFICATE KEY]``: it prints its port and serves until its
standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import threading

SMALL = 4096
ETAG = '"b6d81b360a5672d80c27430f39153e2c"'
LARGE = 1 << 30


def main() -> None:
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1], sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)
    zeros = os.memfd_create("zeros")
    os.ftruncate(zeros, 64 << 20)
    threading.Thread(target=accept, args=(listener, context, zeros), daemon=True).start()
    sys.stdin.read()


def accept(listener: socket.socket, context: ssl.SSLContext | None, zeros: int) -> None:
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=serve, args=(peer, context, zeros), daemon=True).start()


def serve(peer: socket.socket, context: ssl.SSLContext | None, zeros: int) -> None:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        talk(context.wrap_socket(peer, server_side=True) if context else peer, zeros)


def talk(peer: socket.socket, zeros: int) -> None:
    waste = bytearray(1 << 20)
    pending = b""
    while True:
        while b"\r\n\r\n" not in pending:
            piece = peer.recv(65536)
            if not piece:
                return
            pending += piece
        head, _, pending = pending.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if head.startswith(b"GET"):
            answer(peer, fields, zeros)
            continue
        left = int(fields.get(b"content-length", b"0")) - len(pending)
        pending = b""
        while left > 0:
            if isinstance(peer, ssl.SSLSocket):
                left -= peer.recv_into(waste, min(left, len(waste)))
            else:
                left -= peer.recv_into(waste, min(left, len(waste)), socket.MSG_TRUNC)
        crc = fields.get(b"x-amz-checksum-crc64nvme")
        echo = b"x-amz-checksum-crc64nvme: " + crc + b"\r\n" if crc else b""
        peer.sendall(
            f"HTTP/1.1 200 OK\r\nETag: {ETAG}\r\nx-amz-request-id: 1\r\n".encode()
            + echo
            + b"Content-Length: 0\r\n\r\n"
        )


def answer(peer: socket.socket, fields: dict[bytes, bytes], zeros: int) -> None:
    start, length, status = 0, SMALL, "200 OK"
    total = SMALL
    if b"range" in fields:
        first, _, last = fields[b"range"].removeprefix(b"bytes=").partition(b"-")
        start, length, total = int(first), int(last) - int(first) + 1, LARGE
        status = "206 Partial Content"
    where = (
        f"Content-Range: bytes {start}-{start + length - 1}/{total}\r\n"
        if b"range" in fields
        else ""
    )
    head = (
        f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: {ETAG}-2\r\n"
        f"{where}"
        "Last-Modified: Sat, 21 Nov 2026 01:24:00 GMT\r\nx-amz-request-id: 1\r\n"
        "x-amz-meta-mode: 33188\r\nx-amz-meta-mtime: 1700000000\r\n"
        "Content-Type: application/octet-stream\r\nDate: Sat, 21 Nov 2026 01:24:01 GMT\r\n\r\n"
    ).encode()
    if isinstance(peer, ssl.SSLSocket) or length <= SMALL:
        peer.sendall(head + bytes(length) if length <= SMALL else head)
        if length > SMALL:
            piece = bytes(1 << 20)
            for _ in range(length // len(piece)):
                peer.sendall(piece)
        return
    peer.sendall(head, socket.MSG_MORE)
    offset = 0
    while offset < length:
        offset += os.sendfile(peer.fileno(), zeros, offset, length - offset)


if __name__ == "__main__":
    main()

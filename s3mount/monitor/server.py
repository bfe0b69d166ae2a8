"""Serves the page and the metrics over HTTP, to be read only."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from s3mount.errors import S3MountError, UsageError
from s3mount.monitor.exposition import text_of
from s3mount.monitor.history import History
from s3mount.monitor.page import SCRIPT, STYLE, page, sections
from s3mount.status import Snapshot

log = logging.getLogger(__name__)

PORT = 9848
SAMPLE_EVERY_S = 5.0
LOOK_FOR_PARENT_S = 1.0
REQUEST_TIMEOUT_S = 10.0
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
HTML = "text/html; charset=utf-8"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'"
)
Look = Callable[[], Sequence[Snapshot]]
Start = Callable[[str, list[tuple[str, str]]], object]


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``HOST``, ``PORT`` or ``:PORT``; loopback unless a host is named.

    >>> [parse_address(t) for t in ("9000", ":9000", "0.0.0.0", "[::1]:80")]
    [('127.0.0.1', 9000), ('127.0.0.1', 9000), ('0.0.0.0', 9848), ('::1', 80)]

    Raises UsageError.
    """
    if text.isdigit():
        host, port = "", text
    else:
        parts = urlsplit(f"//{text}")
        try:
            host, port = parts.hostname or "", str(parts.port or PORT)
        except ValueError:
            raise UsageError(f"{text!r} is no address: HOST:PORT, or a port") from None
        if parts.path or parts.username:
            raise UsageError(f"{text!r} is no address: HOST:PORT, or a port")
    if not 0 <= int(port) <= 65535:
        raise UsageError(f"{text!r} is no address: a port is at most 65535")
    return host or "127.0.0.1", int(port)


class Monitor:
    """Serves at ``host`` and ``port`` (0: any free one) what ``look`` tells of the mounts.

    At a loopback address only requests for such a host are answered, so that no web page that a browser shows can
    read it under a name of its own. With ``parent`` it ends when that process, which started this one, is gone.
    """

    def __init__(self, look: Look, host: str, port: int, *, parent: int | None = None) -> None:
        self._look = look
        self._history = History()
        self._is_local = host in LOOPBACK
        self._parent = parent
        self._ended = threading.Event()
        server_class = _Server6 if ":" in host else _Server
        try:
            self._server = make_server(host, port, self.answer, server_class, _Quiet)
        except OSError as error:
            raise UsageError(f"cannot listen at {host}:{port}: {error.strerror}") from None
        self.port = self._server.server_port

    def run(self) -> None:
        """Serve until ``end`` is called, from another thread or a signal's handler."""
        sampler = threading.Thread(target=self._sample, daemon=True)
        sampler.start()
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._ended.set()
            self._server.server_close()

    def end(self) -> None:
        """Let ``run`` return. Repeatable."""
        threading.Thread(target=self._server.shutdown, daemon=True).start()

    def _sample(self) -> None:
        sampled_s = float("-inf")
        while not self._ended.wait(LOOK_FOR_PARENT_S):
            if self._parent is not None and os.getppid() != self._parent:
                self.end()
                return
            if time.monotonic() - sampled_s < SAMPLE_EVERY_S:
                continue
            sampled_s = time.monotonic()
            try:
                self._history.take(self._look())
            except S3MountError as error:
                log.info("the mounts cannot be asked: %s", error)
            except Exception:
                # One failed look must not end the charts for good.
                log.exception("the mounts cannot be asked")

    def answer(self, request: dict[str, Any], start: Start) -> Iterable[bytes]:
        """One request, as WSGI (PEP 3333) has it."""
        if request["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _send(start, "405 Method Not Allowed", "text/plain", "this can only be read\n")
        if self._is_local and _host_of(request) not in LOOPBACK:
            return _send(start, "403 Forbidden", "text/plain", "ask for localhost\n")
        try:
            return self._answer(request["PATH_INFO"], start)
        except S3MountError as error:
            return _send(start, "503 Service Unavailable", "text/plain", f"{error}\n")

    def _answer(self, path: str, start: Start) -> Iterable[bytes]:
        match path:
            case "/":
                return _send(start, "200 OK", HTML, page(self._looked(), self._history))
            case "/mounts":
                return _send(start, "200 OK", HTML, sections(self._looked(), self._history))
            case "/metrics":
                kind = "text/plain; version=0.0.4; charset=utf-8"
                return _send(start, "200 OK", kind, text_of(self._look))
            case "/style.css":
                return _send(start, "200 OK", "text/css; charset=utf-8", STYLE)
            case "/live.js":
                return _send(start, "200 OK", "text/javascript; charset=utf-8", SCRIPT)
        return _send(start, "404 Not Found", "text/plain", "there are / and /metrics\n")

    def _looked(self) -> Sequence[Snapshot]:
        mounts = self._look()
        self._history.take(mounts)
        return mounts


def _host_of(request: dict[str, Any]) -> str:
    """The host that was asked for, without its port."""
    try:
        return urlsplit(f"//{request.get('HTTP_HOST', '')}").hostname or ""
    except ValueError:
        return ""


def _send(start: Start, status: str, kind: str, text: str) -> list[bytes]:
    body = text.encode("utf-8", "backslashreplace")
    start(
        status,
        [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", POLICY),
            ("X-Content-Type-Options", "nosniff"),
        ],
    )
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, *_: object) -> None:
        """Standard error is for errors."""

"""A web server with one file, that serves ranges or does not, and whose file may change."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    """Ranges come all at once."""


class Web:
    """Serves ``data`` at ``url``; ``/gone`` is not there and ``/moved`` leads to it.

    ``serves_ranges``; ``cuts``: so many answers end in their middle. ``asked`` are the ranges, ``sent`` the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.etag = '"one"'
        self.serves_ranges = True
        self.cuts = 0
        self.asked: list[tuple[int, int]] = []
        self.sent = 0
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.base}/dir/file.txt"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def on_range(self, start: int) -> None:
        """Called before each range is answered; for tests to replace."""

    def _handler(web) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/moved":
                    self.send_response(302)
                    self.send_header("Location", web.url)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if self.path == "/gone":
                    self.send_error(404)
                    return
                found = RANGE.fullmatch(self.headers.get("Range", ""))
                if found is not None and int(found[2]):
                    web.on_range(int(found[1]))
                if self.headers.get("If-Range", web.etag) != web.etag:
                    found = None
                data = web.data
                if found is None or not web.serves_ranges or not data:
                    self._send(200, data)
                    return
                start, stop = int(found[1]), min(int(found[2]) + 1, len(data))
                with web.lock:
                    web.asked.append((start, stop - start))
                self._send(206, data[start:stop], f"bytes {start}-{stop - 1}/{len(data)}")

            def _send(self, status: int, data: bytes, content_range: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", web.etag)
                if content_range:
                    self.send_header("Content-Range", content_range)
                self.end_headers()
                with web.lock:
                    is_cut = len(data) > 1 and web.cuts > 0
                    web.cuts -= is_cut
                data = data[: len(data) // 2] if is_cut else data
                try:
                    self.wfile.write(data)
                except OSError:
                    return
                with web.lock:
                    web.sent += len(data)
                self.close_connection = is_cut

        return Handler

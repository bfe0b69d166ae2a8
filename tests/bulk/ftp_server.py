"""An FTP server with one file, for one test: what ``ftplib`` needs and no more."""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import Self


class FtpServer:
    """Serves ``data`` as ``dir/file``. ``restarts``: it begins at any byte; ``cuts``: so many files end early."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.restarts = True
        self.cuts = 0
        self.begun: list[int] = []
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                Session(server, self).run()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"ftp://user:word@127.0.0.1:{self._server.server_address[1]}/dir/file"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Session:
    """One control connection."""

    def __init__(self, server: FtpServer, handler: socketserver.StreamRequestHandler) -> None:
        self._server = server
        self._handler = handler
        self._start = 0
        self._listener: socket.socket | None = None

    def run(self) -> None:
        self._say("220 here")
        for line in self._handler.rfile:
            command, _, argument = line.decode().strip().partition(" ")
            try:
                self._say(self._answer(command.upper(), argument))
            except OSError:
                return

    def _say(self, text: str) -> None:
        self._handler.wfile.write(f"{text}\r\n".encode())

    def _answer(self, command: str, argument: str) -> str:
        if command in ("SIZE", "MDTM", "RETR") and argument != "dir/file":
            return "550 no such file"
        if command == "USER":
            return "331 password"
        if command == "PASS":
            return "230 in" if argument == "word" else "530 no"
        if command == "SIZE":
            return f"213 {len(self._server.data)}"
        if command == "MDTM":
            return "213 20260101000000"
        if command == "REST":
            self._start = int(argument)
            return "350 from there" if self._server.restarts else "502 not here"
        if command == "EPSV":
            self._listener = socket.create_server(("127.0.0.1", 0))
            return f"229 there (|||{self._listener.getsockname()[1]}|)"
        if command == "PASV":
            self._listener = socket.create_server(("127.0.0.1", 0))
            high, low = divmod(self._listener.getsockname()[1], 256)
            return f"227 there (127,0,0,1,{high},{low})"
        if command == "RETR":
            return self._send()
        return "200 well"

    def _send(self) -> str:
        listener = self._listener
        assert listener is not None
        self._say("150 it comes")
        connection, _ = listener.accept()
        data = self._server.data[self._start :]
        self._server.begun.append(self._start)
        is_cut = self._server.cuts > 0
        if is_cut:
            self._server.cuts -= 1
            data = data[:100_000]
        with listener, connection:
            try:
                connection.sendall(data)
            except OSError:
                return "426 broken off"
        self._start = 0
        return "426 broken off" if is_cut else "226 all"

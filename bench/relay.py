"""A TCP relay that hands every chunk on a fixed time later, each way: a round trip on one machine.

It stands between an S3 client and a server on the same host, so that the client waits as it would
for S3 in a region. Bandwidth is not limited and the TCP handshake itself is not delayed.

One loop over epoll, without a framework: the delay is the same for every chunk, so one queue for
all connections is already in order of time, and the sleep is by select(), whose time-out has
microseconds where epoll's (and so asyncio's and trio's) is rounded up to milliseconds.
"""

from __future__ import annotations

import argparse
import errno
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from types import TracebackType
from typing import NamedTuple, Self

CHUNK_BYTES = 256 << 10
"""Read at most this much at once: 64 KiB cost a third more CPU per GiB, 1 MiB no less."""
QUEUED_BYTES_MAX = 64 << 20
"""A direction is not read further while so much of it waits; 10 ms of it is 6.4 GB/s."""
BACKLOG = 1024
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0


class Pipe:
    """One direction of one connection: bytes read from ``source`` go to ``sink`` when due."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.overdue: deque[memoryview] = deque()
        """Due, but the sink would not take it yet."""
        self.queued_bytes = 0
        self.source_ended = False
        self.sink_ended = False
        self.twin: Pipe = self
        self.broken = False

    @property
    def reads(self) -> bool:
        """Whether more may be read from the source now."""
        return not (self.source_ended or self.broken) and self.queued_bytes < QUEUED_BYTES_MAX


class Chunk(NamedTuple):
    """Bytes on the line; empty bytes are the end of the stream."""

    due_s: float
    pipe: Pipe
    data: bytes


class Relay:
    """Relays connections made to ``listener`` to ``target``, each chunk ``one_way_s`` later."""

    def __init__(
        self, listener: socket.socket, target: tuple[str, int], one_way_s: float, stop_fd: int
    ) -> None:
        self._listener = listener
        self._target = target
        self._one_way_s = one_way_s
        self._stop_fd = stop_fd
        self._epoll = select.epoll()
        self._line: deque[Chunk] = deque()
        self._pipes_by_source: dict[int, Pipe] = {}
        self._interest: dict[int, int] = {}

    def run(self) -> None:
        """Relay until ``stop_fd`` becomes readable (or its other end is closed)."""
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._stop_fd, select.EPOLLIN)
        while True:
            wait_s = max(0.0, self._line[0].due_s - time.monotonic()) if self._line else None
            select.select([self._epoll.fileno()], [], [], wait_s)
            for fd, events in self._epoll.poll(0):
                if fd == self._stop_fd:
                    return
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    self._serve(fd, events)
            self._deliver_due()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = server.connect_ex(self._target)
            if code not in (0, errno.EINPROGRESS):
                client.close()
                server.close()
                continue
            there, back = Pipe(client, server), Pipe(server, client)
            there.twin, back.twin = back, there
            for pipe in (there, back):
                self._pipes_by_source[pipe.source.fileno()] = pipe
                self._watch(pipe)

    def _watch(self, pipe: Pipe) -> None:
        """Tell epoll what is wanted of ``pipe.source``: reading for it, writing for its twin.

        A socket of which nothing is wanted is taken out, as epoll would report its hang-up again
        and again.
        """
        fd = pipe.source.fileno()
        mask = (select.EPOLLIN if pipe.reads else 0) | (select.EPOLLOUT if pipe.twin.overdue else 0)
        known = self._interest.get(fd, 0)
        if mask == known:
            return
        if not known:
            self._epoll.register(fd, mask)
        elif mask:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.unregister(fd)
        self._interest[fd] = mask

    def _serve(self, fd: int, events: int) -> None:
        pipe = self._pipes_by_source.get(fd)
        if pipe is None:
            return
        if events & select.EPOLLOUT:
            self._write(pipe.twin)
        if events & ~select.EPOLLOUT and not pipe.broken:
            self._read(pipe)

    def _read(self, pipe: Pipe) -> None:
        if not pipe.reads:
            if not pipe.twin.overdue:
                return
            self._break(pipe)
            return
        try:
            data = pipe.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._break(pipe)
            return
        pipe.queued_bytes += len(data)
        pipe.source_ended = not data
        self._line.append(Chunk(time.monotonic() + self._one_way_s, pipe, data))
        self._watch(pipe)

    def _deliver_due(self) -> None:
        now_s = time.monotonic()
        while self._line and self._line[0].due_s <= now_s:
            chunk = self._line.popleft()
            if chunk.pipe.broken:
                continue
            chunk.pipe.overdue.append(memoryview(chunk.data))
            if len(chunk.pipe.overdue) == 1:
                self._write(chunk.pipe)

    def _write(self, pipe: Pipe) -> None:
        """Send what is due as far as the sink takes it; pass the end of the stream on too."""
        try:
            while pipe.overdue:
                piece = pipe.overdue[0]
                if not piece:
                    pipe.sink.shutdown(socket.SHUT_WR)
                    pipe.sink_ended = True
                    pipe.overdue.popleft()
                    continue
                sent = pipe.sink.send(piece)
                pipe.queued_bytes -= sent
                if sent == len(piece):
                    pipe.overdue.popleft()
                else:
                    pipe.overdue[0] = piece[sent:]
        except BlockingIOError:
            pass  # epoll tells when the sink takes more: _watch below asks for it
        except OSError:
            self._break(pipe)
            return
        if pipe.sink_ended and pipe.twin.sink_ended:
            self._break(pipe)
            return
        self._watch(pipe)
        self._watch(pipe.twin)

    def _break(self, pipe: Pipe) -> None:
        """Close both ends and forget what is still on the line between them."""
        for one in (pipe, pipe.twin):
            one.broken = True
            one.overdue.clear()
            fd = one.source.fileno()
            if self._interest.pop(fd, 0):
                self._epoll.unregister(fd)
            del self._pipes_by_source[fd]
        pipe.source.close()
        pipe.sink.close()


class RelayProcess:
    """A relay in a process of its own, from construction until ``close`` (repeatable)."""

    def __init__(self, target: tuple[str, int], one_way_s: float) -> None:
        """Start it. Raises OSError if it does not come up within ten seconds."""
        self._process = subprocess.Popen(
            [
                *(sys.executable, __file__),
                *("--to", f"{target[0]}:{target[1]}"),
                *("--one-way-ms", repr(one_way_s * 1e3)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.close()
            raise OSError(f"the relay to {target[0]}:{target[1]} did not start")
        self.port = int(line)

    @property
    def pid(self) -> int:
        """The relay's process, for its CPU time."""
        return self._process.pid

    def close(self) -> None:
        """End the relay and with it every connection through it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def main(argv: list[str] | None = None) -> int:
    """Run one relay until stdin is closed; its port is the only line on stdout."""
    parser = argparse.ArgumentParser(prog="relay.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--one-way-ms", type=float, default=10.0)
    options = parser.parse_args(argv)
    host, _, port = options.listen.rpartition(":")
    target_host, _, target_port = options.to.rpartition(":")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    listener = socket.create_server((host, int(port)), backlog=BACKLOG)
    print(listener.getsockname()[1], flush=True)
    target = (target_host, int(target_port))
    Relay(listener, target, options.one_way_ms / 1e3, sys.stdin.fileno()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

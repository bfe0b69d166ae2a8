"""HTTP/1.1 over one keep-alive connection, as lean as trio allows.

The head of an answer is parsed by httptools (llhttp, in C): 4 us for a dozen headers, h11 takes
89. Bodies do not pass through the parser: they are received straight into one buffer and
written from there to the file, unless they come chunked. System calls are made on
non-blocking sockets, and trio is asked only when one would block; ``ssl`` sockets are used the same
way, since ``trio.SSLStream`` copies each record twice more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import sys
import termios
from collections.abc import Awaitable, Callable
from typing import Protocol

import httptools
import trio

from s3mount.errors import DamagedBodyError, NetworkError, RejectedError, ServerFaultError
from s3mount.refs import FileSlice
from s3mount.s3.headers import whole_number

HEAD_BYTES_MAX = 64 * 1024
FIRST_BYTES = 80 * 1024
"""Room for an answer's head and the 64 KiB of a small file or block, which come together: one wait, one receive."""
RECEIVE_BYTES = 1 << 20
"""Received and written in pieces of up to this. 0.28 CPU s/GiB on one core; with 128 KiB 0.37, with
the file mapped 0.29 to 0.37, with splice 0.22, which no checksum can look into; SO_RCVLOWAT changes nothing.
"""
SEND_BYTES = 256 * 1024
FAIR_BYTES = 4 << 20
"""After moving this much without waiting, other tasks get their turn."""
UNSENT_BYTES = 512 * 1024
"""A send that blocked goes on when the kernel holds less than this unsent."""
LOOK_S = 1.0
"""How often the kernel is asked whether it moves on with what it was given to send."""
LARGE_BYTES = 256 * 1024
"""Smaller requests leave the kernel at once, so nobody asks."""

AnySocket = socket.socket | ssl.SSLSocket
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_BLOCKED = (BlockingIOError, ssl.SSLWantReadError)

_shared = memoryview(bytearray(RECEIVE_BYTES))
"""Where bodies are received. Filled and emptied without yielding, so all connections share it."""


class BrokenConnectionError(NetworkError):
    """The peer closed or reset. ``answered`` tells whether any byte of an answer had come."""

    answered = False


class Watch(Protocol):
    """Told of every sign of life of an exchange; sets its deadline."""

    def sent(self, n: int) -> None:
        """``n`` more bytes of the request are with the kernel."""
        ...

    def queued(self, n: int) -> None:
        """Of what was sent, the peer has not acknowledged ``n`` bytes yet."""
        ...

    def sent_all(self) -> None:
        """The request is with the kernel; the answer is awaited."""
        ...

    def answer_began(self) -> None:
        """The first bytes of the answer are here."""
        ...

    def received(self, n: int) -> None:
        """``n`` more bytes of the body are with the sink."""
        ...

    def paused(self, seconds: float) -> None:
        """The exchange rests so long, by a rate that holds it."""
        ...


class Pace(Protocol):
    """A rate that bodies are held to."""

    @property
    def piece_bytes(self) -> int:
        """How much should be moved at once."""
        ...

    def moved(self, n: int) -> float:
        """``n`` bytes were: seconds to wait before any more."""
        ...


Sink = Callable[[memoryview], None]


class Head:
    """Status and headers (names in lower case) of one answer."""

    __slots__ = ("headers", "keep_alive", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.keep_alive = False

    @property
    def length(self) -> int | None:
        """The Content-Length; ``None`` when the body is chunked or lasts until the close."""
        if self.chunked or "content-length" not in self.headers:
            return None
        found = whole_number(self.headers["content-length"].strip())
        if found is None:
            raise ServerFaultError("the answer's Content-Length is no number")
        return found

    @property
    def chunked(self) -> bool:
        """Does the body come in chunks?"""
        return "transfer-encoding" in self.headers

    @property
    def has_end(self) -> bool:
        """Can the body's end be seen, without the connection's end?"""
        framed = self.chunked or "content-length" in self.headers
        return framed or self.status in (204, 304)


class _Collector:
    """What httptools reports of one answer."""

    __slots__ = ("_parser", "chunks", "complete", "head", "headers_complete")

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self.head = Head()
        self.headers_complete = False
        self.complete = False
        self.chunks: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self.head.headers
        # One character is one byte as it came, so that it can go back as it came.
        text = value.decode("latin-1")
        key = name.decode("latin-1").lower()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        self.headers_complete = True
        if self._parser is not None:
            self.head.status = self._parser.get_status_code()
            # Asked here, as llhttp answers no once a message without a body is complete.
            self.head.keep_alive = self._parser.should_keep_alive()

    def feed(self, data: bytes | memoryview) -> None:
        """Parse more of the answer. Raises ServerFaultError when it is no HTTP."""
        try:
            if self._parser is not None:
                self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ServerFaultError(f"the answer is not HTTP: {error}") from error

    def release(self) -> None:
        """Let go of the parser, which holds this object in turn: nothing is left to the collector."""
        self._parser = None

    def on_body(self, data: bytes) -> None:
        self.chunks.append(data)

    def on_message_complete(self) -> None:
        self.complete = True


class Connection:
    """One connection, used by one exchange at a time; closed by its user after any failure."""

    __slots__ = (
        "_begin",
        "_buffer",
        "_bytes",
        "_draining",
        "_end",
        "_plain",
        "_socket",
        "down",
        "idle_since_s",
        "up",
    )

    def __init__(self, connected: AnySocket) -> None:
        self._socket = connected
        self._plain = not isinstance(connected, ssl.SSLSocket)
        self._bytes = bytearray(FIRST_BYTES)
        self._buffer = memoryview(self._bytes)
        self._begin = self._end = 0
        self._draining = False
        self.idle_since_s = 0.0
        self.up: Pace | None = None
        self.down: Pace | None = None

    def tls_session(self, context: ssl.SSLContext) -> ssl.SSLSession | None:
        """The session that another connection of ``context`` may take over, if there is one."""
        secured = self._socket
        if not isinstance(secured, ssl.SSLSocket) or secured.context is not context:
            return None
        session = secured.session
        return session if session is not None and session.has_ticket else None

    def close(self) -> None:
        """Close at once; whatever is under way fails. May be repeated."""
        self._socket.close()

    def is_stale(self) -> bool:
        """Did the peer close, or say something unasked, while the connection was idle?"""
        try:
            if self._plain:
                self._socket.recv(1, _PEEK)
            else:
                self._socket.recv(1)
        except _BLOCKED:
            return False
        except OSError:
            return True
        return True

    async def send(self, head: bytes, body: bytes | None, watch: Watch) -> None:
        """Send a request whose body is in memory. Raises BrokenConnectionError."""
        view = memoryview(head + body if body else head)
        self._draining = len(view) >= LARGE_BYTES
        done = 0
        pace = self.up if body else None
        at_once = FAIR_BYTES if pace is None else len(head) + pace.piece_bytes
        try:
            while done < len(view):
                try:
                    n = self._socket.send(view[done : done + at_once])
                except (BlockingIOError, ssl.SSLWantWriteError):
                    await self._watched(trio.lowlevel.wait_writable, watch)
                except ssl.SSLWantReadError:
                    await trio.lowlevel.wait_readable(self._socket)
                else:
                    done += n
                    watch.sent(n)
                    if pace is not None:
                        await _pay(pace, n, watch)
        except OSError as error:
            raise broken(error) from error
        watch.sent_all()

    async def send_file(self, head: bytes, fd: int, body: FileSlice, watch: Watch) -> None:
        """Send a request whose body is a piece of the open file ``fd``.

        Raises BrokenConnectionError, and RejectedError when the file ends too early.
        """
        try:
            if self._plain:
                await self._send_file_by_kernel(head, fd, body, watch)
            else:
                await self._send_file_by_copy(head, fd, body, watch)
        except OSError as error:
            if error.errno == errno.EIO:
                raise RejectedError(f"{body.path} cannot be read: {error.strerror}") from error
            raise broken(error) from error
        watch.sent_all()

    async def _send_file_by_kernel(
        self, head: bytes, fd: int, body: FileSlice, watch: Watch
    ) -> None:
        self._draining = body.length >= LARGE_BYTES
        sent = self._socket.send(head, socket.MSG_MORE)
        if sent != len(head):
            raise BrokenPipeError("no room for a request's head")
        offset, stop, unfair = body.offset, body.offset + body.length, 0
        out, pace = self._socket.fileno(), self.up
        while offset < stop:
            at_once = FAIR_BYTES if pace is None else pace.piece_bytes
            try:
                n = os.sendfile(out, fd, offset, min(stop - offset, at_once))
            except BlockingIOError:
                await self._watched(trio.lowlevel.wait_writable, watch)
                unfair = 0
                continue
            if n == 0:
                raise DamagedBodyError(f"{body.path} ends inside the part to send")
            offset += n
            watch.sent(n)
            unfair += n
            if pace is not None:
                await _pay(pace, n, watch)
            elif unfair >= FAIR_BYTES:
                await trio.lowlevel.checkpoint()
                unfair = 0

    async def _send_file_by_copy(self, head: bytes, fd: int, body: FileSlice, watch: Watch) -> None:
        self._draining = body.length >= LARGE_BYTES
        pending = memoryview(head)
        buffer = memoryview(bytearray(SEND_BYTES))
        offset, stop, unfair = body.offset, body.offset + body.length, 0
        pace = self.up
        while pending or offset < stop:
            if not pending:
                at_once = SEND_BYTES if pace is None else min(SEND_BYTES, pace.piece_bytes)
                n = os.preadv(fd, [buffer[: min(at_once, stop - offset)]], offset)
                if n == 0:
                    raise DamagedBodyError(f"{body.path} ends inside the part to send")
                pending = buffer[:n]
                offset += n
            try:
                n = self._socket.send(pending)
            except ssl.SSLWantWriteError:
                await self._watched(trio.lowlevel.wait_writable, watch)
                unfair = 0
                continue
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._socket)
                continue
            pending = pending[n:]
            watch.sent(n)
            unfair += n
            if pace is not None:
                await _pay(pace, n, watch)
            elif unfair >= FAIR_BYTES:
                await trio.lowlevel.checkpoint()
                unfair = 0

    async def _watched(self, wait: Callable[[AnySocket], Awaitable[None]], watch: Watch) -> None:
        """Wait for the socket, and tell meanwhile how much of what was sent is still under way.

        The kernel takes megabytes at once; on a slow line they need a minute, without a hang.
        """
        while self._draining:
            with trio.move_on_after(LOOK_S):
                await wait(self._socket)
                return
            queued = self._queued()
            watch.queued(queued)
            self._draining = queued > 0
        await wait(self._socket)

    def _queued(self) -> int:
        """Bytes sent and not yet acknowledged (tcp(7), SIOCOUTQ)."""
        answer = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(answer, sys.byteorder)

    async def read_head(self, watch: Watch) -> Head:
        """The head of the answer; interim 1xx answers are passed over.

        Raises BrokenConnectionError when the peer closed, ServerFaultError when it is no HTTP.
        """
        seen_any = False
        while True:
            stop = self._bytes.find(b"\r\n\r\n", self._begin, self._end)
            if stop >= 0:
                head = self._parse_head(stop + 4 - self._begin)
                if head.status >= 200:
                    return head
                continue
            if self._end - self._begin >= HEAD_BYTES_MAX:
                raise ServerFaultError("the answer's head is too long")
            try:
                if self._draining:
                    await self._watched(trio.lowlevel.wait_readable, watch)
                    self._draining = False
                await self._receive_more()
            except BrokenConnectionError as error:
                error.answered = seen_any
                raise
            if not seen_any:
                seen_any = True
                watch.answer_began()

    async def _receive_more(self) -> None:
        """Receive into the buffer behind what is there; waits first, as the answer is rarely here."""
        if self._end == len(self._buffer):
            self._end -= self._begin
            self._buffer[: self._end] = self._buffer[self._begin :]
            self._begin = 0
        while True:
            if self._plain or not self._socket.pending():  # type: ignore[union-attr]
                await trio.lowlevel.wait_readable(self._socket)
            try:
                n = self._socket.recv_into(self._buffer[self._end :])
            except _BLOCKED:
                continue
            except OSError as error:
                raise broken(error) from error
            if n == 0:
                raise BrokenConnectionError("the store closed the connection")
            self._end += n
            return

    def _take(self, n: int) -> memoryview:
        """Remove the first ``n`` bytes of the buffer; they stay where they are until more is received."""
        taken = self._buffer[self._begin : self._begin + n]
        self._begin += n
        if self._begin == self._end:
            self._begin = self._end = 0
        return taken

    def _parse_head(self, length: int) -> Head:
        collector = _Collector()
        collector.feed(self._take(length))
        collector.release()
        if not collector.headers_complete:
            raise ServerFaultError("the answer is not HTTP: its head is incomplete")
        return collector.head

    async def read_body(self, head: Head, sink: Sink, watch: Watch) -> int:
        """Hand the body of an answer (not to HEAD) to ``sink`` in pieces; its length.

        Raises BrokenConnectionError when it is shorter than announced, ServerFaultError when it is
        no HTTP. What ``sink`` raises passes through.
        """
        if head.status in (204, 304):
            return 0
        if head.chunked:
            return await self._read_chunked(head, sink, watch)
        length = head.length
        done = 0
        while length is None or done < length:
            n = self._fill(sink, None if length is None else length - done)
            if n > 0:
                done += n
                watch.received(n)
                if self.down is not None:
                    await _pay(self.down, n, watch)
                if done == length:
                    break
            elif n < 0 and length is None:
                break
            elif n < 0:
                error = BrokenConnectionError(f"the answer ended after {done} of {length} bytes")
                error.answered = True
                raise error
            if n >= RECEIVE_BYTES:
                await trio.lowlevel.checkpoint()
            elif self.down is None or n <= 0:
                await trio.lowlevel.wait_readable(self._socket)
        return done

    def _fill(self, sink: Sink, wanted: int | None) -> int:
        """Receive what is there into the shared buffer, hand it on; bytes, or -1 at the end.

        What comes behind the body stays in the connection's buffer.
        """
        first = self._end - self._begin
        if wanted is not None:
            first = min(first, wanted)
            wanted -= first
        if first:
            sink(self._take(first))
        at_once = RECEIVE_BYTES if self.down is None else self.down.piece_bytes
        limit = at_once if wanted is None else min(at_once, wanted)
        n, ended = 0, False
        while n < limit:
            try:
                got = self._socket.recv_into(_shared[n:limit])
            except _BLOCKED:
                break
            except OSError as error:
                failure = broken(error)
                failure.answered = True
                raise failure from error
            if got == 0:
                ended = True
                break
            n += got
        if n:
            sink(_shared[:n])
        return -1 if ended and not first + n else first + n

    async def _read_chunked(self, head: Head, sink: Sink, watch: Watch) -> int:
        collector = _Collector()
        collector.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        total = 0
        while True:
            if not self.is_clean:
                collector.feed(self._take(self._end - self._begin))
                before = total
                for chunk in collector.chunks:
                    total += len(chunk)
                    sink(memoryview(chunk))
                    watch.received(len(chunk))
                collector.chunks.clear()
                if self.down is not None and total > before:
                    await _pay(self.down, total - before, watch)
            if collector.complete:
                collector.release()
                return total
            try:
                await self._receive_more()
            except BrokenConnectionError as error:
                error.answered = True
                raise

    @property
    def is_clean(self) -> bool:
        """Is nothing left over from the last answer?"""
        return self._begin == self._end


async def _pay(pace: Pace, n: int, watch: Watch) -> None:
    """Rest after ``n`` bytes of a body as long as the rate wants."""
    wait_s = pace.moved(n)
    if wait_s > 0:
        watch.paused(wait_s)
        await trio.sleep(wait_s)
    else:
        await trio.lowlevel.checkpoint()


def broken(error: OSError) -> BrokenConnectionError:
    """The connection's end that a system call reported, as one line."""
    reason = getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
    return BrokenConnectionError(f"the connection broke: {reason}")

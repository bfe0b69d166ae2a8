"""Connections to one store: opened when needed, reused while they live, bounded in number."""

from __future__ import annotations

import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
import trio

from s3mount.errors import CertificateError, NetworkError, ServerFaultError
from s3mount.s3.http.wire import UNSENT_BYTES, Connection

IDLE_S_MAX = 15.0
"""S3 closes idle connections after about 20 s; a connection is not reused close to that."""


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy; ``authorization`` is the value of Proxy-Authorization, if any."""

    host: str
    port: int
    authorization: str | None = None


class Origin(msgspec.Struct, frozen=True):
    """Where connections go: ``tls`` is ``None`` for plain http."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    proxy: Proxy | None = None

    def same_place(self, other: Origin) -> bool:
        """Do connections to ``other`` go the same way?"""
        ours = (self.host, self.port, self.tls is None, self.proxy)
        return ours == (other.host, other.port, other.tls is None, other.proxy)

    @property
    def host_header(self) -> str:
        """The Host header: the port is named unless it is the scheme's own."""
        usual = 443 if self.tls else 80
        return bracketed(self.host) if self.port == usual else self.authority

    @property
    def authority(self) -> str:
        """Host and port, always both, as CONNECT wants them."""
        return f"{bracketed(self.host)}:{self.port}"


def bracketed(host: str) -> str:
    """A host as it stands before a port: addresses of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def split_origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http or https URL."""
    parts = urlsplit(url)
    return (
        parts.scheme,
        parts.hostname or "",
        parts.port or (443 if parts.scheme == "https" else 80),
    )


class Pool:
    """Connections to ``origin``. How many are in use is bounded by those who ask; idle ones by
    how many were in use at once. ``on_connected`` hears of each new one, before TLS.
    """

    def __init__(
        self, origin: Origin, on_connected: Callable[[socket.socket], None] = lambda raw: None
    ) -> None:
        self.origin = origin
        self._on_connected = on_connected
        self._idle: deque[Connection] = deque()
        self._session: ssl.SSLSession | None = None
        self.resumed = 0
        """Connections whose TLS session was taken over from an earlier one: half a handshake."""

    def rebind(self, origin: Origin) -> None:
        """New connections trust what ``origin`` says; it is the same place. Repeatable."""
        self.origin = origin
        self._session = None

    def take_idle(self, now_s: float) -> Connection | None:
        """The idle connection used last that still lives; dead and old ones are closed."""
        while self._idle:
            connection = self._idle.pop()
            if now_s - connection.idle_since_s <= IDLE_S_MAX and not connection.is_stale():
                return connection
            connection.close()
        return None

    def give_back(self, connection: Connection, now_s: float) -> None:
        """Keep a connection whose exchange ended cleanly for the next."""
        if not connection.idle_since_s and self.origin.tls is not None:
            # Its ticket came with its first answer (RFC 8446, 4.6.1).
            self._session = connection.tls_session(self.origin.tls) or self._session
        connection.idle_since_s = now_s
        self._idle.append(connection)
        while now_s - self._idle[0].idle_since_s > IDLE_S_MAX:
            self._idle.popleft().close()

    async def connect(self) -> Connection:
        """A fresh connection. Raises NetworkError."""
        raw = await self._connect_tcp()
        try:
            if self.origin.proxy is not None and self.origin.tls is not None:
                await _open_tunnel(raw, self.origin)
            if self.origin.tls is not None:
                secured = await _start_tls(raw, self.origin.tls, self.origin.host, self._session)
                self.resumed += bool(secured.session_reused)
                return Connection(secured)
        except BaseException:
            raw.close()
            raise
        return Connection(raw)

    async def _connect_tcp(self) -> socket.socket:
        target = self.origin.proxy or self.origin
        try:
            stream = await trio.open_tcp_stream(target.host, target.port)
        except OSError as error:
            raise NetworkError(_describe_connect(error, target.host, target.port)) from error
        raw = socket.socket(fileno=stream.socket.detach())
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._on_connected(raw)
        return raw

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()


def _describe_connect(error: OSError, host: str, port: int) -> str:
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    last = causes[-1]
    if isinstance(last, BaseExceptionGroup):
        last = last.exceptions[0]
    reason = str(last) or str(error)
    if isinstance(last, OSError) and last.errno and last.errno > 0:
        # Without the address once more, which trio puts in front of it.
        reason = os.strerror(last.errno)
    return f"cannot connect to {bracketed(host)}:{port}: {reason}"


async def _start_tls(
    raw: socket.socket, context: ssl.SSLContext, host: str, session: ssl.SSLSession | None
) -> ssl.SSLSocket:
    """Shake hands. Raises NetworkError; CertificateError when the certificate will not do."""
    secured = context.wrap_socket(
        raw, server_hostname=host, do_handshake_on_connect=False, session=session
    )
    try:
        await _shake_hands(secured)
    except ssl.SSLCertVerificationError as error:
        secured.close()
        raise CertificateError(_describe_certificate(error, host)) from error
    except OSError as error:
        secured.close()
        reason = getattr(error, "reason", None) or error.strerror or error
        raise NetworkError(f"no TLS with {host}: {reason}") from error
    except BaseException:
        secured.close()
        raise
    return secured


def _describe_certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    """What is wrong, and who can mend it. The codes are OpenSSL's (X509_V_ERR_..., x509_vfy.h)."""
    said = {
        9: "is not valid yet: is the clock of this machine right?",
        10: "has expired: the server needs a new one",
        20: "does not lead to a trusted authority: the server must send the whole chain, or "
        "--ca-bundle (AWS_CA_BUNDLE) name the authority",
        62: "is for another name: the server needs one for this name",
        64: "is for another address: the server needs one for this address",
    }.get(error.verify_code)
    if said is None:
        said = f"is not trusted ({error.verify_message}); name its authority by AWS_CA_BUNDLE"
    return f"the certificate of {host} {said}"


async def _shake_hands(secured: ssl.SSLSocket) -> None:
    while True:
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(secured)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(secured)
        else:
            return


async def _open_tunnel(raw: socket.socket, origin: Origin) -> None:
    """Ask the proxy to connect through (RFC 9110, CONNECT). Raises NetworkError."""
    where = origin.authority
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if origin.proxy is not None and origin.proxy.authorization:
        lines.append(f"Proxy-Authorization: {origin.proxy.authorization}")
    try:
        raw.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            await trio.lowlevel.wait_readable(raw)
            piece = raw.recv(4096)
            answer += piece
            if not piece or len(answer) > 65536:
                raise ServerFaultError("the proxy did not answer CONNECT with HTTP")
    except OSError as error:
        raise NetworkError(f"the proxy broke the connection: {error.strerror}") from error
    status = answer.split(b"\r\n", 1)[0].decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        raise NetworkError(f"the proxy refused to connect to {where}: {status}")

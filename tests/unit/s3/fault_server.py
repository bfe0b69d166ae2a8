"""A little S3 server in the test's own loop that can be told to misbehave, request by request."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import trio

from s3mount.config import StoreConfig, TimeoutSettings
from s3mount.s3.checksums import crc64nvme
from s3mount.s3.client import S3Store
from tests.servers.lies import Lie

Behaviour: TypeAlias = Callable[["Exchange"], Awaitable[None]]

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
START = (
    b"HTTP/1.1 %d X\r\nDate: Sat, 21 Nov 2026 01:24:01 GMT\r\n"
    b"x-amz-request-id: 0123456789ABCDEF\r\n"
)


class Exchange:
    """One request that arrived: its parts, and the means to answer it."""

    def __init__(self, server: FaultServer, stream: Any, head: bytes, body: bytes = b"") -> None:
        self.server = server
        self.stream = stream
        self.head = head
        first, *lines = head.decode().split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.headers = {
            name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
        }
        self.body = body

    @property
    def key(self) -> str:
        return unquote(self.target.partition("?")[0].removeprefix("/bucket").removeprefix("/"))

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    async def document(self, root: str, inside: str = "") -> None:
        """A document of S3, with what is inside it."""
        text = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{NAMESPACE}">{inside}</{root}>'
        )
        await self.answer(200, text.encode(), {"Content-Type": "application/xml"})

    async def answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        """A whole answer."""
        await self.stream.send_all(self.start(status, len(body), headers) + body)

    def start(self, status: int, length: int, headers: dict[str, str] | None = None) -> bytes:
        lines = {"Content-Length": str(length), **(headers or {})}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return START % status + text.encode() + b"\r\n"

    async def error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        await self.answer(status, f"<Error><Code>{code}</Code></Error>".encode(), headers)

    def store(self) -> dict[str, str]:
        """Take a PUT's effect; the headers that answer it."""
        self.server.objects[self.key] = self.body
        self.server.metadata[self.key] = {
            name: value for name, value in self.headers.items() if name.startswith("x-amz-meta-")
        }
        answered = {"ETag": f'"{md5(self.body)}"'}
        crc = self.headers.get("x-amz-checksum-crc64nvme")
        if crc and self.server.echoes:
            answered["x-amz-checksum-crc64nvme"] = crc
        return answered

    def read(self) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of a GET or HEAD."""
        content = self.server.objects[self.key]
        headers = {
            "ETag": f'"{md5(content)}"',
            "Last-Modified": "Sat, 21 Nov 2026 01:24:00 GMT",
            **self.server.metadata.get(self.key, {}),
        }
        if self.server.tags:
            headers["x-amz-tagging-count"] = str(len(self.server.tags))
        wanted = self.headers.get("range")
        if self.server.tells_checksums:
            headers["x-amz-checksum-crc64nvme"] = crc64nvme(content)
        if wanted is None:
            return 200, content, headers
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return 206, content[start:stop], headers


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def listed(server: FaultServer, tag: str, prefix: str) -> str:
    """What a list says of the objects below ``prefix``."""
    about = (
        "<IsLatest>true</IsLatest><VersionId>null</VersionId>"
        "<LastModified>2026-11-21T01:24:00Z</LastModified>"
    )
    return "<IsTruncated>false</IsTruncated>" + "".join(
        f"<{tag}><Key>{escape(key)}</Key>{about}<ETag>&quot;{md5(content)}&quot;</ETag>"
        f"<Size>{len(content)}</Size></{tag}>"
        for key, content in sorted(server.objects.items())
        if key.startswith(prefix)
    )


async def behave_in_words(exchange: Exchange) -> bool:
    """The requests whose answer is a document; ``False``: it is another one."""
    server, query, part = exchange.server, exchange.query, exchange.query.get("partNumber")
    prefix = query.get("prefix", "")
    copied = "x-amz-copy-source" in exchange.headers
    if copied:
        source = unquote(exchange.headers["x-amz-copy-source"]).removeprefix("bucket/")
        if source not in server.objects:
            await exchange.error(404, "NoSuchKey")
            return True
        content = server.objects[source]
        if part is None:
            server.objects[exchange.key] = content
        else:
            server.parts[int(part)] = content
        root = "CopyPartResult" if part else "CopyObjectResult"
        await exchange.document(root, f"<ETag>&quot;{md5(content)}&quot;</ETag>")
    elif exchange.method == "POST" and "uploads" in query:
        server.parts.clear()
        await exchange.document("InitiateMultipartUploadResult", "<UploadId>id</UploadId>")
    elif exchange.method == "POST" and "uploadId" in query:
        server.objects[exchange.key] = b"".join(server.parts[n] for n in sorted(server.parts))
        tag = f"{md5(b''.join(bytes.fromhex(md5(p)) for p in server.parts.values()))}-1"
        await exchange.document("CompleteMultipartUploadResult", f"<ETag>&quot;{tag}&quot;</ETag>")
    elif exchange.method == "POST" and "delete" in query:
        wanted = ElementTree.fromstring(exchange.body)
        keys = [each.text or "" for each in wanted.iter() if each.tag.endswith("}Key")]
        for key in keys:
            server.objects.pop(key, None)
        said = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        await exchange.document("DeleteResult", said)
    elif exchange.method != "GET" or (exchange.key and not query.keys() & {"uploadId", "tagging"}):
        return False
    elif "tagging" in query:
        tags = "".join(
            f"<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>"
            for name, value in server.tags.items()
        )
        await exchange.document("Tagging", f"<TagSet>{tags}</TagSet>")
    elif "uploadId" in query:
        parts = "".join(
            f"<Part><PartNumber>{n}</PartNumber><Size>{len(p)}</Size><ETag>{md5(p)}</ETag></Part>"
            for n, p in server.parts.items()
        )
        await exchange.document("ListPartsResult", f"<IsTruncated>false</IsTruncated>{parts}")
    elif "uploads" in query:
        await exchange.document("ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>")
    elif "versioning" in query:
        await exchange.document("VersioningConfiguration")
    elif "versions" in query:
        await exchange.document("ListVersionsResult", listed(server, "Version", prefix))
    else:
        await exchange.document("ListBucketResult", listed(server, "Contents", prefix))
    return True


async def behave(exchange: Exchange) -> None:
    """What a server should do."""
    if await behave_in_words(exchange):
        return
    part = exchange.query.get("partNumber")
    if exchange.method == "PUT" and part is not None:
        exchange.server.parts[int(part)] = exchange.body
        await exchange.answer(200, headers={"ETag": f'"{md5(exchange.body)}"'})
    elif exchange.method == "PUT":
        current = exchange.server.objects.get(exchange.key)
        if exchange.headers.get("if-none-match") == "*" and current is not None:
            await exchange.error(412, "PreconditionFailed")
            return
        await exchange.answer(200, headers=exchange.store())
    elif exchange.method == "DELETE":
        if "uploadId" not in exchange.query:
            exchange.server.objects.pop(exchange.key, None)
        await exchange.answer(204)
    elif exchange.key not in exchange.server.objects:
        if exchange.method == "HEAD":
            await exchange.answer(404)
        else:
            await exchange.error(404, "NoSuchKey")
    else:
        status, body, headers = exchange.read()
        if exchange.method == "HEAD":
            await exchange.stream.send_all(exchange.start(status, len(body), headers))
        else:
            await exchange.answer(status, body, headers)


class FaultServer:
    """Objects in memory. ``script`` holds the behaviours of the next requests; then ``usually``."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.parts: dict[int, bytes] = {}
        self.script: deque[Behaviour] = deque()
        self.usually: Behaviour = behave
        self.seen: list[Exchange] = []
        self.connections = 0
        self.running = 0
        self.running_max = 0
        self.echoes = True
        self.tells_checksums = False
        self.tags: dict[str, str] = {}

    def then(self, *behaviours: Behaviour) -> None:
        """The next requests are met like this."""
        self.script.extend(behaviours)

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        pending = b""
        try:
            while True:
                while b"\r\n\r\n" not in pending:
                    piece = await stream.receive_some()
                    if not piece:
                        return
                    pending += piece
                head, _, pending = pending.partition(b"\r\n\r\n")
                pending = await self._meet(Exchange(self, stream, head), pending)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _meet(self, exchange: Exchange, pending: bytes) -> bytes:
        self.seen.append(exchange)
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            behaviour = self.script.popleft() if self.script else self.usually
            if getattr(behaviour, "before_body", False):
                exchange.body = pending
                await behaviour(exchange)
                return b""
            length = int(exchange.headers.get("content-length", "0"))
            while len(pending) < length:
                piece = await exchange.stream.receive_some()
                if not piece:
                    raise trio.BrokenResourceError("the client went away")
                pending += piece
            exchange.body, pending = pending[:length], pending[length:]
            await behaviour(exchange)
            return pending
        finally:
            self.running -= 1


async def hang(exchange: Exchange) -> None:
    """No answer, ever; ends when the client closes."""
    while await exchange.stream.receive_some():
        pass
    raise trio.BrokenResourceError("the client gave up")


async def reset(exchange: Exchange) -> None:
    """The connection is reset."""
    exchange.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1" + bytes(7))
    exchange.stream.socket.close()
    raise trio.BrokenResourceError("reset")


async def close(exchange: Exchange) -> None:
    """The connection is closed without an answer."""
    await exchange.stream.aclose()
    raise trio.BrokenResourceError("closed")


def halfway(then: Behaviour) -> Behaviour:
    """Half of the answer to a GET, then something else."""

    async def send_half(exchange: Exchange) -> None:
        status, body, headers = exchange.read()
        start = exchange.start(status, len(body), headers)
        await exchange.stream.send_all(start + body[: len(body) // 2])
        await then(exchange)

    return send_half


def stored_but(then: Behaviour) -> Behaviour:
    """A PUT takes effect, but the answer is something else."""

    async def store(exchange: Exchange) -> None:
        exchange.store()
        await then(exchange)

    return store


def paced(piece: int, every_s: float) -> Behaviour:
    """The body of a GET comes ``piece`` bytes every ``every_s`` seconds."""

    async def send(exchange: Exchange) -> None:
        status, body, headers = exchange.read()
        await exchange.stream.send_all(exchange.start(status, len(body), headers))
        for start in range(0, len(body), piece):
            await trio.sleep(every_s)
            await exchange.stream.send_all(body[start : start + piece])

    return send


def refuse(status: int, code: str, headers: dict[str, str] | None = None) -> Behaviour:
    """An error with S3's code."""

    async def send(exchange: Exchange) -> None:
        await exchange.error(status, code, headers)

    return send


def lying(lie: Lie) -> Behaviour:
    """Somebody else answers."""

    async def send(exchange: Exchange) -> None:
        if lie.is_done:
            await behave(Exchange(exchange.server, Deaf(), exchange.head, exchange.body))
        await exchange.stream.send_all(lie.answer(to_head=exchange.method == "HEAD"))

    return send


class Deaf:
    """Where an answer goes that is lost."""

    async def send_all(self, data: bytes) -> None:
        """Nothing."""
        await trio.lowlevel.checkpoint()


def without(name: str) -> Behaviour:
    """A right answer that lacks one header."""

    def change(head: bytes, body: bytes) -> tuple[bytes, bytes]:
        lines = [
            line
            for line in head.split(b"\r\n")
            if not line.lower().startswith(name.encode() + b":")
        ]
        return b"\r\n".join(lines), body

    return changed(change)


def changed(change: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> Behaviour:
    """A right answer whose head and body become others on the way."""

    async def send(exchange: Exchange) -> None:
        kept = Kept()
        await behave(Exchange(exchange.server, kept, exchange.head, exchange.body))
        head, body = change(*kept.data.split(b"\r\n\r\n", 1))
        await exchange.stream.send_all(head + b"\r\n\r\n" + body)

    return send


class Kept:
    """Where an answer goes that is changed before it is sent."""

    def __init__(self) -> None:
        self.data = b""

    async def send_all(self, data: bytes) -> None:
        """Keep it."""
        self.data += data
        await trio.lowlevel.checkpoint()


def raw(data: bytes) -> Behaviour:
    """These bytes, whatever they are, and the end of the connection."""

    async def send(exchange: Exchange) -> None:
        await exchange.stream.send_all(data)
        await close(exchange)

    return send


def refuse_early(status: int, code: str) -> Behaviour:
    """An error before the body was read, and the end of the connection."""

    async def send(exchange: Exchange) -> None:
        await exchange.error(status, code, {"Connection": "close"})
        with trio.move_on_after(1):
            await exchange.stream.receive_some()
        await close(exchange)

    send.before_body = True  # type: ignore[attr-defined]
    return send


@asynccontextmanager
async def faulty_store(
    *,
    tries_max: int = 8,
    connections_max: int = 128,
    receive_buffer: int = 0,
    offline_wait_s: float = 10.0,
    **settings: Any,
) -> AsyncIterator[tuple[FaultServer, S3Store]]:
    """A server and a store that talks to it. A small ``receive_buffer`` makes its line a thin one.

    ``settings`` are more of StoreConfig's.
    """
    server = FaultServer()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        if receive_buffer:
            listeners[0].socket.setsockopt(
                trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer
            )
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        config = StoreConfig(
            bucket="bucket",
            endpoint_url=f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}",
            region="us-east-1",
            path_style=True,
            timeouts=TimeoutSettings(tries=tries_max),
            connections_max=connections_max,
            offline_wait_s=offline_wait_s,
            **settings,
        )
        async with S3Store(config) as store:
            yield server, store
        nursery.cancel_scope.cancel()

"""Sources at http:// and https:// URLs: in parallel ranges where the server gives them, else as one stream.

A range is asked for on the condition that the file is still the one that it was, and goes on where it was cut off.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import httpx2 as httpx
import trio

from s3mount.bulk.ranged import RangedSource, Write
from s3mount.bulk.sources import Read
from s3mount.errors import SourceError
from s3mount.flow.backoff import Backoff
from s3mount.refs import ByteRange
from s3mount.transfer.source import SourceChangedError

TRIES_MAX = 6
"""So often in a row nothing may come of a range before it is given up."""
TIMEOUT_S = 30.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HttpSource(RangedSource):
    """A URL whose server gives ranges. ``open_url`` makes it."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def look(self) -> bool:
        """Ask what the URL has; does the server give ranges? Raises SourceError."""
        for left in reversed(range(TRIES_MAX)):
            try:
                async with self._client.stream(
                    "GET", self._url, headers={"range": "bytes=0-0"}
                ) as answer:
                    return self._told(answer)
            except httpx.TransportError as error:
                if not left:
                    raise unreachable(error) from error
                await trio.sleep(Backoff().delay_s(TRIES_MAX - left))
        raise AssertionError("unreachable")

    def _told(self, answer: httpx.Response) -> bool:
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if answer.status_code != 206 or found is None:
            if answer.status_code != 416:
                check_status(answer)
            return False
        self.size = int(found[3])
        etag = answer.headers.get("etag", "")
        if not etag or etag.startswith("W/"):
            # A weak ETag may stay when bytes change.
            etag = answer.headers.get("last-modified", "")
        self.validator = etag
        return True

    async def fetch(self, span: ByteRange, write: Write) -> None:
        """See ``RangedSource.fetch``."""
        done, fruitless = 0, 0
        while done < span.length:
            before = done
            try:
                async with aclosing(self._rest(span, done)) as pieces:
                    async for data in pieces:
                        write(data)
                        done += len(data)
            except httpx.TransportError as error:
                fruitless = 0 if done > before else fruitless + 1
                if fruitless >= TRIES_MAX:
                    raise unreachable(error) from error
                await trio.sleep(Backoff().delay_s(fruitless + 1))

    async def _rest(self, span: ByteRange, done: int) -> AsyncGenerator[bytes, None]:
        headers = {"range": f"bytes={span.start + done}-{span.stop - 1}"}
        if self.validator:
            headers["if-range"] = self.validator
        async with self._client.stream("GET", self._url, headers=headers) as answer:
            if answer.status_code in (200, 412, 416):
                raise SourceChangedError("the file at the URL was replaced")
            if answer.status_code >= 500:
                raise httpx.RemoteProtocolError(f"the server answers {answer.status_code}")
            check_status(answer)
            found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
            if found is None or int(found[1]) != span.start + done or int(found[3]) != self.size:
                raise SourceChangedError("the server sent another range, or of another file")
            left = span.length - done
            async for data in answer.aiter_raw():
                yield data[:left]
                left -= len(data)
                if left <= 0:
                    return
            raise httpx.RemoteProtocolError("the answer ended early")


@asynccontextmanager
async def http_client() -> AsyncIterator[httpx.AsyncClient]:
    """A client that follows redirects and asks for bytes as they are."""
    async with httpx.AsyncClient(
        follow_redirects=True,
        timeout=TIMEOUT_S,
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
        headers={"accept-encoding": "identity", "user-agent": "s3mount"},
    ) as client:
        yield client


@asynccontextmanager
async def streamed_url(client: httpx.AsyncClient, url: str) -> AsyncIterator[Read]:
    """All that a URL has, in order, from one request. Raises SourceError."""
    try:
        async with client.stream("GET", url) as answer:
            check_status(answer)
            pieces = answer.aiter_raw()
            rest = b""

            async def read(n: int) -> bytes:
                nonlocal rest
                try:
                    while not rest:
                        rest = await pieces.__anext__()
                except StopAsyncIteration:
                    return b""
                except httpx.TransportError as error:
                    raise unreachable(error) from error
                data, rest = rest[:n], rest[n:]
                return data

            yield read
    except httpx.TransportError as error:
        raise unreachable(error) from error


def check_status(answer: httpx.Response) -> None:
    """Raise SourceError for an answer that is no success."""
    if not answer.is_success:
        raise SourceError(
            f"the server answers {answer.status_code} {answer.reason_phrase}".rstrip()
        )


def unreachable(error: httpx.TransportError) -> SourceError:
    """The error of a server that does not answer."""
    return SourceError(f"it cannot be read: {str(error) or type(error).__name__}")

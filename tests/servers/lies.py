"""What answers in S3's place: captive portals, intercepting proxies, load balancers without back ends.

One table for every test that plays them: a status, what is said of the body, and the body. No answer
of it is S3's, whatever was asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Lie(NamedTuple):
    """An answer that is not S3's. With ``is_done`` the store does what was asked, and its answer is lost."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    is_done: bool = False

    def answer(self, *, to_head: bool = False) -> bytes:
        """The whole answer as it goes over the wire."""
        fields = {"Content-Length": str(len(self.body)), **dict(self.headers)}
        if self.status in NO_BODY:
            fields.pop("Content-Length")
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        body = b"" if to_head or self.status in NO_BODY else self.body
        return f"HTTP/1.1 {self.status} Lie\r\n{lines}\r\n".encode() + body


NO_BODY = (204, 304)
STATUSES = (
    *(200, 201, 204, 206, 301, 302, 304, 307),
    *(400, 401, 403, 404, 405, 407, 409, 411, 412, 413, 416, 429),
    *(500, 501, 502, 503, 504),
)
HTML = (("Content-Type", "text/html"),)
XML = (("Content-Type", "application/xml"),)
PAGE = b"<!DOCTYPE html><html><head><title>Log in</title></head><body>Welcome</body></html>"
BODIES = {
    "empty": ((), b""),
    "html": (HTML, PAGE),
    "html with an etag": ((*HTML, ("ETag", '"5f1a2b3c-52"')), PAGE),
    "truncated error": (XML, b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>The sp'),
    "error without a code": (XML, b"<Error><Message>no</Message></Error>"),
    "truncated list": (
        XML,
        b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated><Contents>',
    ),
    "foreign root": (XML, b'<?xml version="1.0"?><Answer><Fault>no</Fault></Answer>'),
    "json": ((("Content-Type", "application/json"),), b'{"result": "ok"}'),
}

LIES = {
    f"{status} {name}": Lie(status, headers, body)
    for status in STATUSES
    for name, (headers, body) in BODIES.items()
    if status not in NO_BODY or name == "empty"
}
"""Every status with every body."""

SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda body: bytes(len(body)),
    "a page": lambda body: (PAGE * (len(body) // len(PAGE) + 1))[: len(body)],
    "backwards": lambda body: body[::-1],
    "its beginning twice": lambda body: (body[: len(body) // 2] * 3)[: len(body)],
}
"""What becomes of the body of a right answer, under its own head: the length is right, the bytes are wrong."""

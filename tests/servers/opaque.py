"""A relay that gives the objects behind it other ETags: of the form of an MD5, and none.

So stores answer that encrypt with SSE-KMS, or that number what they are given. The exchange is made in both
directions: a client that hands an ETag back (in a condition, or to complete an upload) is understood. The
server must not verify signatures, as headers and bodies change behind them: LocalStack does not.
"""

from __future__ import annotations

import enum
import re
import socket

from tests.servers.counting import Connection, Request
from tests.servers.faulty import FaultyConnection, FaultyRelay, Reply

_DIGITS = b"0123456789abcdef"
_OTHERS = b"76543210fedcba98"
"""Each digit stands for another, and that one for it: what is exchanged twice is as it was."""
_EXCHANGE = bytes.maketrans(_DIGITS, _OTHERS)
_ETAG = re.compile(rb"\b[0-9a-f]{32}\b")
_CONDITIONS = (b"if-match", b"if-none-match", b"x-amz-copy-source-if-match")
_TOLD = re.compile(rb"(?m)^(x-amz-checksum-[^:]*):.*\r\n", re.IGNORECASE)
_TOLD_IN_XML = re.compile(rb"<Checksum(\w+)>[^<]*</Checksum\1>")


class Kind(enum.Enum):
    """What a store tells beside such an ETag."""

    KMS = "that the object is encrypted with a key of KMS, and its checksum"
    CUSTOMER = "that it is encrypted with a key of its user, where it is, and its checksum"
    SILENT = "nothing"


def exchanged(data: bytes) -> bytes:
    """Every ETag in ``data`` as another. Applied twice it is as it was."""
    return _ETAG.sub(lambda match: match[0].translate(_EXCHANGE), data)


class OpaqueRelay(FaultyRelay):
    """A FaultyRelay behind which ETags are no MD5s."""

    def __init__(self, upstream_url: str, kind: Kind) -> None:
        super().__init__(upstream_url)
        self.kind = kind

    def _connection(self, client: socket.socket) -> Connection:
        return _OpaqueConnection(self, client)


class _OpaqueConnection(FaultyConnection):
    """One client connection."""

    _relay: OpaqueRelay

    def _ask(self, request: Request, head: bytes, body: bytes) -> Reply:
        lines = head.split(b"\r\n")
        for number, line in enumerate(lines):
            if line.partition(b":")[0].lower() in _CONDITIONS:
                lines[number] = exchanged(line)
        is_document = request.method == "POST"
        reply = super()._ask(request, b"\r\n".join(lines), exchanged(body) if is_document else body)
        return self._disguised(request, reply)

    def _disguised(self, request: Request, reply: Reply) -> Reply:
        first, _, rest = reply.head.partition(b"\r\n")
        fields = []
        has_etag = False
        for line in rest.splitlines(keepends=True):
            is_etag = line.lower().startswith(b"etag:")
            has_etag |= is_etag
            fields.append(exchanged(line) if is_etag else line)
        head = b"".join(fields)
        body, length = reply.body, reply.length
        if b"<ETag>" in body and b"xml" in head:
            body = _ETAGS_IN_XML.sub(lambda match: exchanged(match[0]), body)
        if self._relay.kind is Kind.SILENT:
            head = _TOLD.sub(b"", head)
            if b"xml" in head:
                body = _TOLD_IN_XML.sub(b"", body)
        elif has_etag and self._relay.kind is Kind.KMS:
            head += b"x-amz-server-side-encryption: aws:kms\r\n"
        if request.method != "HEAD":
            length = len(body)
        return reply._replace(head=first + b"\r\n" + head, body=body, length=length)


_ETAGS_IN_XML = re.compile(rb"<ETag>[^<]*</ETag>")

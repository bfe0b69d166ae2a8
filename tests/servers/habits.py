"""A relay that lets LocalStack answer as other stores do, one habit at a time.

Each habit was seen on a real server, which its comment names. The server must not verify signatures, as
headers and answers change on the way: LocalStack does not.
"""

from __future__ import annotations

import enum
import re
import socket
import threading
import time
from collections.abc import Iterable

from tests.servers.counting import Connection, Request
from tests.servers.faulty import FaultyConnection, FaultyRelay, Reply


class Habit(enum.Enum):
    """What a store does otherwise than S3."""

    NO_IF_MATCH = "501 to If-Match on a PUT, a COPY too (Swift 2.38)"
    COPY_NEVER_ABSENT = "412 to every If-None-Match on a COPY (Swift 2.38)"
    NOT_ATOMIC = "conditional PUTs that come together all win (Swift, Adobe S3Mock)"
    NO_CHECKSUMS_OF_COPIES = "copied parts have no checksum, and completing demands one (MinIO)"
    WRONG_CHECKSUMS_OF_RANGES = (
        "a part copied from a range is told the checksum of other bytes (versitygw)"
    )
    NO_CHECKSUMS_LISTED = (
        "ListParts tells no checksums, and completing demands them (s3proxy, moto)"
    )
    NOTHING_VERIFIED = "wrong checksums and a wrong Content-MD5 are taken (moto)"
    NO_COPY_OF_MARKERS = "a key that ends in a slash cannot be copied (SeaweedFS, versitygw)"
    BARE_MARKERS = "metadata of a key that ends in a slash is dropped (SeaweedFS)"
    MARKERS_ARE_FILES = (
        "a key that ends in a slash makes a file, and 500 below it (rclone serve s3)"
    )
    NO_VERSION_LISTS = "501 to ListObjectVersions (rclone serve s3)"
    NO_PART_COPIES = "an empty answer to UploadPartCopy (rclone serve s3)"
    COPIES_UNTOLD = "an empty document answers a COPY (rclone serve s3)"
    KEEPS_ALL = "403 to every DELETE of an object (no leave to delete, or retention)"
    DATED_WHEN_REPLACED = "a version has the date of the one that replaced it (versitygw)"
    STUCK_VERSION_LISTS = (
        "the second page of ListObjectVersions says that it goes on where it began (versitygw)"
    )
    NO_NEEDLESS_KEYS = "400 to a key for SSE-C for an object that is encrypted otherwise (AWS)"
    NO_CUSTOMER_KEYS = "keys for SSE-C are taken, and nothing is encrypted with them"
    CUT_VERSION_LISTS = "ListObjectVersions leaves the oldest out (Adobe S3Mock)"


class HabitRelay(FaultyRelay):
    """A FaultyRelay behind which a store has these habits."""

    def __init__(self, upstream_url: str, habits: Iterable[Habit]) -> None:
        super().__init__(upstream_url)
        self.habits = frozenset(habits)
        self.together = threading.Barrier(4)
        self.with_checksums: set[str] = set()
        self.copied_parts: set[tuple[str, str]] = set()
        self.marker_files: set[str] = set()
        self.latest: dict[str, str] = {}
        self.replaced: dict[str, str] = {}

    def _connection(self, client: socket.socket) -> Connection:
        return _HabitConnection(self, client)


class _HabitConnection(FaultyConnection):
    """One client connection."""

    _relay: HabitRelay

    def _ask(self, request: Request, head: bytes, body: bytes) -> Reply:
        relay = self._relay
        fields = _fields(head)
        refusal = self._refusal(request, fields, body)
        if refusal is not None:
            return refusal
        if Habit.NOT_ATOMIC in relay.habits and fields.get("if-none-match") == "*":
            head = self._together(request, head)
        if Habit.NO_CUSTOMER_KEYS in relay.habits:
            head = _without(head, _CUSTOMER)
        if Habit.NOTHING_VERIFIED in relay.habits and request.method == "PUT":
            head = _without(head, "x-amz-checksum-", "content-md5", "x-amz-sdk-checksum")
        if Habit.BARE_MARKERS in relay.habits and _is_marker(request):
            head = _without(head, "x-amz-meta-")
        if Habit.NO_CHECKSUMS_OF_COPIES in relay.habits and "x-amz-checksum-crc64nvme" in fields:
            self._note_part(request, fields)
        reply = super()._ask(request, head, body)
        return self._answered(request, fields, reply)

    # ------------------------------------------------------------------ refused

    def _refusal(self, request: Request, fields: dict[str, str], body: bytes) -> Reply | None:
        """The store's refusal of a request that it does not take, if it is one."""
        habits = self._relay.habits
        path, query = request.path, request.query
        is_copy = "x-amz-copy-source" in fields
        is_put = request.method == "PUT" and "partNumber=" not in query
        if Habit.NO_IF_MATCH in habits and is_put and "if-match" in fields:
            return _error(501, "NotImplemented", "Conditional object PUTs are not supported.")
        if Habit.COPY_NEVER_ABSENT in habits and is_copy and "if-none-match" in fields:
            return _error(412, "PreconditionFailed", "At least one precondition did not hold")
        source = fields.get("x-amz-copy-source", "").partition("?")[0]
        if Habit.NO_COPY_OF_MARKERS in habits and (
            source.endswith("/") or (is_copy and path.endswith("/"))
        ):
            return _error(400, "InvalidRequest", "a directory object cannot be copied")
        if Habit.NO_VERSION_LISTS in habits and request.method == "GET" and "versions" in query:
            return _error(501, "NotImplemented", "not implemented")
        if Habit.KEEPS_ALL in habits and request.method == "DELETE" and "uploadId=" not in query:
            return _error(403, "AccessDenied", "Access Denied")
        if Habit.MARKERS_ARE_FILES in habits and any(
            path.startswith(f"{each}/") for each in self._relay.marker_files
        ):
            return _error(500, "InternalError", "not a directory") if is_put else None
        if Habit.NO_PART_COPIES in habits and is_copy and "partNumber=" in query:
            return Reply(b"HTTP/1.1 200 OK\r\n", b"", 0, False)
        if Habit.NO_NEEDLESS_KEYS in habits and self._has_needless_key(request, fields, source):
            why = "The encryption parameters are not applicable to this object."
            refusal = _error(400, "InvalidRequest", why)
            return refusal._replace(body=b"") if request.method == "HEAD" else refusal
        return self._incomplete(request, body)

    def _has_needless_key(self, request: Request, fields: dict[str, str], source: str) -> bool:
        """Does it bring a key for what is read, which has none?"""
        path = f"/{source.lstrip('/')}" if source else request.path
        needs = f"{_COPY_SOURCE_CUSTOMER}key" if source else f"{_CUSTOMER}key"
        if needs not in fields or (not source and request.method not in ("GET", "HEAD")):
            return False
        look = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        there = super()._ask(request._replace(method="HEAD", path=path, query=""), look, b"")
        return there.head.startswith(b"HTTP/1.1 200")

    def _incomplete(self, request: Request, body: bytes) -> Reply | None:
        """The refusal of a CompleteMultipartUpload that lacks what the store demands of it."""
        relay = self._relay
        upload = _upload_of(request)
        if request.method != "POST" or not upload or upload not in relay.with_checksums:
            return None
        lacks = body.count(b"<Part>") > body.count(b"<ChecksumCRC64NVME>")
        has_copies = any(of == upload for of, _ in relay.copied_parts)
        if Habit.NO_CHECKSUMS_OF_COPIES in relay.habits and has_copies:
            return _error(400, "InvalidPart", "checksum missing, want CRC64NVME")
        if Habit.NO_CHECKSUMS_LISTED in relay.habits and lacks:
            return _error(400, "InvalidRequest", "checksum missing for part 7")
        return None

    # ---------------------------------------------------------------- performed

    def _together(self, request: Request, head: bytes) -> bytes:
        """Look at the condition, wait for others that do the same, and write without it."""
        look = _without(head.replace(b"PUT", b"HEAD", 1), "if-none-match", "content-length")
        there = super()._ask(request._replace(method="HEAD"), look, b"")
        if there.head.startswith(b"HTTP/1.1 200"):
            return head
        try:
            self._relay.together.wait(0.5)
        except threading.BrokenBarrierError:
            self._relay.together.reset()
        return _without(head, "if-none-match")

    def _note_part(self, request: Request, fields: dict[str, str]) -> None:
        self._relay.copied_parts.discard((_upload_of(request), request.query))

    def _answered(self, request: Request, fields: dict[str, str], reply: Reply) -> Reply:
        relay = self._relay
        path, query = request.path, request.query
        is_done = reply.head.startswith(b"HTTP/1.1 20")
        body = reply.body
        is_begun = is_done and request.method == "POST" and query.startswith("uploads")
        if is_begun and "x-amz-checksum-algorithm" in fields:
            relay.with_checksums.update(re.findall(r"<UploadId>([^<]+)<", body.decode()))
        if is_done and Habit.COPIES_UNTOLD in relay.habits and "x-amz-copy-source" in fields:
            body = b'<?xml version="1.0" encoding="UTF-8"?>\n<CopyObjectResult></CopyObjectResult>'
        if Habit.NO_CHECKSUMS_OF_COPIES in relay.habits and "x-amz-copy-source" in fields:
            body = _TOLD.sub(b"", body)
            if is_done and _upload_of(request):
                relay.copied_parts.add((_upload_of(request), request.query))
        is_range = "x-amz-copy-source-range" in fields
        if Habit.WRONG_CHECKSUMS_OF_RANGES in relay.habits and is_range:
            body = _TOLD.sub(rb"<Checksum\1>AAAAAAAAAAA=</Checksum\1>", body)
        if (
            Habit.NO_CHECKSUMS_LISTED in relay.habits
            and request.method == "GET"
            and "uploadId=" in query
        ):
            body = _TOLD.sub(b"", body)
        if is_done and Habit.MARKERS_ARE_FILES in relay.habits and _is_marker(request):
            relay.marker_files.add(path.rstrip("/"))
        if Habit.MARKERS_ARE_FILES in relay.habits and path in relay.marker_files:
            return Reply(_MARKER_FILE, b"", 0, reply.closes)
        if "versions" in query and request.method == "GET":
            body = _of_versions(body, relay.habits, relay.replaced)
            if Habit.STUCK_VERSION_LISTS in relay.habits and "version-id-marker=" in query:
                body = _stuck(body)
        if is_done and request.method in ("PUT", "DELETE") and not query:
            made = _fields(reply.head).get("x-amz-version-id", "")
            now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            self._relay.replaced[relay.latest.get(path, "")] = now
            relay.latest[path] = made
        length = reply.length if request.method == "HEAD" else len(body)
        return reply._replace(body=body, length=length)


_CUSTOMER = "x-amz-server-side-encryption-customer-"
_COPY_SOURCE_CUSTOMER = "x-amz-copy-source-server-side-encryption-customer-"
_MARKER_FILE = (
    b'HTTP/1.1 200 OK\r\nETag: "d41d8cd98f00b204e9800998ecf8427e"\r\nContent-Type: text/plain\r\n'
    b"Last-Modified: Sun, 29 Nov 2026 12:00:00 GMT\r\nx-amz-request-id: habit\r\n"
)
_TOLD = re.compile(rb"<Checksum(\w+)>[^<]*</Checksum\1>")
_VERSION = re.compile(rb"<(Version|DeleteMarker)>.*?</\1>", re.DOTALL)
_ID = re.compile(rb"<VersionId>([^<]*)</VersionId>")
_DATE = re.compile(rb"<LastModified>[^<]*</LastModified>")


def _of_versions(body: bytes, habits: frozenset[Habit], replaced: dict[str, str]) -> bytes:
    """A list of versions as these stores tell it. Of one key, as the tests ask for."""
    if Habit.CUT_VERSION_LISTS in habits:
        oldest = [each[0] for each in _VERSION.finditer(body)][1:]
        for entry in oldest:
            body = body.replace(entry, b"")
        body = body.replace(b"<IsTruncated>true", b"<IsTruncated>false")
    if Habit.DATED_WHEN_REPLACED in habits:
        for match in _VERSION.finditer(body):
            found = _ID.search(match[0])
            date = replaced.get(found[1].decode()) if found else None
            if date is not None:
                told = f"<LastModified>{date}</LastModified>".encode()
                body = body.replace(match[0], _DATE.sub(told, match[0]))
    return body


def _stuck(body: bytes) -> bytes:
    """A page that says to go on behind the very entry that it was asked to begin behind."""
    for name in (b"Key", b"VersionId"):
        asked = re.search(rb"<%sMarker>([^<]*)<" % name, body)
        assert asked is not None
        told = b"<Next%sMarker>%s</Next%sMarker></ListVersionsResult>" % (name, asked[1], name)
        body = re.sub(rb"<Next%sMarker>[^<]*</Next%sMarker>" % (name, name), b"", body)
        body = body.replace(b"</ListVersionsResult>", told)
    return body.replace(b"<IsTruncated>false", b"<IsTruncated>true")


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _without(head: bytes, *names: str) -> bytes:
    lines = head.split(b"\r\n")
    kept = [line for line in lines[1:] if not line.decode("latin-1").lower().startswith(names)]
    return b"\r\n".join([lines[0], *kept])


def _is_marker(request: Request) -> bool:
    return request.method == "PUT" and request.path.endswith("/") and not request.query


def _upload_of(request: Request) -> str:
    found = re.search(r"uploadId=([^&]+)", request.query)
    return found[1] if found else ""


def _error(status: int, code: str, message: str) -> Reply:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>habit</RequestId></Error>"
    ).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nx-amz-request-id: habit\r\n"
    return Reply(head.encode(), body, len(body), False)

"""A directory bucket (S3 Express One Zone) that answers over HTTP as AWS documents it.

Written from the Amazon S3 API reference and the user guide ("Directory buckets", CreateSession, RenameObject,
PutObject with x-amz-write-offset-bytes), not from a look at the real one. What a directory bucket does not
know is refused, and every signature is computed here anew.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import hashlib
import hmac
import re
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import trio

from s3mount.clock import SystemClock
from s3mount.config import StoreConfig
from s3mount.errors import StoreError
from s3mount.refs import Condition, ContentRef, Key, ObjectHeaders, ObjectInfo, PartInfo
from s3mount.s3.checksums import crc64nvme
from s3mount.s3.client import S3Store
from s3mount.s3.headers import from_http, to_http
from s3mount.s3.store import Store
from s3mount.testing.memory_bucket import Bucket, Upload, Version, replaced
from tests.servers import S3Server

BUCKET = "fast--use1-az4--x-s3"
REGION = "us-east-1"
ACCOUNT = ("ACCOUNTKEY", "account-secret")
PART_BYTES_MIN = 5 << 20
_CRC = "x-amz-checksum-crc64nvme"
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
    r"SignedHeaders=([^,]+), Signature=([0-9a-f]{64})"
)
_UNSUPPORTED = ("content-md5", "x-amz-tagging", "x-amz-acl", "x-amz-grant-", "x-amz-object-lock-")


@dataclasses.dataclass(frozen=True)
class Seen:
    """One request: ``name`` as S3's API calls it; ``status`` what answered it."""

    name: str
    key: Key
    headers: dict[str, str]
    body_bytes: int
    status: int


@dataclasses.dataclass(frozen=True)
class Refusal(Exception):
    """An answer with an error document."""

    status: int
    code: str
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Reply:
    """A success."""

    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""


class ExpressServer:
    """The bucket and its server; a context. ``lacks`` are operations that it answers with 501.

    ``session_s``: so long a session lasts. ``loses`` says of which requests the answer is lost once they
    took effect: the connection is closed instead.
    """

    def __init__(self, *, session_s: float = 300.0, lacks: Iterable[str] = ()) -> None:
        self.session_s = session_s
        self.lacks = frozenset(lacks)
        self.loses: Callable[[str, Key], bool] = lambda name, key: False
        self.bucket = Bucket("off", SystemClock(), is_opaque=True)
        self.bucket.habits.renames = self.bucket.habits.appends = True
        self.with_crc: set[str] = set()
        """ETags of objects that have a CRC64NVME: to others nothing can be added with one."""
        self.tokens: dict[str, tuple[object, ...]] = {}
        self.sessions: dict[str, tuple[str, str, float]] = {}
        self.seen: list[Seen] = []
        self.lock = threading.RLock()
        server = self

        class Handler(_Handler):
            express = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def as_server(self) -> S3Server:
        """For ``tests.mounting``."""
        return S3Server(
            name="express", endpoint_url=self.url, access_key=ACCOUNT[0], secret_key=ACCOUNT[1]
        )

    def run(self, body: Callable[[Store], Awaitable[None]], **settings: Any) -> None:
        """Run ``body`` with a store of its own on the bucket; ``settings`` go to its StoreConfig."""
        config = StoreConfig(bucket=BUCKET, endpoint_url=self.url, region=REGION, **settings)

        async def main() -> None:
            with trio.fail_after(60):
                async with S3Store(config) as store:
                    await body(store)

        trio.run(main)

    def names(self) -> list[str]:
        """The operations that were asked for, in order."""
        with self.lock:
            return [each.name for each in self.seen]

    def forget(self) -> None:
        """Forget what was asked for."""
        with self.lock:
            self.seen.clear()

    def contents(self) -> dict[Key, bytes]:
        """What the bucket holds."""
        with self.lock:
            return {key: each[-1].data or b"" for key, each in self.bucket.versions.items()}

    def put(self, key: Key, body: bytes, content_type: str | None = None) -> str:
        """Somebody else writes an object; its ETag."""
        with self.lock:
            etag = self.bucket.etag_of(body)
            self.with_crc.add(etag)
            self.bucket.store(key, body, etag, ObjectHeaders(content_type=content_type))
            return etag

    def info(self, key: Key) -> ObjectInfo:
        """What is stored with an object."""
        with self.lock:
            return self.bucket.version(key, None).info


class Request:
    """One request, taken apart and believed."""

    def __init__(self, express: ExpressServer, method: str, target: str, headers: Any) -> None:
        self.express = express
        self.method = method
        self.path, _, self.raw_query = target.partition("?")
        self.query = dict(parse_qsl(self.raw_query, keep_blank_values=True))
        self.headers = {name.lower(): value for name, value in headers.items()}
        bucket, _, key = unquote(self.path).removeprefix("/").partition("/")
        self.is_ours = bucket == BUCKET
        self.key = key
        self.body = b""

    @property
    def name(self) -> str:
        """The operation's name in S3's API."""
        query, copies = self.query, "x-amz-copy-source" in self.headers
        if not self.key:
            if self.method == "POST":
                return "DeleteObjects"
            for name, operation in (
                ("session", "CreateSession"),
                ("uploads", "ListMultipartUploads"),
                ("versions", "ListObjectVersions"),
                ("list-type", "ListObjectsV2"),
            ):
                if name in query:
                    return operation
            return "HeadBucket" if self.method == "HEAD" else "Unknown"
        if "renameObject" in query:
            return "RenameObject"
        if "uploads" in query:
            return "CreateMultipartUpload"
        if "uploadId" in query:
            put = "UploadPartCopy" if copies else "UploadPart"
            return {
                "PUT": put,
                "POST": "CompleteMultipartUpload",
                "DELETE": "AbortMultipartUpload",
                "GET": "ListParts",
            }[self.method]
        if query:
            return "Unknown"
        put = "CopyObject" if copies else "PutObject"
        names = {"GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject", "PUT": put}
        return names.get(self.method, "Unknown")

    # ------------------------------------------------------------------ belief

    def must_be_signed(self) -> None:
        """Compute the signature anew. Raises Refusal."""
        found = _AUTHORIZATION.fullmatch(self.headers.get("authorization", ""))
        if found is None:
            raise Refusal(403, "AccessDenied", "not signed by SigV4")
        access, day, region, service, names, signature = found.groups()
        if (region, service) != (REGION, "s3express"):
            raise Refusal(400, "AuthorizationHeaderMalformed", f"scope {region}/{service}")
        secret = self._secret(access)
        signed = names.split(";")
        lines = "".join(f"{name}:{' '.join(self.headers[name].split())}\n" for name in signed)
        query = "&".join(
            sorted(
                f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in self.query.items()
            )
        )
        payload = self.headers["x-amz-content-sha256"]
        if payload not in ("UNSIGNED-PAYLOAD", hashlib.sha256(self.body).hexdigest()):
            raise Refusal(400, "XAmzContentSHA256Mismatch")
        canonical = f"{self.method}\n{self.path}\n{query}\n{lines}\n{names}\n{payload}"
        stamp = self.headers["x-amz-date"]
        digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{day}/{region}/{service}/aws4_request\n{digest}"
        key = b"AWS4" + secret.encode()
        for part in (day, region, service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        if hmac.digest(key, text.encode(), "sha256").hex() != signature:
            raise Refusal(403, "SignatureDoesNotMatch")
        missing = {name for name in self.headers if name.startswith("x-amz-")} - set(signed)
        if missing or "host" not in signed:
            raise Refusal(403, "AccessDenied", f"not signed: {missing}")

    def _secret(self, access: str) -> str:
        """The secret that belongs to the request's key, where that key may ask for such a thing."""
        by_account = self.name in ("CreateSession", "CopyObject", "HeadBucket")
        token = self.headers.get("x-amz-s3session-token")
        if by_account:
            if access != ACCOUNT[0] or token is not None:
                raise Refusal(403, "AccessDenied", f"{self.name} is not for sessions")
            return ACCOUNT[1]
        session = self.express.sessions.get(token or "")
        if session is None or session[0] != access:
            raise Refusal(403, "InvalidToken", "no such session")
        if time.time() > session[2]:
            raise Refusal(400, "ExpiredToken", "the session has expired")
        return session[1]

    # ----------------------------------------------------------------- answers

    def answer(self) -> Reply:
        """Do it. Raises Refusal, StoreError."""
        if not self.is_ours:
            raise Refusal(404, "NoSuchBucket")
        self.must_be_signed()
        if self.name in self.express.lacks or self.name in ("Unknown", "ListObjectVersions"):
            raise Refusal(501, "NotImplemented", f"{self.name} on a directory bucket")
        for name in self.headers:
            if name.startswith(_UNSUPPORTED):
                raise Refusal(501, "NotImplemented", f"{name} on a directory bucket")
        reply: Reply = getattr(self, f"_{self.name}")()
        return reply

    def _CreateSession(self) -> Reply:
        token, access, secret = (secrets.token_hex(12) for _ in range(3))
        until = time.time() + self.express.session_s
        self.express.sessions[token] = (access, secret, until)
        date = datetime.datetime.fromtimestamp(until, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return _document(
            "CreateSessionResult",
            f"<Credentials><SessionToken>{token}</SessionToken><SecretAccessKey>{secret}"
            f"</SecretAccessKey><AccessKeyId>{access}</AccessKeyId><Expiration>{date}</Expiration>"
            "</Credentials>",
        )

    def _PutObject(self) -> Reply:
        bucket = self.express.bucket
        crc = self._checked(self.body)
        offset = self.headers.get("x-amz-write-offset-bytes")
        if offset is not None:
            return self._append(int(offset), crc)
        bucket.check(self.key, self._condition())
        made = bucket.store(self.key, self.body, bucket.etag_of(self.body), from_http(self.headers))
        if crc:
            self.express.with_crc.add(made.etag)
        return _stored(made.etag, crc)

    def _append(self, offset: int, crc: str | None) -> Reply:
        if "PutObject with an offset" in self.express.lacks:
            raise Refusal(501, "NotImplemented")
        there = self.express.bucket.version(self.key, None)
        if not self.body:
            raise Refusal(400, "InvalidRequest", "nothing to be added")
        wanted = self._condition().if_match
        if wanted is not None and wanted != there.info.etag:
            raise replaced(self.key)
        if (crc is not None) != (there.info.etag in self.express.with_crc):
            raise Refusal(400, "InvalidRequest", "another checksum algorithm than the object's")
        made = self.express.bucket.append(self.key, self.body, offset, wanted)
        whole = self.express.bucket.version(self.key, None).data or b""
        if crc:
            self.express.with_crc.add(made.etag)
        reply = _stored(made.etag, crc64nvme(whole) if crc else None)
        return Reply(200, {**reply.headers, "x-amz-object-size": str(len(whole))})

    def _RenameObject(self) -> Reply:
        express = self.express
        source = unquote(self.headers["x-amz-rename-source"])
        names = ("if-match", "if-none-match", "x-amz-rename-source-if-match")
        asked = (self.key, source, *(self.headers.get(name) for name in names))
        token = self.headers.get("x-amz-client-token", "")
        if token in express.tokens:
            if express.tokens[token] != asked:
                raise Refusal(400, "IdempotencyParameterMismatch")
            return Reply()
        if self.key.endswith("/") or source.endswith("/"):
            raise Refusal(400, "InvalidRequest", "a key that ends in a slash")
        there = express.bucket.version(source, None).info
        wanted = _bare(self.headers.get("x-amz-rename-source-if-match")) or there.etag
        ref = ContentRef(source, wanted, there.size)
        express.bucket.rename(ref, self.key, self._condition())
        express.tokens[token] = asked
        return Reply()

    def _read(self) -> tuple[Version, dict[str, str]]:
        found = self.express.bucket.version(self.key, None)
        info = found.info
        wanted = _bare(self.headers.get("if-match"))
        if wanted is not None and wanted != info.etag:
            raise replaced(self.key)
        headers = {
            "ETag": f'"{info.etag}"',
            "Last-Modified": formatdate(info.last_modified_ns // 1_000_000_000, usegmt=True),
            "x-amz-storage-class": "EXPRESS_ONEZONE",
            "x-amz-server-side-encryption": "AES256",
            **to_http(info.headers or ObjectHeaders()),
        }
        if info.etag in self.express.with_crc and "range" not in self.headers:
            headers[_CRC] = crc64nvme(found.data or b"")
            headers["x-amz-checksum-type"] = "FULL_OBJECT"
        return found, headers

    def _HeadObject(self) -> Reply:
        found, headers = self._read()
        return Reply(200, {**headers, "Content-Length": str(found.info.size)})

    def _GetObject(self) -> Reply:
        found, headers = self._read()
        data = found.data or b""
        wanted = self.headers.get("range")
        if wanted is None:
            return Reply(200, headers, data)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1, len(data))
        if start >= len(data):
            raise Refusal(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return Reply(206, headers, data[start:stop])

    def _DeleteObject(self) -> Reply:
        bucket = self.express.bucket
        wanted = _bare(self.headers.get("if-match"))
        if wanted is not None:
            bucket.version(self.key, None)
            bucket.check(self.key, Condition(if_match=wanted))
        bucket.delete(self.key, None)
        return Reply(204)

    def _DeleteObjects(self) -> Reply:
        crc = base64.b64encode(zlib.crc32(self.body).to_bytes(4, "big")).decode()
        if self.headers.get("x-amz-checksum-crc32") != crc:
            raise Refusal(400, "BadDigest")
        wanted = ElementTree.fromstring(self.body)
        keys = [each.text or "" for each in wanted.iter() if each.tag.endswith("}Key")]
        for key in keys:
            self.express.bucket.delete(key, None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return _document("DeleteResult", deleted)

    def _source(self) -> Version:
        """What is to be copied. Raises StoreError where it is another version."""
        place = unquote(self.headers["x-amz-copy-source"]).removeprefix("/")
        found = self.express.bucket.version(place.removeprefix(f"{BUCKET}/"), None)
        wanted = _bare(self.headers.get("x-amz-copy-source-if-match"))
        if wanted is not None and wanted != found.info.etag:
            raise replaced(found.info.key)
        return found

    def _CopyObject(self) -> Reply:
        bucket, source = self.express.bucket, self._source()
        bucket.check(self.key, self._condition())
        is_replacing = self.headers.get("x-amz-metadata-directive") == "REPLACE"
        headers = from_http(self.headers) if is_replacing else source.info.headers
        data = source.data or b""
        made = bucket.store(self.key, data, bucket.etag_of(data), headers or ObjectHeaders())
        self.express.with_crc.add(made.etag)
        about = f"<ETag>&quot;{made.etag}&quot;</ETag><LastModified>{_iso(0)}</LastModified>"
        return _document("CopyObjectResult", about)

    def _ListObjectsV2(self) -> Reply:
        query = self.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        if "start-after" in query:
            raise Refusal(501, "NotImplemented", "start-after on a directory bucket")
        if (prefix and not prefix.endswith("/")) or delimiter not in ("", "/"):
            raise Refusal(400, "InvalidArgument", "prefixes end in /, which is the only delimiter")
        found: dict[str, ObjectInfo | None] = {}
        going = [upload.key for upload in self.express.bucket.uploads.values()]
        for key in [*self.express.contents(), *(going if delimiter else [])]:
            if not key.startswith(prefix):
                continue
            stop = key.find("/", len(prefix)) if delimiter else -1
            if stop >= 0:
                found[key[: stop + 1]] = None
            elif key in self.express.bucket.versions:
                found[key] = self.express.info(key)
        behind, most = query.get("continuation-token", ""), int(query.get("max-keys", "1000"))
        # In no order that keys have.
        names = sorted((hashlib.md5(name.encode()).hexdigest(), name) for name in found)
        names = [each for each in names if each[0] > behind]
        page, is_cut = names[:most], len(names) > most
        listed = "".join(_listed(name, found[name]) for _, name in page)
        more = f"<NextContinuationToken>{page[-1][0]}</NextContinuationToken>" if is_cut else ""
        told = f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(is_cut).lower()}</IsTruncated>"
        return _document("ListBucketResult", told + more + listed)

    # ------------------------------------------------------------------- parts

    def _CreateMultipartUpload(self) -> Reply:
        bucket = self.express.bucket
        upload_id = bucket.next_id("u")
        headers = from_http(self.headers)
        bucket.uploads[upload_id] = Upload(self.key, headers, bucket.clock.now_ns(), {})
        return _document("InitiateMultipartUploadResult", f"<UploadId>{upload_id}</UploadId>")

    def _upload(self) -> Upload:
        found = self.express.bucket.uploads.get(self.query["uploadId"])
        if found is None or found.key != self.key:
            raise Refusal(404, "NoSuchUpload")
        return found

    def _add(self, data: bytes) -> str:
        upload, number = self._upload(), int(self.query["partNumber"])
        etag = self.express.bucket.etag_of(data)
        upload.parts[number] = (PartInfo(number, etag, len(data), crc64nvme(data)), data)
        return etag

    def _UploadPart(self) -> Reply:
        crc = self._checked(self.body)
        return _stored(self._add(self.body), crc)

    def _UploadPartCopy(self) -> Reply:
        data = self._source().data or b""
        wanted = self.headers.get("x-amz-copy-source-range")
        if wanted is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last) + 1]
        about = f"<ETag>&quot;{self._add(data)}&quot;</ETag><LastModified>{_iso(0)}</LastModified>"
        told = f"<ChecksumCRC64NVME>{crc64nvme(data)}</ChecksumCRC64NVME>"
        return _document("CopyPartResult", about + told)

    def _CompleteMultipartUpload(self) -> Reply:
        bucket, upload = self.express.bucket, self._upload()
        wanted = ElementTree.fromstring(self.body)
        numbers = [int(e.text or 0) for e in wanted.iter() if e.tag.endswith("}PartNumber")]
        if numbers != list(range(1, len(numbers) + 1)):
            raise Refusal(400, "InvalidPart", "parts are consecutive on a directory bucket")
        if any(number not in upload.parts for number in numbers):
            raise Refusal(400, "InvalidPart")
        bodies = [upload.parts[number][1] for number in numbers]
        if any(len(body) < PART_BYTES_MIN for body in bodies[:-1]):
            raise Refusal(400, "EntityTooSmall")
        bucket.check(self.key, self._condition())
        data = b"".join(bodies)
        lengths = tuple(map(len, bodies))
        made = bucket.store(self.key, data, bucket.etag_of(data), upload.headers, lengths)
        self.express.with_crc.add(made.etag)
        del bucket.uploads[self.query["uploadId"]]
        return _document("CompleteMultipartUploadResult", f"<ETag>&quot;{made.etag}&quot;</ETag>")

    def _AbortMultipartUpload(self) -> Reply:
        self._upload()
        del self.express.bucket.uploads[self.query["uploadId"]]
        return Reply(204)

    def _ListParts(self) -> Reply:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{info.etag}&quot;</ETag>"
            f"<Size>{info.size}</Size><ChecksumCRC64NVME>{info.checksum}</ChecksumCRC64NVME></Part>"
            for number, (info, _) in sorted(self._upload().parts.items())
        )
        return _document("ListPartsResult", f"<IsTruncated>false</IsTruncated>{parts}")

    def _ListMultipartUploads(self) -> Reply:
        prefix = self.query.get("prefix", "")
        if prefix and not prefix.endswith("/"):
            raise Refusal(400, "InvalidArgument", "prefixes end in /")
        listed = "".join(
            f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{upload_id}</UploadId>"
            f"<Initiated>{_iso(upload.initiated_ns)}</Initiated></Upload>"
            for upload_id, upload in self.express.bucket.uploads.items()
            if upload.key.startswith(prefix)
        )
        return _document("ListMultipartUploadsResult", f"<IsTruncated>false</IsTruncated>{listed}")

    # -------------------------------------------------------------------- bits

    def _condition(self) -> Condition:
        if self.headers.get("if-none-match") == "*":
            return Condition(if_absent=True)
        return Condition(if_match=_bare(self.headers.get("if-match")))

    def _checked(self, body: bytes) -> str | None:
        """The body's CRC64NVME if it came with one. Raises Refusal where any checksum is wrong."""
        told = self.headers.get("x-amz-checksum-crc32")
        if told and told != base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode():
            raise Refusal(400, "BadDigest")
        if "x-amz-checksum-crc32c" in self.headers:
            raise Refusal(400, "InvalidRequest", "not computed here")
        told = self.headers.get(_CRC)
        if told and told != crc64nvme(body):
            raise Refusal(400, "BadDigest")
        return told


class _Handler(BaseHTTPRequestHandler):
    """HTTP around a Request."""

    protocol_version = "HTTP/1.1"
    express: ExpressServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was killed
            super().handle()

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def _serve(self) -> None:
        request = Request(self.express, self.command, self.path, self.headers)
        request.body = self.rfile.read(int(request.headers.get("content-length", "0")))
        with self.express.lock:
            reply = _reply(request)
            is_lost = reply.status < 300 and self.express.loses(request.name, request.key)
            seen = Seen(request.name, request.key, request.headers, len(request.body), reply.status)
            self.express.seen.append(seen)
        if is_lost:
            self.close_connection = True
            return
        self.send_response(reply.status)
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        for name, value in {"x-amz-request-id": "express", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve


def _reply(request: Request) -> Reply:
    """What answers ``request``: that it was done, or why not."""
    try:
        return request.answer()
    except Refusal as refusal:
        status, code, message = refusal.status, refusal.code, refusal.message
    except StoreError as error:
        status, code, message = error.status, error.code, str(error)
    text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    return Reply(status, {"Content-Type": "application/xml"}, text.encode())


def _document(root: str, inside: str) -> Reply:
    text = f'<?xml version="1.0"?>\n<{root} xmlns="{_NAMESPACE}">{inside}</{root}>'
    return Reply(200, {"Content-Type": "application/xml"}, text.encode())


def _stored(etag: str, crc: str | None) -> Reply:
    headers = {"ETag": f'"{etag}"', "x-amz-server-side-encryption": "AES256"}
    return Reply(200, headers | ({_CRC: crc} if crc else {}))


def _listed(name: str, info: ObjectInfo | None) -> str:
    if info is None:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    return (
        f"<Contents><Key>{escape(name)}</Key><LastModified>{_iso(info.last_modified_ns)}"
        f"</LastModified><ETag>&quot;{info.etag}&quot;</ETag><Size>{info.size}</Size>"
        "<StorageClass>EXPRESS_ONEZONE</StorageClass></Contents>"
    )


def _iso(time_ns: int) -> str:
    whole = time.gmtime(time_ns // 1_000_000_000 or None)
    return time.strftime("%Y-%m-%dT%H:%M:%S.", whole) + f"{time_ns // 1_000_000 % 1000:03d}Z"


def _bare(etag: str | None) -> str | None:
    return None if etag is None else etag.strip('"')

"""DeleteObjects: many keys in one request, each with an answer of its own."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from xml.etree import ElementTree

from s3mount.errors import ServerFaultError, StoreError
from s3mount.refs import Key, VersionId
from s3mount.s3.documents import DeleteFailure, parse_deleted
from s3mount.s3.http.error_mapping import Refusal
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.http.requests import Call
from s3mount.s3.http.signing import canonical_query

BYTES_PER_KEY = 200
"""About what a key takes in the answer, for the deadline."""
SECONDS_PER_KEY = 0.02
"""So much longer is the answer waited for with each key: it comes when all of them are gone. s3-algo began
with 0.2 s and learned."""

Doomed = tuple[Key, VersionId | None]
"""A key and the version to destroy; ``None``: what it has now is deleted, as the bucket does that."""


async def delete_many(http: HttpClient, doomed: Sequence[Doomed]) -> list[StoreError | None]:
    """DeleteObjects of up to 1,000 keys; of each its error, or ``None`` where S3 says that it is gone.

    Raises StoreError. A key of which the answer says nothing gets a ServerFaultError.
    """
    document = _document(doomed)
    headers = {
        "content-type": "application/xml",
        # S3 demands one of these here; older stores know only the second, S3 Express only the first.
        "x-amz-checksum-crc32": base64.b64encode(zlib.crc32(document).to_bytes(4, "big")).decode(),
        "x-amz-sdk-checksum-algorithm": "CRC32",
    }
    if not http.is_express:
        md5 = hashlib.md5(document, usedforsecurity=False).digest()
        headers["content-md5"] = base64.b64encode(md5).decode()
    call = Call(
        "delete_many",
        "POST",
        "",
        query=canonical_query([("delete", "")]),
        headers=headers,
        body=document,
        payload_hash=hashlib.sha256(document).hexdigest(),
        size_bytes=len(doomed) * BYTES_PER_KEY,
        work_s=len(doomed) * SECONDS_PER_KEY,
    )
    _, found = await http.read(call, parse_deleted)
    return [_error(http, each, found) for each in doomed]


def _document(doomed: Sequence[Doomed]) -> bytes:
    root = ElementTree.Element("Delete", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
    for key, version_id in doomed:
        each = ElementTree.SubElement(root, "Object")
        ElementTree.SubElement(each, "Key").text = key
        if version_id is not None:
            ElementTree.SubElement(each, "VersionId").text = version_id
    document: bytes = ElementTree.tostring(root, encoding="utf-8")
    return document


def _error(
    http: HttpClient, doomed: Doomed, found: dict[Doomed, DeleteFailure]
) -> StoreError | None:
    key = doomed[0]
    # Some stores do not say which version it was.
    told = doomed if doomed in found else (key, None)
    if told not in found:
        return ServerFaultError("the store does not say whether the key was deleted", key=key)
    failure = found[told]
    if failure is None or failure[0] in ("NoSuchKey", "NoSuchVersion"):
        return None
    refusal = Refusal(200, {}, b"")
    refusal.code, refusal.message = failure
    return refusal.error(key=key, bucket=http.config.bucket)

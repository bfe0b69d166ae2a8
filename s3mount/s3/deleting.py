"""DeleteObjects: many keys in one request, each with an answer of its own."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from xml.etree import ElementTree

from s3mount.errors import ServerFaultError, StoreError
from s3mount.refs import Key
from s3mount.s3.documents import parse_deleted
from s3mount.s3.error_mapping import Refusal
from s3mount.s3.http_client import HttpClient
from s3mount.s3.requests import Call
from s3mount.s3.signing import canonical_query

BYTES_PER_KEY = 200
"""About what a key takes in the answer, for the deadline."""


async def delete_many(http: HttpClient, keys: Sequence[Key]) -> list[StoreError | None]:
    """DeleteObjects of up to 1,000 keys; of each key its error, or ``None`` where S3 says that it is gone.

    Raises StoreError. A key of which the answer says nothing gets a ServerFaultError.
    """
    document = _document(keys)
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
        size_bytes=len(keys) * BYTES_PER_KEY,
    )
    _, found = await http.read(call, parse_deleted)
    return [_error(http, key, found) for key in keys]


def _document(keys: Sequence[Key]) -> bytes:
    root = ElementTree.Element("Delete", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
    for key in keys:
        ElementTree.SubElement(ElementTree.SubElement(root, "Object"), "Key").text = key
    document: bytes = ElementTree.tostring(root, encoding="utf-8")
    return document


def _error(
    http: HttpClient, key: Key, found: dict[Key, tuple[str, str] | None]
) -> StoreError | None:
    if key not in found:
        return ServerFaultError("the store does not say whether the key was deleted", key=key)
    failure = found[key]
    if failure is None or failure[0] == "NoSuchKey":
        return None
    refusal = Refusal(200, {}, b"")
    refusal.code, refusal.message = failure
    return refusal.error(key=key, bucket=http.config.bucket)

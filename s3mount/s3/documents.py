"""The XML documents that the HTTP client reads.

ElementTree takes 4 ms for a list page of 1,000 keys; botocore's parser takes 50.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import TypeAlias
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from s3mount.errors import ServerFaultError
from s3mount.refs import Key, ListPage, ObjectInfo, PartInfo, UploadInfo
from s3mount.s3.headers import DEFAULT_STORAGE_CLASS, bare_etag, iso_date_ns, whole_number

# S3 keys may hold characters that XML 1.0 cannot, not even escaped. Stores send them all the same.
NOT_XML = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]")
_NOT_XML_ESCAPED = re.compile(r"&#(?:x0*([0-9a-fA-F]{1,2}|[fF]{3}[eEfF])|0*([0-9]{1,2}|6553[45]));")
_STAND_IN = 0x10F000
"""Private characters that stand in for those, by their code's low twelve bits, while XML is parsed."""


def mended(body: bytes) -> bytes:
    """A document with stand-ins for the characters that XML cannot hold; ``restored`` undoes it."""

    def stand_in(code: int) -> str:
        return chr(_STAND_IN + (code & 0xFFF))

    def unescape(match: re.Match[str]) -> str:
        code = int(match[1], 16) if match[1] else int(match[2])
        valid = 0x20 <= code < 0xFFFE or code in (0x9, 0xA)
        return match[0] if valid else stand_in(code)

    text = _NOT_XML_ESCAPED.sub(unescape, body.decode(errors="replace"))
    return NOT_XML.sub(lambda match: stand_in(ord(match[0])), text).encode()


_RESTORED = str.maketrans(
    {_STAND_IN + code: chr(code) for code in range(0x20)}
    | {_STAND_IN + (code & 0xFFF): chr(code) for code in (0xFFFE, 0xFFFF)}
)


def restored(text: str) -> str:
    """Text from a ``mended`` document as the store meant it."""
    return text.translate(_RESTORED) if not text.isascii() else text


def parse_xml(body: bytes) -> ElementTree.Element:
    """The root of a document, mended where it must be. Raises ServerFaultError when it is no XML."""
    body = body.strip()
    if b"\r" not in body:  # which XML would read as a newline
        with contextlib.suppress(ElementTree.ParseError):
            return ElementTree.fromstring(body)
    try:
        return ElementTree.fromstring(mended(body))
    except ElementTree.ParseError as error:
        raise ServerFaultError(f"the answer is not S3's XML: {error}") from error


def parse_document(
    body: bytes, root_name: str, telltale: str, *, other_name: str = ""
) -> tuple[ElementTree.Element, str]:
    """The root of a document and the namespace that stands before its tags. Raises ServerFaultError.

    AWS's own clients do not look at the root's name, and some stores use another. Such a document is
    taken by its ``telltale``, a child that it must have, so that no proxy's page passes for an empty list.
    Where none must be there, ``other_name`` is the root's that is known besides.
    """
    root = parse_xml(body)
    namespace, brace, name = root.tag.rpartition("}")
    namespace += brace
    is_named = name in (root_name, other_name)
    if not is_named and (name == "Error" or root.find(namespace + telltale) is None):
        raise ServerFaultError(f"the answer is <{root.tag}>, not <{root_name}>")
    return root, namespace


def parse_list(body: bytes) -> ListPage:
    """A ListBucketResult (version 2). Raises ServerFaultError when it is none."""
    root, ns = parse_document(body, "ListBucketResult", "IsTruncated")
    encoded = root.findtext(f"{ns}EncodingType") == "url"
    objects = []
    prefixes = []
    for element in root:
        tag = element.tag
        if tag == f"{ns}Contents":
            objects.append(_listed_object(element, len(ns), encoded))
        elif tag == f"{ns}CommonPrefixes":
            prefixes.append(shown_name(element.findtext(f"{ns}Prefix") or "", encoded))
    token = None
    if root.findtext(f"{ns}IsTruncated") == "true":
        token = root.findtext(f"{ns}NextContinuationToken")
        if not token:
            raise ServerFaultError("a list page says that more follow, but not how to ask")
        token = restored(token)
    told = whole_number(root.findtext(f"{ns}KeyCount") or "")
    if told is not None and len(objects) + len(prefixes) < told:
        raise ServerFaultError(f"a list page of {told} keys ends early")
    return ListPage(tuple(objects), tuple(prefixes), token)


def shown_name(text: str, encoded: bool) -> str:
    """A key or prefix as it is meant; S3 encodes a blank as ``+`` and a plus as ``%2B``."""
    if encoded:
        return unquote_plus(text) if "%" in text or "+" in text else text
    return restored(text)


def size_of(fields: Mapping[str, str]) -> int:
    """What a list says under ``Size``. Raises KeyError without one, ValueError when it cannot be a size."""
    size = whole_number(fields["Size"])
    if size is None:
        raise ValueError(f"a size: {fields['Size'][:40]!r} is none")
    return size


def _listed_object(element: ElementTree.Element, skip: int, encoded: bool) -> ObjectInfo:
    fields = {child.tag[skip:]: child.text or "" for child in element}
    storage_class = fields.get("StorageClass") or None
    try:
        return ObjectInfo(
            key=shown_name(fields["Key"], encoded),
            size=size_of(fields),
            etag=bare_etag(fields.get("ETag", "")),
            last_modified_ns=iso_date_ns(fields["LastModified"]),
            storage_class=None if storage_class == DEFAULT_STORAGE_CLASS else storage_class,
        )
    except (KeyError, ValueError) as error:
        raise ServerFaultError(f"a list entry lacks {error}") from error


def parse_copy(body: bytes, root_name: str) -> tuple[str, str | None]:
    """ETag and CRC64NVME of a CopyObjectResult or CopyPartResult. The ETag may be empty in the former.

    So ``rclone serve s3`` answers a copy onto itself. Raises ServerFaultError when it is none (errors inside a
    200 answer are sorted out before).
    """
    root, ns = parse_document(body, root_name, "ETag")
    etag = root.findtext(f"{ns}ETag")
    if etag is None and root.tag.endswith("CopyObjectResult"):
        return "", None
    if etag is None:
        raise ServerFaultError(f"a {root_name} without an ETag")
    return bare_etag(etag), root.findtext(f"{ns}ChecksumCRC64NVME")


def parse_create(body: bytes) -> str:
    """The upload id of an InitiateMultipartUploadResult. Raises ServerFaultError when it is none."""
    root, ns = parse_document(body, "InitiateMultipartUploadResult", "UploadId")
    upload_id = root.findtext(f"{ns}UploadId")
    if not upload_id:
        raise ServerFaultError("a multipart upload without an id")
    return upload_id


def parse_complete(body: bytes) -> str:
    """The ETag of a CompleteMultipartUploadResult; empty where the store tells none (Ceph 16)."""
    root, ns = parse_document(body, "CompleteMultipartUploadResult", "ETag")
    return bare_etag(root.findtext(f"{ns}ETag") or "")


def parse_parts(body: bytes) -> tuple[list[PartInfo], str]:
    """The parts of a ListPartsResult, and the marker of the next page (empty: there is none)."""
    root, ns = parse_document(body, "ListPartsResult", "IsTruncated")
    parts = []
    for element in root.iterfind(f"{ns}Part"):
        fields = {child.tag[len(ns) :]: child.text or "" for child in element}
        try:
            number, size = int(fields["PartNumber"]), size_of(fields)
            etag = bare_etag(fields["ETag"])
        except (KeyError, ValueError) as error:
            raise ServerFaultError(f"a part in a list lacks {error}") from error
        parts.append(PartInfo(number, etag, size, fields.get("ChecksumCRC64NVME") or None))
    more = root.findtext(f"{ns}IsTruncated") == "true"
    return parts, (root.findtext(f"{ns}NextPartNumberMarker") or "") if more else ""


def parse_uploads(body: bytes) -> tuple[list[UploadInfo], list[tuple[str, str]]]:
    """The uploads of a ListMultipartUploadsResult, and the query of the next page (empty: none)."""
    root, ns = parse_document(body, "ListMultipartUploadsResult", "IsTruncated")
    encoded = root.findtext(f"{ns}EncodingType") == "url"
    uploads = []
    for element in root.iterfind(f"{ns}Upload"):
        fields = {child.tag[len(ns) :]: child.text or "" for child in element}
        try:
            key, initiated_ns = shown_name(fields["Key"], encoded), iso_date_ns(fields["Initiated"])
            uploads.append(UploadInfo(key, fields["UploadId"], initiated_ns))
        except KeyError as error:
            raise ServerFaultError(f"an upload in a list lacks {error}") from error
    if root.findtext(f"{ns}IsTruncated") != "true":
        return uploads, []
    key_marker = shown_name(root.findtext(f"{ns}NextKeyMarker") or "", encoded)
    id_marker = root.findtext(f"{ns}NextUploadIdMarker") or ""
    return uploads, [("key-marker", key_marker), ("upload-id-marker", id_marker)]


def parse_versioning(body: bytes) -> str:
    """``enabled``, ``suspended`` or ``off``, by a VersioningConfiguration, which is empty in the last case.

    moto names it as the protocol's SOAP form did.
    """
    root, ns = parse_document(
        body, "VersioningConfiguration", "Status", other_name="GetBucketVersioningResponse"
    )
    told = root.findtext(f"{ns}Status") or ""
    return {"Enabled": "enabled", "Suspended": "suspended"}.get(told, "off")


DeleteFailure: TypeAlias = tuple[str, str] | None
"""The code and the message of an error, or ``None``."""


def parse_deleted(body: bytes) -> dict[tuple[Key, str | None], DeleteFailure]:
    """A DeleteResult: what became of each key and version; ``None`` for that where it is not named."""
    root, ns = parse_document(body, "DeleteResult", "Deleted")
    found: dict[tuple[Key, str | None], DeleteFailure] = {}
    for element in root:
        key = restored(element.findtext(f"{ns}Key") or "")
        doomed = key, element.findtext(f"{ns}VersionId") or None
        if element.tag == f"{ns}Error":
            code, message = element.findtext(f"{ns}Code"), element.findtext(f"{ns}Message")
            found[doomed] = code or "", message or ""
        elif element.tag == f"{ns}Deleted":
            found.setdefault(doomed, None)
    return found

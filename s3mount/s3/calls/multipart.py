"""Multipart uploads' own calls: begin, list, finish and abort.

They run by the HTTP client rather than boto3: for a key that XML cannot hold, botocore takes
the answer to a successful CreateMultipartUpload or ListMultipartUploads for a failure and repeats it;
and they profit from the same deadlines.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeAlias
from xml.etree import ElementTree

import msgspec

from s3mount.errors import (
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
    ServerFaultError,
    StoreError,
)
from s3mount.refs import Condition, Key, ObjectHeaders, PartInfo, PutResult, UploadInfo
from s3mount.s3 import checksums
from s3mount.s3.calls.ambiguous_writes import settle_complete
from s3mount.s3.calls.pages import Pages, folder_of
from s3mount.s3.calls.reading import Reader
from s3mount.s3.calls.writing import Writer
from s3mount.s3.documents import (
    parse_complete,
    parse_create,
    parse_parts,
    parse_uploads,
)
from s3mount.s3.headers import check_headers, check_key, http_date_ns, to_http, whole_number
from s3mount.s3.http.genuine import not_s3
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.http.requests import Answer, Call
from s3mount.s3.http.signing import UNSIGNED_PAYLOAD, canonical_query
from s3mount.s3.traits import Traits

_log = logging.getLogger(__name__)

COMPLETE_BYTES_PER_PART = 16 * 1024
"""Completing takes longer the more parts there are; this many bytes' time each, for the deadline."""
COMPLETE = "CompleteMultipartUpload"
Markers: TypeAlias = list[tuple[str, str]]
PAGE_BYTES = 256 * 1024
"""About the size of a page of parts or uploads, for the deadline."""


class Multipart:
    """The calls around a store's parts."""

    def __init__(
        self, http: HttpClient, reader: Reader, writer: Writer, traits: Traits, sign_payload: bool
    ) -> None:
        self._http = http
        self._reader = reader
        self._writer = writer
        self._traits = traits
        self._pages = Pages(http)
        self._sign_payload = sign_payload

    async def create(self, key: Key, headers: ObjectHeaders, *, has_copies: bool = False) -> str:
        """See ``Store.create_multipart``.

        Where the store verifies CRC64NVME, the upload says so: then every part must bring its own,
        and the whole object gets one (AWS refuses parts with checksums in an upload without). Where
        copied parts have none (MinIO), an upload with such parts is created without.
        """
        check_key(key)
        check_headers(headers, key)
        traits = self._traits
        lacks = has_copies and traits.copied_checksums is False
        checksum = {}
        if traits.echoes_checksums is not False and not lacks:
            checksum["x-amz-checksum-algorithm"] = "CRC64NVME"
            checksum["x-amz-checksum-type"] = "FULL_OBJECT"

        async def attempt(kept: dict[str, str]) -> str:
            return await self.create_bare(key, kept | checksum)

        upload_id = await self._writer.rights.as_allowed(key, to_http(headers), headers, attempt)
        if traits.echoes_checksums is not None or lacks:
            self._writer.note_upload(upload_id, has_checksums=bool(checksum))
        return upload_id

    async def create_bare(self, key: Key, headers: dict[str, str]) -> str:
        """CreateMultipartUpload with just these headers; the upload id."""
        query = canonical_query([("uploads", "")])
        call = Call("create_multipart", "POST", key, query=query, headers=headers)
        _, upload_id = await self._http.read(call, parse_create)
        return upload_id

    async def complete(
        self, key: Key, upload_id: str, parts: Sequence[PartInfo], condition: Condition
    ) -> PutResult:
        """See ``Store.complete_multipart``."""
        check_key(key)
        is_honoured = bool(self._traits.complete_condition)

        async def send(wanted: dict[str, str]) -> PutResult:
            return await self._complete(key, upload_id, parts, wanted)

        return await self._writer.conditionally(
            COMPLETE, key, condition, send, is_honoured=is_honoured
        )

    async def _complete(
        self, key: Key, upload_id: str, parts: Sequence[PartInfo], wanted: dict[str, str]
    ) -> PutResult:
        """Complete; when a try's answer was lost, what it did is looked for."""
        headers = dict(wanted)
        has_checksums = self._writer.checksummed.get(
            upload_id, self._traits.echoes_checksums is not False
        )
        if not has_checksums:
            parts = [msgspec.structs.replace(part, checksum=None) for part in parts]
        whole = checksums.combined_crc64nvme(parts)
        if whole is not None:
            headers[checksums.CRC_HEADER] = whole
            headers["x-amz-checksum-type"] = "FULL_OBJECT"

        async def look() -> None:
            await self._raise_if_gone(key, upload_id)

        call = self._complete_call(key, upload_id, _parts_document(parts), headers)
        call.size_bytes = len(parts) * COMPLETE_BYTES_PER_PART
        call.before_retry = look
        try:
            answer, told = await self._http.read(call, parse_complete)
        except (NoSuchKeyError, PreconditionFailedError) as error:
            if not call.in_doubt:
                raise
            return await settle_complete(self._reader.head, key, parts, error)
        except RejectedError as error:
            if has_checksums and _is_of_another_mode(error):
                # Begun by a tool that names no checksums: then the completion may name none either.
                self._writer.note_upload(upload_id, has_checksums=False)
                return await self._complete(key, upload_id, parts, wanted)
            is_about_parts = error.code == "InvalidPart" or "checksum" in str(error).lower()
            if not is_about_parts or not has_checksums or _all_have_checksums(parts):
                raise
            # Copied parts have no checksums here, and this upload demands them.
            self._traits.copied_checksums = False
            raise RejectedError(
                str(error),
                key=key,
                status=error.status,
                code="InvalidPart",
                request_id=error.request_id,
            ) from error
        return await self._writer.with_version(key, await self._made(call, answer, told, parts))

    async def _made(
        self, call: Call, answer: Answer, told: str, parts: Sequence[PartInfo]
    ) -> PutResult:
        """What a completion made. An ETag that is not that of the parts is looked at. Raises NotS3Error."""
        expected = checksums.multipart_etag(parts) or ""
        if not told and self._traits.etag_is_md5 is not False:
            told = expected
        version_id = answer.headers.get("x-amz-version-id")
        made = PutResult(told, version_id, http_date_ns(answer.headers.get("date", "")))
        if told and (told == expected or not self._traits.etag_is_md5):
            return made
        now = await self._reader.head(call.key, version_id)
        if told not in ("", now.etag):
            raise not_s3("another ETag than the key has", call, answer.status, answer.headers)
        return PutResult(now.etag, now.version_id, made.date_ns)

    def _complete_call(
        self, key: Key, upload_id: str, document: bytes, headers: dict[str, str]
    ) -> Call:
        payload_hash = checksums.sha256(document) if self._sign_payload else UNSIGNED_PAYLOAD
        return Call(
            "complete_multipart",
            "POST",
            key,
            query=_upload_query(upload_id),
            headers=headers | {"content-type": "application/xml"},
            body=document,
            payload_hash=payload_hash,
            error_in_body=True,
        )

    async def complete_bare(
        self, key: Key, upload_id: str, part: PartInfo, headers: dict[str, str]
    ) -> str | None:
        """CompleteMultipartUpload with just these conditions; the version that it made."""
        document = _parts_document([part])
        call = self._complete_call(key, upload_id, document, headers)
        answer, _ = await self._http.read(call, parse_complete)
        return answer.headers.get("x-amz-version-id")

    async def _raise_if_gone(self, key: Key, upload_id: str) -> None:
        """Raise NoSuchKeyError when there is nothing left to complete.

        Asked after a failure that does not tell: the completion may have taken effect unheard, or
        the upload was aborted, to which Ceph 16 answers 500 for ever.
        """
        try:
            await self.list_parts(key, upload_id)
        except NoSuchKeyError:
            raise
        except StoreError as error:
            _log.debug("whether the upload is still there is unknown: %s", error.describe())

    async def abort(self, key: Key, upload_id: str) -> None:
        """See ``Store.abort_multipart``."""
        check_key(key)
        call = Call("abort_multipart", "DELETE", key, query=_upload_query(upload_id))
        try:
            await self._http.call(call)
        except NoSuchKeyError:
            return

    async def list_parts(self, key: Key, upload_id: str) -> list[PartInfo]:
        """See ``Store.list_parts``."""
        check_key(key)
        found: list[PartInfo] = []
        marker = ""
        while True:
            wanted = [("uploadId", upload_id), ("max-parts", "1000")]
            if marker:
                wanted.append(("part-number-marker", marker))
            call = Call(
                "list_parts", "GET", key, query=canonical_query(wanted), size_bytes=PAGE_BYTES
            )
            before = int(marker or 0)

            def parse(body: bytes, before: int = before) -> tuple[list[PartInfo], str]:
                return _parts_behind(body, before)

            _, (parts, marker) = await self._http.read(call, parse)
            found.extend(parts)
            if not marker:
                return found

    async def list_uploads(self, prefix: str) -> list[UploadInfo]:
        """See ``Store.list_uploads``."""
        if prefix:
            check_key(prefix)
        asked = folder_of(prefix) if self._http.is_express else prefix
        found: list[UploadInfo] = []
        markers: Markers = []
        while True:
            wanted = [("uploads", ""), ("max-uploads", "1000"), *markers]
            if asked:
                wanted.append(("prefix", asked))
            before = markers

            def parse(body: bytes, before: Markers = before) -> tuple[list[UploadInfo], Markers]:
                uploads, behind = parse_uploads(body)
                if behind and behind == before:
                    raise ServerFaultError("the store's list of uploads does not advance")
                return uploads, behind

            _, (uploads, markers) = await self._pages.ask(
                "list_uploads",
                wanted,
                parse,
                PAGE_BYTES,
                lambda page: [upload.key for upload in page[0]],
                lambda plain, encoded: (encoded[0], plain[1]),
            )
            found.extend(upload for upload in uploads if upload.key.startswith(prefix))
            if not markers:
                return found


def _is_of_another_mode(error: RejectedError) -> bool:
    """Was a completion refused because the upload was created without checksums?"""
    return error.code == "InvalidRequest" and "checksum mode" in str(error).lower()


def _all_have_checksums(parts: Sequence[PartInfo]) -> bool:
    return all(part.checksum is not None for part in parts)


def _parts_behind(body: bytes, before: int) -> tuple[list[PartInfo], str]:
    """A page of parts behind part ``before``, and the next marker. Raises ServerFaultError if that is not ahead."""
    parts, marker = parse_parts(body)
    if marker and (whole_number(marker) or 0) <= before:
        raise ServerFaultError("the store's list of parts does not advance")
    return [part for part in parts if part.number > before], marker


def _upload_query(upload_id: str) -> str:
    return canonical_query([("uploadId", upload_id)])


def _parts_document(parts: Sequence[PartInfo]) -> bytes:
    """The body of a CompleteMultipartUpload."""
    root = ElementTree.Element(
        "CompleteMultipartUpload", xmlns="http://s3.amazonaws.com/doc/2006-03-01/"
    )
    for part in parts:
        entry = ElementTree.SubElement(root, "Part")
        ElementTree.SubElement(entry, "PartNumber").text = str(part.number)
        ElementTree.SubElement(entry, "ETag").text = f'"{part.etag}"'
        if part.checksum:
            ElementTree.SubElement(entry, "ChecksumCRC64NVME").text = part.checksum
    return ElementTree.tostring(root)

"""What a store tells by which an object's bytes can be proven: stored checksums, and the lengths of its parts."""

from __future__ import annotations

import re
from collections.abc import Mapping

import trio

from s3mount.errors import NotS3Error, ServerFaultError, StoreError, ThrottledError
from s3mount.refs import ETag, Key, ObjectDigests, VersionId
from s3mount.s3.calls.reading import Reader, content_length
from s3mount.s3.documents import parse_document
from s3mount.s3.headers import bare_etag, check_key, has_foreign_etag
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.http.requests import Call
from s3mount.s3.http.signing import canonical_query
from s3mount.s3.http.wire import Head, Sink

ALGORITHMS = ("crc64nvme", "crc32c", "crc32", "sha256", "sha1")
"""Of which a store may tell checksums (AWS S3 User Guide, "Checking object integrity"), the quick ones first."""
PART_HEADS_MAX = 200
"""So many parts are asked for one by one; of more, the first one's length is known alone."""
PART_HEADS_AT_ONCE = 16
DOCUMENT_BYTES_MAX = 1 << 20

_COUNT = re.compile(r"-([1-9][0-9]{0,4})\Z")


class DigestReader:
    """Asks for it. See ``Store.digests``."""

    def __init__(self, http: HttpClient, reader: Reader) -> None:
        self._http = http
        self._reader = reader

    async def read(self, key: Key, version_id: VersionId | None) -> ObjectDigests:
        """See ``Store.digests``."""
        answer = await self._reader.head_answer(key, version_id, checksum=True)
        etag, size = bare_etag(answer.headers.get("etag", "")), content_length(answer)
        checksums, is_composite = told_checksums(answer.headers)
        lengths: tuple[int, ...] = ()
        first = 0
        count = _part_count(etag, answer.headers)
        if count and (is_composite or not checksums):
            if is_composite:
                lengths = await self._by_attributes(key, version_id)
            if not _are_all(lengths, count, size):
                lengths = await self._by_heads(key, version_id, etag, count)
                first = lengths[0] if lengths else 0
            if not _are_all(lengths, count, size):
                lengths = ()
        return ObjectDigests(
            size,
            etag,
            not has_foreign_etag(answer.headers),
            checksums,
            is_composite,
            lengths,
            lengths[0] if lengths else first,
        )

    async def _by_heads(
        self, key: Key, version_id: VersionId | None, etag: ETag, count: int
    ) -> tuple[int, ...]:
        """Each part's length, of very many only the first one's; nothing where the store does not tell."""
        first = await self._part_length(key, version_id, etag, 1)
        if first is None:
            return ()
        found = [first] + [0] * (count - 1)
        if not 1 < count <= PART_HEADS_MAX:
            return (first,)
        limit = trio.CapacityLimiter(PART_HEADS_AT_ONCE)
        failures: list[StoreError] = []

        async def ask(number: int) -> None:
            async with limit:
                try:
                    length = await self._part_length(key, version_id, etag, number)
                except StoreError as error:
                    failures.append(error)
                    return
            found[number - 1] = length or 0

        async with trio.open_nursery() as nursery:
            for number in range(2, count + 1):
                nursery.start_soon(ask, number)
        if failures:
            raise failures[0]
        return tuple(found)

    async def _part_length(
        self, key: Key, version_id: VersionId | None, etag: ETag, number: int
    ) -> int | None:
        """How long one part is; ``None`` where the store ignores the question, or refuses it."""
        query = canonical_query([("partNumber", str(number)), *_version(version_id)])
        try:
            answer = await self._http.call(Call("head", "HEAD", key, query=query))
        except StoreError as error:
            _raise_if_unheard(error)
            return None
        is_told = answer.status == 206 or "x-amz-mp-parts-count" in answer.headers
        if not is_told or bare_etag(answer.headers.get("etag", "")) != etag:
            return None
        return content_length(answer)

    async def _by_attributes(self, key: Key, version_id: VersionId | None) -> tuple[int, ...]:
        """Every part's length by GetObjectAttributes, which tells them where parts have checksums."""
        check_key(key)
        query = canonical_query([("attributes", ""), *_version(version_id)])
        found: dict[int, int] = {}
        marker = 0
        while True:
            headers = {
                "x-amz-object-attributes": "ObjectParts",
                "x-amz-max-parts": "1000",
                "x-amz-part-number-marker": str(marker),
            }
            call = Call(
                "attributes", "GET", key, query=query, headers=headers, on_head=_only_a_document
            )
            try:
                _, (parts, marker_then) = await self._http.read(call, parse_parts)
            except StoreError as error:
                _raise_if_unheard(error)
                return ()
            found.update(parts)
            if marker_then is None or marker_then <= marker:
                break
            marker = marker_then
        return tuple(found[number] for number in sorted(found))


def told_checksums(answer: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """The checksums in an answer's headers, and whether they are made of the parts' checksums."""
    found = {}
    is_composite = answer.get("x-amz-checksum-type", "").upper() == "COMPOSITE"
    for algorithm in ALGORITHMS:
        value = answer.get(f"x-amz-checksum-{algorithm}", "")
        if not value:
            continue
        is_composite |= _COUNT.search(value) is not None
        found[algorithm] = _COUNT.sub("", value)
    return found, is_composite


def parse_parts(body: bytes) -> tuple[dict[int, int], int | None]:
    """Lengths by part number in a GetObjectAttributesResponse, and where its next page begins.

    Raises ServerFaultError where it is none: stores that know no attributes answer with the object.
    """
    root, ns = parse_document(body, "GetObjectAttributesResponse", "ObjectParts")
    told = root.find(f"{ns}ObjectParts")
    if told is None:
        return {}, None
    try:
        parts = {
            int(part.findtext(f"{ns}PartNumber") or ""): int(part.findtext(f"{ns}Size") or "")
            for tag in ("Part", "Parts")
            for part in told.findall(f"{ns}{tag}")
        }
        more = told.findtext(f"{ns}IsTruncated") == "true"
        marker = int(told.findtext(f"{ns}NextPartNumberMarker") or 0) if more else None
    except ValueError as error:
        raise ServerFaultError("the attributes' parts have no sizes") from error
    return parts, marker


def _only_a_document(head: Head) -> Sink | None:
    if (head.length or 0) > DOCUMENT_BYTES_MAX or "xml" not in head.headers.get("content-type", ""):
        raise ServerFaultError("this store tells no attributes", status=head.status)
    return None


def _raise_if_unheard(error: StoreError) -> None:
    """What was refused is an answer; what found none says nothing about the store."""
    is_foreign = isinstance(error, NotS3Error) and error.status >= 300
    if not error.status or is_foreign or isinstance(error, ThrottledError):
        raise error


def _part_count(etag: ETag, answer: Mapping[str, str]) -> int:
    """How many parts the ETag or a checksum tells, 0 for none."""
    values = (etag, *(answer.get(f"x-amz-checksum-{name}", "") for name in ALGORITHMS))
    found = [match for match in map(_COUNT.search, values) if match]
    return int(found[0][1]) if found else 0


def _are_all(lengths: tuple[int, ...], count: int, size: int) -> bool:
    return len(lengths) == count and sum(lengths) == size


def _version(version_id: VersionId | None) -> list[tuple[str, str]]:
    return [("versionId", version_id)] if version_id else []

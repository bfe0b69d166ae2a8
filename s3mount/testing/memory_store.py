"""A store in memory that behaves as S3 does, with faults on demand, for tests and simulations.

It needs no threads and no sockets, so that it runs under trio's virtual clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec
import trio

from s3mount.clock import SystemClock, WallClock
from s3mount.config import PART_BYTES_MAX, PART_BYTES_MIN
from s3mount.errors import (
    NoSuchKeyError,
    RangeError,
    RejectedError,
    StoreError,
)
from s3mount.refs import (
    ANY,
    Body,
    BucketInfo,
    ByteRange,
    Capabilities,
    Condition,
    ContentRef,
    ETag,
    FileSlice,
    Key,
    ListPage,
    ObjectDigests,
    ObjectHeaders,
    ObjectInfo,
    PartInfo,
    PutResult,
    UploadInfo,
    VersionId,
    VersionPage,
)
from s3mount.s3.checksums import crc64nvme
from s3mount.s3.headers import METADATA_BYTES_MAX, check_headers, check_key
from s3mount.s3.store import INLINE_BODY_BYTES_MAX
from s3mount.testing.memory_bodies import read_body, write_slice
from s3mount.testing.memory_bucket import Bucket, Habits, Upload, replaced

PARTS_MAX = 10_000
_SECOND_NS = 1_000_000_000
_MILLISECOND_NS = 1_000_000


class Faults(Protocol):
    """What may go wrong: called around every operation with its name and arguments.

    Either may raise a StoreError, sleep (virtual time), or do nothing. What ``before`` raises
    happens instead of the effect; what ``after`` raises loses the answer of an effect that took place.
    """

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        """Called before the operation takes effect."""
        ...

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        """Called when it has taken effect, before its answer is given."""
        ...


class NoFaults:
    """Nothing goes wrong."""

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        """Do nothing but yield, as every async function does."""
        await trio.lowlevel.checkpoint()

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        """Do nothing; ``before`` has yielded."""


class MemoryStore:
    """``Store`` in memory. ``faults`` may be exchanged at any time; ``requests`` counts calls by name.
    With ``opaque_etags`` every write gets an ETag of its own, which looks like an MD5 and is none (as with SSE-KMS).
    ``tells_part_lengths`` and ``tells_checksums`` say what ``digests`` has to tell, and may be set.
    With ``loses_tags`` copies with new headers and multipart uploads have no tags, whatever they name (as in Ceph 16).
    With ``copy_gap_s`` that time passes between the check of a copy's source and its reading (as in LocalStack).

    Files named by a ``FileSlice`` are read and written for real, at the moment of the effect.
    """

    def __init__(
        self,
        bucket: str = "memory",
        *,
        versioning: Literal["off", "enabled", "suspended"] = "off",
        clock: WallClock | None = None,
        faults: Faults | None = None,
        part_bytes_min: int = PART_BYTES_MIN,
        opaque_etags: bool = False,
        copy_gap_s: float = 0.0,
        loses_tags: bool = False,
    ) -> None:
        self.bucket = bucket
        self.outage = ""
        self.on_outage: Callable[[str], None] = lambda reason: None
        self.faults: Faults = faults or NoFaults()
        self.requests: dict[str, int] = {}
        self.part_bytes_min = part_bytes_min
        self.copy_gap_s = copy_gap_s
        self.tells_part_lengths = True
        self.tells_checksums = False
        self.loses_tags = loses_tags
        self._bucket = Bucket(versioning, clock or SystemClock(), is_opaque=opaque_etags)

    async def __aenter__(self) -> MemoryStore:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await trio.lowlevel.checkpoint()

    def observer(self) -> MemoryStore:
        """Another client of the same bucket, without faults: a foreign writer, or a test that looks."""
        twin = MemoryStore(
            self.bucket, part_bytes_min=self.part_bytes_min, loses_tags=self.loses_tags
        )
        twin._bucket = self._bucket
        return twin

    @property
    def lists_in_order(self) -> bool:
        """See ``Store.lists_in_order``."""
        return self.habits.is_ordered

    @property
    def habits(self) -> Habits:
        """What this store does otherwise than S3: to be changed before it is used."""
        return self._bucket.habits

    def suspend(self) -> None:
        """Let the bucket keep no more versions; those it has stay."""
        self._bucket.versioning = "suspended"

    def enable(self) -> None:
        """Let the bucket keep versions from now on."""
        self._bucket.versioning = "enabled"

    def contents(self) -> dict[Key, bytes]:
        """All present keys and their bytes."""
        return {
            key: history[-1].data
            for key, history in self._bucket.versions.items()
            if history[-1].data is not None
        }

    def set_versioning(self, versioning: Literal["enabled", "suspended"]) -> None:
        """PutBucketVersioning."""
        self._bucket.versioning = versioning

    async def head(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.head``."""
        arguments = {"key": key, "version_id": version_id}
        await self._begin("head", arguments)
        check_key(key)
        found = _told(self._bucket.version(key, version_id).info)
        await self.faults.after("head", arguments)
        return found

    async def describe(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.describe``. For faults it is a HEAD."""
        arguments = {"key": key, "version_id": version_id}
        await self._begin("head", arguments)
        check_key(key)
        found = self._bucket.version(key, version_id).info
        headers = found.headers or ObjectHeaders()
        headers = msgspec.structs.replace(headers, acl=headers.acl or {})
        await self.faults.after("head", arguments)
        return msgspec.structs.replace(_at_header_resolution(found), headers=headers)

    async def renew_credentials(self) -> None:
        """See ``Store.renew_credentials``: there are none."""
        await trio.lowlevel.checkpoint()

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """See ``Store.set_rates``: nothing goes over a line."""
        await trio.lowlevel.checkpoint()

    async def set_log_level(self, level: str) -> None:
        """See ``Store.set_log_level``: it logs nothing."""
        await trio.lowlevel.checkpoint()

    async def put_tags(self, key: Key, tags: str, *, version_id: VersionId | None = None) -> None:
        """See ``Store.put_tags``."""
        arguments = {"key": key, "tags": tags, "version_id": version_id}
        await self._begin("put_tags", arguments)
        self._bucket.set_tags(key, version_id, tags)
        await self.faults.after("put_tags", arguments)

    async def get(
        self,
        key: Key,
        *,
        byte_range: ByteRange | None = None,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
    ) -> tuple[ObjectInfo, bytes]:
        """See ``Store.get``."""
        arguments = {
            "key": key,
            "byte_range": byte_range,
            "version_id": version_id,
            "if_match": if_match,
        }
        await self._begin("get", arguments)
        info, data = self._read(key, byte_range, version_id, if_match)
        if len(data) > INLINE_BODY_BYTES_MAX:
            raise RejectedError(f"{len(data)} bytes are too many to get into memory", key=key)
        await self.faults.after("get", arguments)
        return info, data

    async def fetch(
        self,
        key: Key,
        byte_range: ByteRange,
        sink: FileSlice,
        *,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> ObjectInfo:
        """See ``Store.fetch``; the bytes arrive in two steps, so that progress is seen."""
        arguments = {
            "key": key,
            "byte_range": byte_range,
            "sink": sink,
            "version_id": version_id,
            "if_match": if_match,
        }
        await self._begin("fetch", arguments)
        if sink.length != byte_range.length:
            raise RejectedError("the sink's length is not the range's", key=key)
        info, data = self._read(key, byte_range, version_id, if_match)
        if len(data) != byte_range.length:
            raise RangeError("the object ends inside the range", key=key, status=416)
        half = len(data) // 2
        for start, stop in ((0, half), (half, len(data))):
            write_slice(sink, start, data[start:stop])
            if on_progress is not None:
                on_progress(stop)
            await trio.lowlevel.checkpoint()
        await self.faults.after("fetch", arguments)
        return info

    async def digests(self, key: Key, *, version_id: VersionId | None = None) -> ObjectDigests:
        """See ``Store.digests``: as ``tells_part_lengths`` and ``tells_checksums`` say."""
        arguments = {"key": key, "version_id": version_id}
        await self._begin("digests", arguments)
        found = self._bucket.version(key, version_id)
        checksums = {"crc64nvme": crc64nvme(found.data or b"")} if self.tells_checksums else {}
        lengths = found.part_lengths if self.tells_part_lengths else ()
        await self.faults.after("digests", arguments)
        is_digest = not self._bucket.is_opaque
        return ObjectDigests(
            found.info.size, found.info.etag, is_digest, checksums, part_lengths=lengths
        )

    async def put(
        self, key: Key, body: Body, headers: ObjectHeaders, *, condition: Condition = ANY
    ) -> PutResult:
        """See ``Store.put``."""
        arguments = {"key": key, "body": body, "headers": headers, "condition": condition}
        await self._begin("put", arguments)
        check_key(key)
        _check_headers(headers, key)
        data = read_body(body)
        self._bucket.check(key, condition)
        result = self._bucket.store(key, data, self._bucket.etag_of(data), headers)
        await self.faults.after("put", arguments)
        return result

    async def copy(
        self,
        source: ContentRef,
        key: Key,
        headers: ObjectHeaders | None,
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """See ``Store.copy``."""
        arguments = {"source": source, "key": key, "headers": headers, "condition": condition}
        await self._begin("copy", arguments)
        check_key(key)
        if key.endswith("/") and not self.habits.marker_copies:
            raise RejectedError("a key that ends in a slash is not copied", key=key, status=400)
        data = await self._source(source)
        if headers is None:
            kept = self._bucket.version(source.key, source.version_id).info.headers
            headers = kept or ObjectHeaders()
        elif self.loses_tags:
            headers = msgspec.structs.replace(headers, tags=None)
        _check_headers(headers, key)
        self._bucket.check(key, condition)
        result = self._bucket.store(key, data, self._bucket.etag_of(data), headers)
        await self.faults.after("copy", arguments)
        return result

    async def rename(
        self, source: ContentRef, key: Key, *, condition: Condition = ANY
    ) -> PutResult:
        """See ``Store.rename``."""
        arguments = {"source": source, "key": key, "condition": condition}
        await self._begin("rename", arguments)
        check_key(key)
        result = self._bucket.rename(source, key, condition)
        await self.faults.after("rename", arguments)
        return result

    async def append(self, base: ContentRef, body: Body) -> PutResult:
        """See ``Store.append``."""
        arguments = {"base": base, "body": body}
        await self._begin("append", arguments)
        result = self._bucket.append(base.key, read_body(body), base.size, base.etag)
        await self.faults.after("append", arguments)
        return result

    async def delete(
        self, key: Key, *, version_id: VersionId | None = None, if_match: ETag | None = None
    ) -> None:
        """See ``Store.delete``."""
        arguments = {"key": key, "version_id": version_id, "if_match": if_match}
        await self._begin("delete", arguments)
        check_key(key)
        keeps_deleted = self._bucket.versioning == "enabled"
        if if_match is not None and not keeps_deleted and self._bucket.current(key) is not None:
            self._bucket.check(key, Condition(if_match=if_match))
        self._bucket.delete(key, version_id)
        await self.faults.after("delete", arguments)

    async def delete_many(
        self, keys: Sequence[Key], *, version_ids: Sequence[VersionId | None] = ()
    ) -> list[StoreError | None]:
        """See ``Store.delete_many``."""
        arguments = {"keys": keys, "version_ids": version_ids}
        await self._begin("delete_many", arguments)
        if len(keys) > 1000:
            raise RejectedError(f"{len(keys)} keys in one DeleteObjects, S3 takes 1,000")
        results: list[StoreError | None] = []
        for key, version_id in zip(keys, version_ids or [None] * len(keys), strict=True):
            try:
                check_key(key)
            except RejectedError as error:
                results.append(error)
                continue
            self._bucket.delete(key, version_id)
            results.append(None)
        await self.faults.after("delete_many", arguments)
        return results

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = 1000,
    ) -> ListPage:
        """See ``Store.list_page``."""
        arguments = {
            "prefix": prefix,
            "delimiter": delimiter,
            "token": token,
            "start_after": start_after,
            "max_keys": max_keys,
        }
        await self._begin("list", arguments)
        if prefix:
            check_key(prefix)
        page = self._bucket.list_page(prefix, delimiter, token, start_after, min(max_keys, 1000))
        await self.faults.after("list", arguments)
        return page

    async def list_versions_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        key_marker: str | None = None,
        version_marker: VersionId | None = None,
        max_keys: int = 1000,
    ) -> VersionPage:
        """See ``Store.list_versions_page``."""
        arguments = {
            "prefix": prefix,
            "delimiter": delimiter,
            "key_marker": key_marker,
            "version_marker": version_marker,
            "max_keys": max_keys,
        }
        await self._begin("list_versions", arguments)
        if prefix:
            check_key(prefix)
        page = self._bucket.list_versions_page(
            prefix, delimiter, key_marker, version_marker, min(max_keys, 1000)
        )
        await self.faults.after("list_versions", arguments)
        return page

    async def create_multipart(
        self, key: Key, headers: ObjectHeaders, *, has_copies: bool = False
    ) -> str:
        """See ``Store.create_multipart``."""
        arguments = {"key": key, "headers": headers, "has_copies": has_copies}
        await self._begin("create_multipart", arguments)
        check_key(key)
        _check_headers(headers, key)
        upload_id = self._bucket.next_id("u")
        self._bucket.uploads[upload_id] = Upload(key, headers, self._bucket.clock.now_ns(), {})
        await self.faults.after("create_multipart", arguments)
        return upload_id

    async def upload_part(self, key: Key, upload_id: str, number: int, body: Body) -> PartInfo:
        """See ``Store.upload_part``."""
        arguments = {"key": key, "upload_id": upload_id, "number": number, "body": body}
        await self._begin("upload_part", arguments)
        part = self._add_part(key, upload_id, number, read_body(body))
        await self.faults.after("upload_part", arguments)
        return part

    async def upload_part_copy(
        self, key: Key, upload_id: str, number: int, source: ContentRef, byte_range: ByteRange
    ) -> PartInfo:
        """See ``Store.upload_part_copy``."""
        arguments = {
            "key": key,
            "upload_id": upload_id,
            "number": number,
            "source": source,
            "byte_range": byte_range,
        }
        await self._begin("upload_part_copy", arguments)
        data = await self._source(source)
        if byte_range.stop > len(data):
            raise RangeError("the source ends inside the range", key=source.key, status=416)
        part = self._add_part(key, upload_id, number, data[byte_range.start : byte_range.stop])
        await self.faults.after("upload_part_copy", arguments)
        return part

    async def complete_multipart(
        self,
        key: Key,
        upload_id: str,
        parts: Sequence[PartInfo],
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """See ``Store.complete_multipart``."""
        arguments = {"key": key, "upload_id": upload_id, "parts": parts, "condition": condition}
        await self._begin("complete_multipart", arguments)
        upload = self._upload(key, upload_id)
        chosen = self._choose_parts(upload, parts)
        self._bucket.check(key, condition)
        digests = b"".join(bytes.fromhex(info.etag) for info, _ in chosen)
        etag = f"{self._bucket.etag_of(digests)}-{len(chosen)}"
        data = b"".join(data for _, data in chosen)
        lengths = tuple(len(data) for _, data in chosen)
        headers = upload.headers
        if self.loses_tags:
            headers = msgspec.structs.replace(headers, tags=None)
        result = self._bucket.store(key, data, etag, headers, lengths)
        del self._bucket.uploads[upload_id]
        await self.faults.after("complete_multipart", arguments)
        return result

    async def abort_multipart(self, key: Key, upload_id: str) -> None:
        """See ``Store.abort_multipart``."""
        arguments = {"key": key, "upload_id": upload_id}
        await self._begin("abort_multipart", arguments)
        upload = self._bucket.uploads.get(upload_id)
        if upload is not None and upload.key == key:
            del self._bucket.uploads[upload_id]
        await self.faults.after("abort_multipart", arguments)

    async def list_parts(self, key: Key, upload_id: str) -> list[PartInfo]:
        """See ``Store.list_parts``."""
        arguments = {"key": key, "upload_id": upload_id}
        await self._begin("list_parts", arguments)
        upload = self._upload(key, upload_id)
        found = [info for _, (info, _) in sorted(upload.parts.items())]
        await self.faults.after("list_parts", arguments)
        return found

    async def list_uploads(self, prefix: str) -> list[UploadInfo]:
        """See ``Store.list_uploads``."""
        arguments = {"prefix": prefix}
        await self._begin("list_uploads", arguments)
        found = [
            UploadInfo(upload.key, upload_id, upload.initiated_ns)
            for upload_id, upload in self._bucket.uploads.items()
            if upload.key.startswith(prefix)
        ]
        found.sort(key=lambda upload: (upload.key.encode(), upload.initiated_ns, upload.upload_id))
        await self.faults.after("list_uploads", arguments)
        return found

    async def may_write(self, temporary_key: Key) -> bool | None:
        """See ``Store.may_write``."""
        await trio.lowlevel.checkpoint()
        return True

    async def check_bucket(self, prefix: str = "") -> BucketInfo:
        """See ``Store.check_bucket``."""
        await self._begin("check_bucket", {})
        await self.faults.after("check_bucket", {})
        now_ns = self._bucket.clock.now_ns()
        date_ns = now_ns - now_ns % _SECOND_NS
        return BucketInfo(self.bucket, "memory", "memory:", self._bucket.versioning, date_ns)

    async def noncurrent_rule(self, prefix: str = "") -> str:
        """See ``Store.noncurrent_rule``: nothing is ever destroyed here."""
        await self._begin("lifecycle", {"prefix": prefix})
        return ""

    async def probe(
        self, temporary_key: Key, *, known: Capabilities | None = None, killed: Key = ""
    ) -> Capabilities:
        """See ``Store.probe``: everything is honoured here."""
        await self._begin("probe", {"temporary_key": temporary_key})
        await self.faults.after("probe", {"temporary_key": temporary_key})
        is_md5 = not self._bucket.is_opaque
        return Capabilities(
            *(True, True, True, "crc64nvme", "", True, True, True, is_md5),
            atomic=True,
            content_md5=True,
            copied_checksums=True,
            part_copies=True,
            markers=self.habits.markers,
            marker_metadata=self.habits.marker_metadata,
            lists_versions=self.habits.lists_versions,
            counts_tags=True,
            may_write=True,
            renames=self.habits.renames or None,
            appends=self.habits.appends or None,
        )

    async def try_version_dates(self, temporary_key: Key) -> bool | None:
        """See ``Store.try_version_dates``: as ``habits`` say."""
        await self._begin("try_version_dates", {"temporary_key": temporary_key})
        await self.faults.after("try_version_dates", {"temporary_key": temporary_key})
        return self.habits.version_dates if self._bucket.versioning == "enabled" else None

    async def statistics(self) -> dict[str, float]:
        """See ``Store.statistics``: ``requests`` and ``requests_<operation>``."""
        await trio.lowlevel.checkpoint()
        counted = {f"requests_{name}": float(n) for name, n in self.requests.items()}
        return {"requests": float(sum(self.requests.values())), **counted}

    async def _begin(self, operation: str, arguments: Mapping[str, object]) -> None:
        self.requests[operation] = self.requests.get(operation, 0) + 1
        await self.faults.before(operation, arguments)

    def _read(
        self,
        key: Key,
        byte_range: ByteRange | None,
        version_id: VersionId | None,
        if_match: ETag | None,
    ) -> tuple[ObjectInfo, bytes]:
        check_key(key)
        found = self._bucket.version(key, version_id)
        if if_match is not None and found.info.etag != if_match:
            raise replaced(key)
        data = found.data or b""
        if byte_range is not None:
            if byte_range.start >= len(data):
                raise RangeError("the range lies behind the end", key=key, status=416)
            data = data[byte_range.start : byte_range.stop]
        return _told(found.info), data

    async def _source(self, source: ContentRef) -> bytes:
        found = self._bucket.version(source.key, source.version_id)
        if found.info.etag != source.etag:
            raise replaced(source.key)
        if self.copy_gap_s:
            await trio.sleep(self.copy_gap_s)
            found = self._bucket.version(source.key, source.version_id)
        return found.data or b""

    def _upload(self, key: Key, upload_id: str) -> Upload:
        upload = self._bucket.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise NoSuchKeyError("no such upload", key=key, status=404, code="NoSuchUpload")
        return upload

    def _add_part(self, key: Key, upload_id: str, number: int, data: bytes) -> PartInfo:
        upload = self._upload(key, upload_id)
        if not 1 <= number <= PARTS_MAX:
            raise RejectedError(f"part number {number} is not in 1..{PARTS_MAX}", key=key)
        if len(data) > PART_BYTES_MAX:
            raise RejectedError(f"a part of {len(data)} bytes is too large", key=key)
        info = PartInfo(number, self._bucket.etag_of(data), len(data))
        upload.parts[number] = (info, data)
        return info

    def _choose_parts(
        self, upload: Upload, parts: Sequence[PartInfo]
    ) -> list[tuple[PartInfo, bytes]]:
        if not parts:
            raise RejectedError("an upload needs a part", key=upload.key, code="MalformedXML")
        numbers = [part.number for part in parts]
        if numbers != sorted(set(numbers)):
            raise RejectedError("parts are out of order", key=upload.key, code="InvalidPartOrder")
        chosen = []
        for part in parts:
            stored = upload.parts.get(part.number)
            if stored is None or stored[0].etag != part.etag:
                raise RejectedError(
                    f"part {part.number} is not there", key=upload.key, code="InvalidPart"
                )
            if part is not parts[-1] and stored[0].size < self.part_bytes_min:
                raise RejectedError(
                    f"part {part.number} is too small", key=upload.key, code="EntityTooSmall"
                )
            chosen.append(stored)
        return chosen


def _check_headers(headers: ObjectHeaders, key: Key) -> None:
    check_headers(headers, key)
    total = sum(len(name) + len(value) for name, value in headers.metadata.items())
    if total > METADATA_BYTES_MAX:
        raise RejectedError(
            f"{total} bytes of user metadata, S3 takes at most {METADATA_BYTES_MAX}",
            key=key,
            status=400,
            code="MetadataTooLarge",
        )


def _told(info: ObjectInfo) -> ObjectInfo:
    """An object as HEAD and GET tell it: of its tags only the number, of its ACL nothing."""
    headers = info.headers or ObjectHeaders()
    count = len(headers.tags.split("&")) if headers.tags else None
    told = msgspec.structs.replace(headers, tags=None, acl=None)
    return msgspec.structs.replace(_at_header_resolution(info), headers=told, tag_count=count)


def _at_header_resolution(info: ObjectInfo) -> ObjectInfo:
    """An object as HEAD and GET tell it: Last-Modified in whole seconds."""
    whole = info.last_modified_ns - info.last_modified_ns % _SECOND_NS
    return msgspec.structs.replace(info, last_modified_ns=whole)

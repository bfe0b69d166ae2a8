"""PUT, COPY, parts and DELETE by the HTTP client; conditions that hold, bytes that are verified."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Awaitable, Callable, Mapping

import trio

from s3mount.config import PART_BYTES_MAX
from s3mount.errors import (
    AccessDeniedError,
    ChecksumError,
    NoSuchKeyError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
    ServerFaultError,
    StoreError,
)
from s3mount.refs import (
    ANY,
    Body,
    ByteRange,
    Condition,
    ContentRef,
    ETag,
    Key,
    ObjectHeaders,
    PartInfo,
    PutResult,
    VersionId,
)
from s3mount.s3 import checksums
from s3mount.s3.calls.ambiguous_writes import settle_copy
from s3mount.s3.calls.reading import Reader
from s3mount.s3.calls.rights import Rights
from s3mount.s3.documents import parse_copy
from s3mount.s3.headers import (
    TAGGING_DIRECTIVE,
    bare_etag,
    beside,
    check_headers,
    check_key,
    http_date_ns,
    object_info,
    same_when_stored,
    to_http,
)
from s3mount.s3.http.genuine import ALWAYS_AFTER, is_marked, not_s3
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.http.requests import Answer, Call, body_bytes
from s3mount.s3.http.signing import UNSIGNED_PAYLOAD, canonical_query, encode_path
from s3mount.s3.traits import Traits

DIGEST_THREADS = 2
"""MD5 of bodies, 0.77 GB/s each, at nice 10; with 16 at once on two cores a writer of 1 GiB was half as fast."""
DAMAGED_TRIES = 3
PARTS_MAX = 10_000
UPLOADS_MAX = 10_000
"""Of so many uploads it is remembered whether their parts have checksums. Of others the first part tells."""
LEARN_BYTES_MAX = 256 * 1024
NO_ETAG = "00000000000000000000000000000000"
"""An ETag that no object has, to see whether a store heeds a condition."""


LOOK_AFTER_S_MAX = 1.0
COPY_SOURCE = "COPY x-amz-copy-source-if-match"
"""The name of the condition on a copy's source among ``Traits.unusable``."""


def condition_name(operation: str, condition: Condition) -> str:
    """What a condition of an operation is called in ``Traits.unusable``.

    >>> condition_name("PUT", Condition(if_absent=True))
    'PUT If-None-Match'
    """
    return f"{operation} {'If-None-Match' if condition.if_absent else 'If-Match'}"


class Writer:
    """The writing half of a store, multipart's control calls apart.

    ``checksummed``: of the last uploads, whether their parts have checksums.
    """

    def __init__(
        self, http: HttpClient, reader: Reader, traits: Traits, bucket: str, sign_payload: bool
    ) -> None:
        self._http = http
        self._reader = reader
        self._traits = traits
        self._bucket = bucket
        self._sign_payload = sign_payload
        self._tells_versions = 0
        self._digests = trio.CapacityLimiter(DIGEST_THREADS)
        self.checksummed: dict[str, bool] = {}
        self.rights = Rights(http.config.new_objects)

    async def put(
        self, key: Key, body: Body, headers: ObjectHeaders, condition: Condition
    ) -> PutResult:
        """See ``Store.put``."""
        check_key(key)
        check_headers(headers, key)
        _check_size(key, body)
        traits = self._traits
        honoured = traits.if_absent if condition.if_absent else traits.if_match
        call = Call("put", "PUT", key, body=body, size_bytes=body_bytes(body))

        async def send(wanted: dict[str, str]) -> PutResult:
            call.headers = wanted
            result = put_result(await self._send(call))
            if result.version_id is None and self._tells_versions >= ALWAYS_AFTER:
                return await self._looked_up(call, result)
            self._tells_versions = 0 if result.version_id is None else self._tells_versions + 1
            self._traits.versioned |= result.version_id is not None
            return result

        async def attempt(kept: dict[str, str]) -> PutResult:
            return await self.conditionally(
                "PUT",
                key,
                condition,
                lambda wanted: send(kept | wanted),
                is_honoured=bool(honoured),
            )

        try:
            return await self.rights.as_allowed(key, to_http(headers), headers, attempt)
        except PreconditionFailedError:
            if call.in_doubt:
                found = await self._find_ours(key, body, headers)
                if found is not None:
                    return found
            raise
        finally:
            call.close()

    async def _looked_up(self, call: Call, result: PutResult) -> PutResult:
        """``result`` from a store that always tells a version and now did not. Raises NotS3Error unless it is there."""
        now = None
        with contextlib.suppress(NoSuchKeyError):
            now = await self._reader.head(call.key)
        if now is None or now.etag != result.etag:
            raise not_s3("no version id, and another object is there", call, 200, {})
        self._tells_versions = 0
        return PutResult(result.etag, now.version_id, result.date_ns)

    async def conditionally(
        self,
        operation: str,
        key: Key,
        condition: Condition,
        send: Callable[[dict[str, str]], Awaitable[PutResult]],
        *,
        is_honoured: bool,
    ) -> PutResult:
        """Send a write with its condition, or after a look at the key where the store is not known to honour it.

        Then a refusal counts only where another look agrees, as some stores refuse a condition that
        holds, or know none (501). Such a condition of this ``operation`` is not sent any more.
        """
        if condition == ANY:
            return await send({})
        name = condition_name(operation, condition)
        unusable = self._traits.unusable
        if not is_honoured or name in unusable:
            await self.look_before(key, condition)
        if name in unusable:
            began_s = trio.current_time()
            made = await send({})
            if self._may_both_win(operation, condition):
                await self._look_after(key, made, trio.current_time() - began_s)
            return made
        for is_last in (False, True):
            began_s = trio.current_time()
            try:
                made = await self._spelt(key, condition, send, is_honoured=is_honoured)
            except (PreconditionFailedError, RejectedError) as error:
                is_unknown = error.status == 501
                is_refused = isinstance(error, PreconditionFailedError) and not is_honoured
                if not (is_unknown or is_refused):
                    raise
                await self._agree(key, condition, error)
                if is_unknown or is_last or condition.if_match is not None:
                    break
            else:
                if self._may_both_win(operation, condition):
                    await self._look_after(key, made, trio.current_time() - began_s)
                return made
        result = await send({})
        unusable.add(name)
        return result

    def _may_both_win(self, operation: str, condition: Condition) -> bool:
        """May two writers at once both be told that their conditional write took effect?

        Of a copy or a completion whose condition is not honoured that is not asked: it would cost every rename.
        """
        traits = self._traits
        honoured = traits.if_absent if condition.if_absent else traits.if_match
        return traits.atomic is False or (operation == "PUT" and honoured is False)

    async def _look_after(self, key: Key, made: PutResult, took_s: float) -> None:
        """See whether another write came after ours, which both are told to have taken effect.

        It was under way when ours was answered, and takes about as long. Raises PreconditionFailedError.
        """
        await trio.sleep(min(took_s, LOOK_AFTER_S_MAX))
        try:
            now = await self._reader.head(key)
        except NoSuchKeyError:
            return
        if now.etag != made.etag:
            raise PreconditionFailedError(
                "somebody else wrote the object at the same time", key=key, status=412
            )

    async def _agree(self, key: Key, condition: Condition, refusal: StoreError) -> None:
        """Raise ``refusal`` if a look at the key says the same."""
        try:
            await self.look_before(key, condition)
        except PreconditionFailedError as error:
            raise refusal if refusal.status == 412 else error from error

    async def _spelt(
        self,
        key: Key,
        condition: Condition,
        send: Callable[[dict[str, str]], Awaitable[PutResult]],
        *,
        is_honoured: bool,
    ) -> PutResult:
        """Send a write with its condition, in the spelling of If-Match that the store understands.

        While that is unknown, a refusal of the quoted spelling is only believed when the bare one
        is refused as well. A key that is gone fails If-Match like one that was replaced. The success
        of a write whose condition the store is not known to honour (``is_honoured``) does not show
        that it understands the quotes.
        """
        etag = condition.if_match
        if etag is None:
            return await send({"if-none-match": "*"})
        traits = self._traits
        known = traits.if_match_quoted
        for quoted in (True, False) if known is None else (known,):
            try:
                result = await send({"if-match": f'"{etag}"' if quoted else etag})
            except PreconditionFailedError:
                if known is not None or not quoted:
                    raise
            except NoSuchKeyError as error:
                if error.code == "NoSuchUpload":
                    raise
                raise _gone(error) from error
            else:
                if is_honoured or not quoted:
                    traits.if_match_quoted = quoted
                return result
        raise AssertionError("unreachable")

    async def look_before(self, key: Key, condition: Condition) -> None:
        """HEAD in place of a condition that the store may ignore. Raises PreconditionFailedError."""
        if condition == ANY:
            await trio.lowlevel.checkpoint()
            return
        try:
            now = await self._reader.head(key)
        except NoSuchKeyError as error:
            if condition.if_absent:
                return
            raise _gone(error) from error
        if condition.if_absent or now.etag != condition.if_match:
            raise PreconditionFailedError("somebody else changed the object", key=key, status=412)

    async def _send(self, call: Call, *, has_crc: bool = True) -> Answer:
        """Send a body so that the store verifies it, or verify what the store says of it.

        Without ``has_crc`` it gets no CRC: it belongs to an upload that has none.
        """
        plain = call.headers
        use_crc = has_crc and self._traits.echoes_checksums is not False
        for _ in range(DAMAGED_TRIES):
            md5 = await self.seal(call, plain, use_crc)
            try:
                answer = await self._http.call(call)
            except RejectedError as error:
                if not (use_crc and _about_checksums(error)):
                    raise
                use_crc = False
                continue
            if await self._verified(call, answer, md5):
                return answer
            use_crc = has_crc and self._traits.echoes_checksums is not False
            self._http.statistics.checksum_errors += 1
        raise ChecksumError("the store has other bytes than were sent", key=call.key)

    async def seal(self, call: Call, plain: Mapping[str, str], use_crc: bool) -> bytes | None:
        """Put the body's digests into the headers; the MD5 if it was needed.

        CRC64NVME takes 0.02 s a GiB, MD5 1.3 s, on a thread. The MD5 goes ahead as Content-MD5 rather
        than being compared afterwards: it costs the same, the store refuses wrong bytes before they
        can be seen, and with several parts under way it overlaps with the sending of others.
        """
        body = call.body if call.body is not None else b""
        call.headers = dict(plain)
        md5 = None
        if use_crc:
            crc = await checksums.off_loop(checksums.crc64nvme, body, self._digests)
            call.headers[checksums.CRC_HEADER] = crc
            call.headers["x-amz-sdk-checksum-algorithm"] = "CRC64NVME"
        else:
            md5 = await checksums.off_loop(checksums.md5, body, self._digests)
            call.headers["content-md5"] = base64.b64encode(md5).decode()
        # S3 accepts UNSIGNED-PAYLOAD over http as over https ("Authenticating Requests: Using the
        # Authorization Header", unsigned payload option; presigned URLs know nothing else), as do
        # LocalStack 4.8 and Ceph 16. SHA-256 would cost 0.7 s a GiB and hold the GIL; the digest
        # above is signed, and guards against accidents as well. Against somebody who changes bytes
        # on the way there is https, or payload_signing_enabled in the AWS configuration file.
        call.payload_hash = UNSIGNED_PAYLOAD
        if self._sign_payload:
            call.payload_hash = await checksums.off_loop(checksums.sha256, body, self._digests)
        return md5

    async def _verified(self, call: Call, answer: Answer, md5: bytes | None) -> bool:
        """Does the answer show that the store has what was sent? Learns what can be relied on."""
        traits = self._traits
        body = call.body if call.body is not None else b""
        etag = bare_etag(answer.headers.get("etag", ""))
        echo = answer.headers.get(checksums.CRC_HEADER)
        sent = call.headers.get(checksums.CRC_HEADER)
        comparable = checksums.etag_is_md5(etag, answer.headers)
        if echo and sent:
            traits.echoes_checksums = True
            if traits.etag_is_md5 is None and comparable and body_bytes(body) <= LEARN_BYTES_MAX:
                traits.etag_is_md5 = checksums.md5(body).hex() == etag
            return echo == sent
        if traits.echoes_checksums is None and sent:
            traits.echoes_checksums = False
        if traits.etag_is_md5 is False or not comparable:
            return True
        # A store may take the header and not look at it.
        may_be_unchecked = traits.content_md5 is False and traits.etag_is_md5 is not None
        is_checked = md5 is not None and not may_be_unchecked
        if md5 is None:
            md5 = await checksums.off_loop(checksums.md5, body, self._digests)
        matches = md5.hex() == etag
        if matches or is_checked:
            # A store that accepted Content-MD5 has the right bytes, whatever its ETag is.
            traits.etag_is_md5 = matches
        return matches or is_checked

    async def _find_ours(self, key: Key, body: Body, headers: ObjectHeaders) -> PutResult | None:
        """What is there, if it is what an earlier try of ours sent."""
        try:
            answer = await self._reader.head_answer(key, checksum=True)
        except NoSuchKeyError:
            return None
        info = object_info(key, answer.headers, int(answer.headers.get("content-length", "-1")))
        if info.size != body_bytes(body) or info.headers is None:
            return None
        if not same_when_stored(info.headers, headers):
            return None
        crc = answer.headers.get(checksums.CRC_HEADER)
        if crc and checksums.promised(answer.headers) is not None:
            ours = crc == await checksums.off_loop(checksums.crc64nvme, body, self._digests)
        elif checksums.etag_is_md5(info.etag, answer.headers):
            md5 = await checksums.off_loop(checksums.md5, body, self._digests)
            ours = info.etag == md5.hex()
        else:
            ours = False
        return put_result(answer) if ours else None

    async def copy(
        self,
        source: ContentRef,
        key: Key,
        headers: ObjectHeaders | None,
        condition: Condition,
        stored: ObjectHeaders,
    ) -> PutResult:
        """See ``Store.copy``, up to 5 GiB. Without ``headers``, ``stored`` are those of the source."""
        check_key(key)
        if headers is not None:
            check_headers(headers, key)
        is_honoured = bool(self._traits.copy_condition)
        guards = await self._guard_source(source)
        base = self._source_headers(source) | guards
        kept = (
            beside(stored)
            if headers is None
            else _replacing(headers, is_same=source.key == key and not source.bucket)
        )
        call = Call(
            "copy",
            "PUT",
            key,
            size_bytes=source.size,
            error_in_body=True,
            source=self._place(source),
        )

        async def send(wanted: dict[str, str]) -> PutResult:
            call.headers = base | wanted
            answer, (etag, _) = await self._http.read(call, _copied_object)
            if not etag:
                why = ServerFaultError("a CopyObjectResult without an ETag", key=key, status=200)
                return await settle_copy(self._reader.head, source, key, headers, why)
            return await self.with_version(key, put_result(answer, etag))

        async def attempt(kept: dict[str, str]) -> PutResult:
            return await self.conditionally(
                "COPY",
                key,
                condition,
                lambda wanted: send(kept | wanted),
                is_honoured=is_honoured,
            )

        try:
            return await self.rights.as_allowed(
                key,
                kept,
                stored if headers is None else headers,
                attempt,
                takes_tags_along=TAGGING_DIRECTIVE not in kept,
            )
        except AccessDeniedError as error:
            if source.bucket:
                raise
            # Refused may be what is to be read, and that because it is not there.
            found = await self._reader.told_apart(error, source.key, source.version_id)
            raise found from error
        except PreconditionFailedError as error:
            if not call.in_doubt:
                raise
            return await settle_copy(self._reader.head, source, key, headers, error)

    def _place(self, source: ContentRef) -> tuple[str, Key]:
        return source.bucket or self._bucket, source.key

    def _source_headers(self, source: ContentRef) -> dict[str, str]:
        bucket, key = self._place(source)
        # An access point's objects lie below "object/" (CopyObject, x-amz-copy-source).
        between = "/object/" if bucket.startswith("arn:") else "/"
        place = encode_path(f"{bucket}{between}{key}")
        if source.version_id is not None:
            place += "?" + canonical_query([("versionId", source.version_id)])
        return {"x-amz-copy-source": place}

    async def with_version(self, key: Key, result: PutResult) -> PutResult:
        """``result`` with its version id, where the bucket keeps versions and the store did not tell.

        Ceph 16 names the version made by PUT, but not that made by COPY or by a multipart upload.
        """
        if result.version_id is not None or not self._traits.versioned:
            return result
        try:
            now = await self._reader.head(key)
        except NoSuchKeyError:
            return result
        if now.etag != result.etag:
            return result
        return PutResult(result.etag, now.version_id, result.date_ns)

    async def _guard_source(self, source: ContentRef) -> dict[str, str]:
        """Headers that make a copy fail unless its source is still that version.

        A version id pins by itself. Where the store ignores the condition on the ETag (or may do
        so), a HEAD looks just before; not in another bucket, where whoever names it has just looked.
        """
        check_key(source.key)
        if source.version_id is not None:
            await trio.lowlevel.checkpoint()
            return {}
        if not self._traits.copy_source_condition and not source.bucket:
            now = await self._reader.head(source.key)
            if now.etag != source.etag:
                raise PreconditionFailedError(
                    "the source of the copy was replaced", key=source.key, status=412
                )
        if COPY_SOURCE in self._traits.unusable:
            return {}
        return {"x-amz-copy-source-if-match": f'"{source.etag}"'}

    async def upload_part(self, key: Key, upload_id: str, number: int, body: Body) -> PartInfo:
        """See ``Store.upload_part``."""
        _check_part(key, number)
        _check_size(key, body)
        query = canonical_query([("partNumber", str(number)), ("uploadId", upload_id)])
        size_bytes = body_bytes(body)
        call = Call("upload_part", "PUT", key, query=query, body=body, size_bytes=size_bytes)
        try:
            answer = await self._send(call, has_crc=self.checksummed.get(upload_id, True))
        finally:
            call.close()
        etag = bare_etag(answer.headers.get("etag", ""))
        checksum = answer.headers.get(checksums.CRC_HEADER)
        if checksum is None and self._traits.echoes_checksums:
            # What was taken with a checksum has it, also where this answer does not repeat it.
            checksum = call.headers.get(checksums.CRC_HEADER)
        self.note_upload(upload_id, has_checksums=checksum is not None)
        return PartInfo(number, etag, size_bytes, checksum)

    def note_upload(self, upload_id: str, *, has_checksums: bool) -> None:
        """Do the parts of this upload have checksums? S3 takes them in all parts of an upload, or in none."""
        while len(self.checksummed) >= UPLOADS_MAX and upload_id not in self.checksummed:
            del self.checksummed[next(iter(self.checksummed))]
        self.checksummed[upload_id] = has_checksums

    async def upload_part_copy(
        self, key: Key, upload_id: str, number: int, source: ContentRef, byte_range: ByteRange
    ) -> PartInfo:
        """See ``Store.upload_part_copy``."""
        _check_part(key, number)
        if byte_range.stop > source.size:
            raise RangeError("the source ends inside the range", key=source.key, status=416)
        guards = await self._guard_source(source)
        guards |= _source_range(byte_range)
        call = Call(
            "upload_part_copy",
            "PUT",
            key,
            query=canonical_query([("partNumber", str(number)), ("uploadId", upload_id)]),
            headers=self._source_headers(source) | guards,
            size_bytes=byte_range.length,
            error_in_body=True,
            source=self._place(source),
        )
        try:
            _, (etag, checksum) = await self._http.read(call, _copied_part)
        except AccessDeniedError as error:
            if source.bucket:
                raise
            found = await self._reader.told_apart(error, source.key, source.version_id)
            raise found from error
        return PartInfo(number, etag, byte_range.length, checksum)

    async def delete(
        self, key: Key, version_id: VersionId | None, if_match: ETag | None = None
    ) -> None:
        """See ``Store.delete``."""
        check_key(key)
        query = canonical_query([("versionId", version_id)]) if version_id else ""
        call = Call("delete", "DELETE", key, query=query)
        try:
            if if_match is not None and not self._traits.keeps_deleted:
                if self._traits.delete_condition:
                    call.headers = {"if-match": f'"{if_match}"'}
                else:
                    await self.look_before(key, Condition(if_match=if_match))
            answer = await self._http.call(call)
            if not is_marked(answer.headers):
                await self._must_be_gone(call, answer, version_id)
        except NoSuchKeyError:
            return
        except PreconditionFailedError as error:
            # It is gone: before, or by a try of ours whose answer was lost.
            if error.status == 404 or (call.in_doubt and await self._is_gone(key)):
                return
            raise

    async def _must_be_gone(self, call: Call, answer: Answer, version_id: VersionId | None) -> None:
        """What answered a deletion has nothing of S3 on it: ask. Raises NotS3Error when the object is there."""
        try:
            await self._reader.confirm(call.key, version_id)
        except (NoSuchKeyError, AccessDeniedError):
            return  # or the credentials may not look: S3 it is, and more cannot be asked
        raise not_s3("the object is still there", call, answer.status, answer.headers)

    async def _is_gone(self, key: Key) -> bool:
        try:
            await self._reader.head(key)
        except NoSuchKeyError:
            return True
        return False

    async def delete_bare(self, key: Key, if_match: str = "") -> VersionId | None:
        """DeleteObject with this very header; the version that it made, such as a delete marker's."""
        call = Call("delete", "DELETE", key, headers={"if-match": if_match} if if_match else {})
        answer = await self._http.call(call)
        return answer.headers.get("x-amz-version-id")

    async def copy_bare(self, source: ContentRef, key: Key, headers: dict[str, str]) -> PutResult:
        """CopyObject with just these conditions, looking at nothing before or after."""
        wanted = self._source_headers(source) | headers
        wanted["x-amz-metadata-directive"] = "REPLACE"
        call = Call(
            "copy",
            "PUT",
            key,
            headers=wanted,
            size_bytes=source.size,
            error_in_body=True,
            source=self._place(source),
        )
        answer, (etag, _) = await self._http.read(call, _copied_object)
        return put_result(answer, etag)

    async def copy_part_bare(
        self, source: ContentRef, key: Key, upload_id: str, byte_range: ByteRange | None = None
    ) -> PartInfo:
        """UploadPartCopy of ``source`` (or a range) as the first part, looking at nothing before or after."""
        headers = self._source_headers(source)
        if byte_range is not None:
            headers |= _source_range(byte_range)
        call = Call(
            "upload_part_copy",
            "PUT",
            key,
            query=canonical_query([("partNumber", "1"), ("uploadId", upload_id)]),
            headers=headers,
            size_bytes=source.size,
            error_in_body=True,
            source=self._place(source),
        )
        _, (etag, checksum) = await self._http.read(call, _copied_part, tries_max=2)
        size = source.size if byte_range is None else byte_range.length
        return PartInfo(1, etag, size, checksum)


def _source_range(byte_range: ByteRange) -> dict[str, str]:
    return {"x-amz-copy-source-range": f"bytes={byte_range.start}-{byte_range.stop - 1}"}


def _replacing(headers: ObjectHeaders, *, is_same: bool) -> dict[str, str]:
    """The request headers of a copy that gets ``headers`` and nothing of its source."""
    wanted = to_http(headers) | {"x-amz-metadata-directive": "REPLACE"}
    if headers.tags or not is_same:
        # Of a copy to its own key the tags that were not told stay, as they do without a directive.
        wanted[TAGGING_DIRECTIVE] = "REPLACE"
    return wanted


def _about_checksums(error: RejectedError) -> bool:
    """Was a request refused because the store does not take checksum headers, or not these?"""
    return error.status == 501 or (error.status == 400 and "checksum" in str(error).lower())


def _gone(error: NoSuchKeyError) -> PreconditionFailedError:
    return PreconditionFailedError(
        "somebody else deleted the object", key=error.key, status=error.status, code=error.code
    )


def _copied_object(body: bytes) -> tuple[str, str | None]:
    return parse_copy(body, "CopyObjectResult")


def _copied_part(body: bytes) -> tuple[str, str | None]:
    return parse_copy(body, "CopyPartResult")


def _check_part(key: Key, number: int) -> None:
    check_key(key)
    if not 1 <= number <= PARTS_MAX:
        raise RejectedError(f"part number {number} is not in 1..{PARTS_MAX}", key=key)


def _check_size(key: Key, body: Body) -> None:
    if body_bytes(body) > PART_BYTES_MAX:
        raise RejectedError(
            f"{body_bytes(body)} bytes are too many for one request, S3 takes 5 GiB", key=key
        )


def put_result(answer: Answer, etag: str | None = None) -> PutResult:
    """What an answer to a write tells of what it made."""
    return PutResult(
        bare_etag(answer.headers.get("etag", "")) if etag is None else etag,
        answer.headers.get("x-amz-version-id"),
        http_date_ns(answer.headers.get("date", "")),
    )

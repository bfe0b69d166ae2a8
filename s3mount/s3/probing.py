"""What does this store honour? Found out by trying, under a temporary key that is removed again.

Stores differ where it matters most: some take every conditional write (in a versioned bucket, or
always), want If-Match without its quotes, or ignore checksum headers. Each aspect is tried on a
key of its own, all at once: about four round trips together.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable

import trio

from s3mount.errors import (
    AccessDeniedError,
    ArchivedError,
    NoSuchBucketError,
    NoSuchKeyError,
    PreconditionFailedError,
    RejectedError,
    StoreError,
    WrongRegionError,
)
from s3mount.refs import Capabilities, ContentRef, Key, ObjectHeaders, PartInfo, PutResult
from s3mount.s3.checksums import etag_is_md5, md5
from s3mount.s3.headers import bare_etag, http_date_ns
from s3mount.s3.multipart import Multipart
from s3mount.s3.plane import Plane
from s3mount.s3.reading import Reader
from s3mount.s3.requests import Call
from s3mount.s3.signing import UNSIGNED_PAYLOAD
from s3mount.s3.traits import Traits
from s3mount.s3.writing import NO_ETAG, Writer

_log = logging.getLogger(__name__)

CLEAN_UP_S = 10.0
_BODY = b"s3mount tries what this store honours; to be deleted"
_CHECKSUM_BYTES = {"crc64nvme": 8, "crc32c": 4, "crc32": 4}
_NO_WAY = (AccessDeniedError, NoSuchBucketError, WrongRegionError)


class Prober:
    """One run of the probe; what it finds goes into ``traits`` as well."""

    def __init__(
        self,
        plane: Plane,
        reader: Reader,
        writer: Writer,
        multipart: Multipart,
        traits: Traits,
        key: Key,
    ) -> None:
        self._plane = plane
        self._reader = reader
        self._writer = writer
        self._multipart = multipart
        self._traits = traits
        self._key = key
        self._checksum: str | None = None
        self._reasons: dict[str, str] = {}
        self._written: list[tuple[Key, str | None]] = []

    async def run(self) -> Capabilities:
        """Try everything. Never raises a StoreError."""
        aspects: dict[str, Callable[[Key], Awaitable[None]]] = {
            "if-match": self._try_if_match,
            "if-absent": self._try_if_absent,
            "complete": self._try_complete,
            "copy": self._try_copy,
            "copy-source": self._try_copy_source,
            "delete": self._try_delete,
            "checksum": self._try_checksums,
        }
        try:
            async with trio.open_nursery() as nursery:
                for name, aspect in aspects.items():
                    nursery.start_soon(self._try, name, aspect)
        finally:
            with trio.move_on_after(CLEAN_UP_S, shield=True):
                async with trio.open_nursery() as nursery:
                    for key in dict.fromkeys(key for key, _ in self._written):
                        nursery.start_soon(self._remove, key)
        traits = self._traits
        return Capabilities(
            if_match=traits.if_match,
            if_absent=traits.if_absent,
            complete_condition=traits.complete_condition,
            checksum=self._checksum,
            reason="; ".join(dict.fromkeys(self._reasons.values())),
            copy_condition=traits.copy_condition,
            copy_source_condition=traits.copy_source_condition,
            delete_condition=traits.delete_condition,
            etag_is_md5=traits.etag_is_md5,
        )

    async def _try(self, name: str, aspect: Callable[[Key], Awaitable[None]]) -> None:
        try:
            await aspect(f"{self._key}.{name}")
        except StoreError as error:
            _log.info("%s could not be tried: %s", name, error.describe())
            self._reasons[name] = str(error)

    async def _put(self, key: Key, headers: dict[str, str] | None = None) -> PutResult:
        """A bare PUT, with nothing added and nothing believed."""
        call = Call("probe", "PUT", key, headers=headers, body=_BODY, payload_hash=UNSIGNED_PAYLOAD)
        answer = await self._plane.call(call)
        version_id = answer.headers.get("x-amz-version-id")
        self._written.append((key, version_id))
        etag = bare_etag(answer.headers.get("etag", ""))
        is_md5 = etag_is_md5(etag, answer.headers) and etag == md5(_BODY).hex()
        self._traits.etag_is_md5 = is_md5
        return PutResult(etag, version_id, http_date_ns(answer.headers.get("date", "")))

    async def _refused(self, attempt: Awaitable[object]) -> bool:
        """Is the attempt refused, by a failed condition or as something unknown?"""
        try:
            await attempt
        except PreconditionFailedError:
            return True
        except RejectedError as error:
            if error.status == 501:
                return False
            raise
        return False

    async def _try_if_absent(self, key: Key) -> None:
        await self._put(key)
        self._traits.if_absent = await self._refused(self._put(key, {"if-none-match": "*"}))

    async def _try_if_match(self, key: Key) -> None:
        made = await self._put(key)
        for quoted in (True, False):
            spelt = '"{}"' if quoted else "{}"
            if await self._refused(self._put(key, {"if-match": spelt.format(made.etag)})):
                continue
            honoured = await self._refused(self._put(key, {"if-match": spelt.format(NO_ETAG)}))
            self._traits.if_match = honoured
            if honoured:
                self._traits.if_match_quoted = quoted
            return
        # Every If-Match is refused, also the true one: it cannot be used.
        self._traits.if_match = False
        self._traits.if_match_works = False

    async def _try_complete(self, key: Key) -> None:
        await self._put(key)
        upload_id = await self._multipart.create(key, ObjectHeaders())
        try:
            part = await self._writer.upload_part(key, upload_id, 1, _BODY)
            self._traits.complete_condition = await self._refused(
                self._complete(key, upload_id, part)
            )
        finally:
            with trio.move_on_after(CLEAN_UP_S, shield=True):
                await self._abort(key, upload_id)

    async def _complete(self, key: Key, upload_id: str, part: PartInfo) -> None:
        version_id = await self._multipart.complete_bare(
            key, upload_id, part, {"if-none-match": "*"}
        )
        self._written.append((key, version_id))

    async def _abort(self, key: Key, upload_id: str) -> None:
        try:
            await self._multipart.abort(key, upload_id)
        except StoreError as error:
            _log.debug("the probe's upload stays behind: %s", error.describe())

    async def _try_copy(self, key: Key) -> None:
        made = await self._put(key)
        source = ContentRef(key, made.etag, len(_BODY), made.version_id)
        self._traits.copy_condition = await self._refused(
            self._copy(source, key, {"if-none-match": "*"})
        )

    async def _try_copy_source(self, key: Key) -> None:
        made = await self._put(key)
        source = ContentRef(key, made.etag, len(_BODY))
        guard = {"x-amz-copy-source-if-match": f'"{NO_ETAG}"'}
        self._traits.copy_source_condition = await self._refused(self._copy(source, key, guard))

    async def _try_delete(self, key: Key) -> None:
        made = await self._put(key)
        honoured = await self._refused(self._delete(key, NO_ETAG))
        if honoured:
            # One that refuses the true ETag as well is of no use.
            honoured = not await self._refused(self._delete(key, made.etag))
        self._traits.delete_condition = honoured

    async def _delete(self, key: Key, etag: str) -> None:
        version_id = await self._writer.delete_bare(key, f'"{etag}"')
        if version_id is not None:
            self._written.append((key, version_id))

    async def _copy(self, source: ContentRef, key: Key, headers: dict[str, str]) -> None:
        made = await self._writer.copy_bare(source, key, headers)
        self._written.append((key, made.version_id))

    async def _try_checksums(self, key: Key) -> None:
        await self._put(key)
        for name, length in _CHECKSUM_BYTES.items():
            wrong = base64.b64encode(b"\0" * length).decode()
            if await self._refuses_body(key, {f"x-amz-checksum-{name}": wrong}):
                self._checksum = name
                break
        self._traits.echoes_checksums = self._checksum == "crc64nvme"

    async def _refuses_body(self, key: Key, headers: dict[str, str]) -> bool:
        """Is a PUT with a wrong digest refused because of it, and not as something unknown?"""
        call = Call("probe", "PUT", key, headers=headers, body=_BODY, payload_hash=UNSIGNED_PAYLOAD)
        try:
            answer = await self._plane.once(call, 0)
        except StoreError as error:
            if isinstance(error, (*_NO_WAY, ArchivedError)) or error.status >= 500:
                raise
            return error.code in ("BadDigest", "XAmzContentChecksumMismatch")
        self._written.append((key, answer.headers.get("x-amz-version-id")))
        return False

    async def _remove(self, key: Key) -> None:
        """Remove every version that was written, also those whose ids the store did not tell."""
        ids = [version_id for written, version_id in self._written if written == key]
        try:
            for version_id in ids:
                if version_id is not None:
                    await self._writer.delete(key, version_id)
            for version_id in ids:
                if version_id is None:
                    left = await self._reader.head(key)
                    await self._writer.delete(key, left.version_id)
        except NoSuchKeyError:
            return
        except StoreError as error:
            _log.warning("the probe's object stays behind: %s", error.describe())

"""The control plane: boto3 in threads, for calls that are few and need no speed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import trio

from s3mount.config import StoreConfig
from s3mount.errors import DeadlineError, StoreError
from s3mount.flow.backoff import Backoff
from s3mount.refs import ANY, Condition, Key, ObjectHeaders, PartInfo, PutResult, UploadInfo
from s3mount.s3.checksums import combined_crc64nvme
from s3mount.s3.credentials import STALE_CODES, Renew
from s3mount.s3.documents import restored
from s3mount.s3.headers import bare_etag, http_date_ns
from s3mount.s3.mapping import Refusal, from_boto
from s3mount.s3.resolve import CONTROL_CONNECTIONS, CONTROL_READ_TIMEOUT_S, S3Client
from s3mount.s3.statistics import Statistics

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_FIELDS = (
    ("content_type", "ContentType"),
    ("content_encoding", "ContentEncoding"),
    ("content_language", "ContentLanguage"),
    ("content_disposition", "ContentDisposition"),
    ("cache_control", "CacheControl"),
    ("expires", "Expires"),
    ("storage_class", "StorageClass"),
)


class Control:
    """boto3's client for one bucket. Calls are bounded by its own time-outs and, above, by ours.

    A cancelled call goes on in its thread until boto3's read time-out; its place in the limiter
    is held until then, so that abandoned threads stay bounded too.
    """

    def __init__(
        self, config: StoreConfig, client: S3Client, statistics: Statistics, renew: Renew
    ) -> None:
        self.client = client
        self._renew = renew
        self._config = config
        self._statistics = statistics
        self._limiter = trio.CapacityLimiter(CONTROL_CONNECTIONS)
        self._backoff = Backoff()
        self._common: dict[str, Any] = {"Bucket": config.bucket}
        if config.request_payer:
            self._common["RequestPayer"] = "requester"

    def close(self) -> None:
        """Close boto3's idle connections."""
        self.client.close()

    async def run(self, kind: str, key: Key, function: Callable[[], _T]) -> _T:
        """Run ``function`` in a thread, again after errors that may pass. Raises StoreError."""
        retry = 0
        while True:
            try:
                return await self._once(kind, key, function)
            except StoreError as error:
                if error.code in STALE_CODES and await self._renew():
                    continue
                retry += 1
                if not error.retryable or retry >= self._config.tries_max:
                    raise
                delay_s = self._backoff.delay_s(retry, retry_after_s=error.retry_after_s)
                _log.debug("try %d of %s failed: %s", retry, kind, error.describe())
            self._statistics.retries += 1
            await trio.sleep(delay_s)

    async def _once(self, kind: str, key: Key, function: Callable[[], _T]) -> _T:
        # Above boto3's own limits, for an answer that trickles in.
        allowed_s = self._config.connect_timeout_s + 2 * CONTROL_READ_TIMEOUT_S
        self._statistics.count(kind)
        began_s = trio.current_time()
        with trio.move_on_after(allowed_s) as scope:
            try:
                return await self._in_thread(key, function)
            except StoreError:
                self._statistics.failed += 1
                raise
            finally:
                now = trio.current_time()
                self._statistics.ended(now - began_s, now - scope.deadline)
        self._statistics.failed += 1
        self._statistics.overdue += 1
        raise DeadlineError(f"the store did not answer within {allowed_s:.0f} s", key=key)

    async def _in_thread(self, key: Key, function: Callable[[], _T]) -> _T:
        def guarded() -> _T:
            try:
                return function()
            except StoreError:
                raise
            except Exception as error:
                # boto3 raises its own types, and those of what it is built on.
                raise from_boto(error, key=key, bucket=self._config.bucket) from error

        return await trio.to_thread.run_sync(guarded, limiter=self._limiter, abandon_on_cancel=True)

    async def create_multipart(self, key: Key, headers: ObjectHeaders, checksum: bool) -> str:
        """CreateMultipartUpload; with ``checksum`` every part must bring its CRC64NVME."""
        arguments: dict[str, Any] = {"Key": key, "Metadata": dict(headers.metadata)}
        for field, name in _FIELDS:
            value = getattr(headers, field)
            if value is not None:
                arguments[name] = value
        if checksum:
            arguments.update(ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT")

        def create() -> str:
            return str(self.client.create_multipart_upload(**self._common, **arguments)["UploadId"])

        return await self.run("create_multipart", key, create)

    async def complete_multipart(
        self,
        key: Key,
        upload_id: str,
        parts: Sequence[PartInfo],
        condition: Condition = ANY,
    ) -> PutResult:
        """CompleteMultipartUpload; ``condition.if_match`` is sent as it is. One try only."""
        listed = []
        for part in parts:
            entry: dict[str, Any] = {"PartNumber": part.number, "ETag": f'"{part.etag}"'}
            if part.checksum:
                entry["ChecksumCRC64NVME"] = part.checksum
            listed.append(entry)
        arguments = _conditional(key, upload_id, condition)
        arguments["MultipartUpload"] = {"Parts": listed}
        whole = combined_crc64nvme(parts)
        if whole is not None:
            arguments.update(ChecksumCRC64NVME=whole, ChecksumType="FULL_OBJECT")
        return await self._complete(key, arguments)

    async def complete_bare(
        self, key: Key, upload_id: str, etag: str, condition: Condition
    ) -> PutResult:
        """CompleteMultipartUpload of one part, without checksums. One try only."""
        arguments = _conditional(key, upload_id, condition)
        arguments["MultipartUpload"] = {"Parts": [{"PartNumber": 1, "ETag": f'"{etag}"'}]}
        return await self._complete(key, arguments)

    async def _complete(self, key: Key, arguments: dict[str, Any]) -> PutResult:
        def complete() -> PutResult:
            said = self.client.complete_multipart_upload(**self._common, **arguments)
            about = said["ResponseMetadata"]["HTTPHeaders"]
            return PutResult(
                bare_etag(said.get("ETag", "")),
                said.get("VersionId"),
                http_date_ns(about.get("date", "")),
            )

        return await self._once("complete_multipart", key, complete)

    async def abort_multipart(self, key: Key, upload_id: str) -> None:
        """AbortMultipartUpload. Raises NoSuchKeyError when it is gone."""

        def abort() -> None:
            self.client.abort_multipart_upload(**self._common, Key=key, UploadId=upload_id)

        await self.run("abort_multipart", key, abort)

    async def list_parts(self, key: Key, upload_id: str) -> list[PartInfo]:
        """ListParts, all pages."""

        def list_all() -> list[PartInfo]:
            pages = self.client.get_paginator("list_parts").paginate(
                **self._common, Key=key, UploadId=upload_id
            )
            return [
                PartInfo(
                    part["PartNumber"],
                    bare_etag(part["ETag"]),
                    part["Size"],
                    part.get("ChecksumCRC64NVME"),
                )
                for page in pages
                for part in page.get("Parts", ())
            ]

        return await self.run("list_parts", key, list_all)

    async def list_uploads(self, prefix: str) -> list[UploadInfo]:
        """ListMultipartUploads, all pages."""

        def list_all() -> list[UploadInfo]:
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                **self._common, Prefix=prefix
            )
            return [
                UploadInfo(
                    restored(upload["Key"]),
                    upload["UploadId"],
                    int(upload["Initiated"].timestamp() * 1e9),
                )
                for page in pages
                for upload in page.get("Uploads", ())
            ]

        return await self.run("list_uploads", "", list_all)

    async def delete_many(self, keys: Sequence[Key]) -> list[StoreError | None]:
        """DeleteObjects. One entry per key: its error, or ``None``."""
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def delete() -> list[StoreError | None]:
            said = self.client.delete_objects(**self._common, Delete=objects)
            failed = {entry["Key"]: entry for entry in said.get("Errors", ())}
            return [self._entry_error(key, failed.get(key)) for key in keys]

        return await self.run("delete_many", "", delete)

    def _entry_error(self, key: Key, entry: dict[str, str] | None) -> StoreError | None:
        if entry is None or entry.get("Code") == "NoSuchKey":
            return None
        refusal = Refusal(200, {}, b"")
        refusal.code = entry.get("Code", "")
        refusal.message = entry.get("Message", "")
        return refusal.error(key=key, bucket=self._config.bucket)

    async def versioning(self) -> str:
        """``enabled``, ``suspended`` or ``off``, by GetBucketVersioning."""

        def ask() -> str:
            said = self.client.get_bucket_versioning(Bucket=self._config.bucket)
            return {"Enabled": "enabled", "Suspended": "suspended"}.get(said.get("Status"), "off")

        return await self.run("check_bucket", "", ask)


def _conditional(key: Key, upload_id: str, condition: Condition) -> dict[str, Any]:
    """The arguments of a CompleteMultipartUpload; If-Match is sent as it is spelt."""
    arguments: dict[str, Any] = {"Key": key, "UploadId": upload_id}
    if condition.if_match is not None:
        arguments["IfMatch"] = condition.if_match
    if condition.if_absent:
        arguments["IfNoneMatch"] = "*"
    return arguments

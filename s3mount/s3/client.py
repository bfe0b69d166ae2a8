"""The real store: S3 by the HTTP client, at the address and with the credentials that boto3 finds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import msgspec
import trio
from botocore.credentials import Credentials as BotocoreCredentials

from s3mount import logs
from s3mount.config import PART_BYTES_MAX, StoreConfig
from s3mount.errors import (
    AccessDeniedError,
    CertificateError,
    PreconditionFailedError,
    RejectedError,
    S3MountError,
    StoreError,
    WrongRegionError,
)
from s3mount.flow.backoff import Backoff
from s3mount.flow.parts import PartPlan
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
from s3mount.s3 import estimates
from s3mount.s3.boto_session import bind
from s3mount.s3.calls import lifecycle
from s3mount.s3.calls.deleting import Doomed, delete_many
from s3mount.s3.calls.describing import Describer
from s3mount.s3.calls.digests import DigestReader
from s3mount.s3.calls.express import Express
from s3mount.s3.calls.multipart import Multipart
from s3mount.s3.calls.reading import Reader
from s3mount.s3.calls.versions import VersionLister
from s3mount.s3.calls.writing import Writer
from s3mount.s3.documents import NOT_XML, parse_versioning
from s3mount.s3.headers import check_key
from s3mount.s3.http.credentials import STALE_CODES, CredentialSource, files_of_settings
from s3mount.s3.http.customer_keys import NOT_ENCRYPTED, CustomerKeys
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.http.perf_log import PerfLog, Recorder, RequestRecord
from s3mount.s3.http.requests import Call
from s3mount.s3.http.signing import canonical_query
from s3mount.s3.http.statistics import Statistics
from s3mount.s3.probe.dating import DateTrial
from s3mount.s3.probe.probing import Prober
from s3mount.s3.probe.trials import Trials
from s3mount.s3.traits import Traits
from s3mount.tasks import first_error

_log = logging.getLogger(__name__)

COPY_PART_BYTES = 512 << 20
DELETE_KEYS_MAX = 1000
RENEW_EVERY_S = 5.0
NO_UPLOAD = "s3mount-asks-whether-it-may-write"
"""No store gives an upload such an id."""


class S3Store:
    """``Store`` for one bucket. To be entered with ``async with`` before use.

    Entering asks boto3 for credentials, region and endpoint, in a thread; it raises UsageError,
    NoCredentialsError, EncryptionKeyError, WrongRegionError or NetworkError. Leaving closes the idle connections.
    ``recorder`` is told of each request, in place of the files that ``config`` may name.
    """

    def __init__(self, config: StoreConfig, *, recorder: Recorder | None = None) -> None:
        self.config = config
        self._recorder = recorder
        self.traits = Traits()
        self._statistics = Statistics()
        self._backoff = Backoff()
        self.on_outage: Callable[[str], None] = lambda reason: None
        self._renewing = trio.Lock()
        self._renewed_at_s = float("-inf")
        self._files: tuple[object, ...] = ()
        self._estimates_file: Path | None = None
        self._perf_logs: list[PerfLog] = []

    async def __aenter__(self) -> S3Store:
        self._files = files_of_settings()
        bound = await trio.to_thread.run_sync(bind, self.config, abandon_on_cancel=True)
        keys = CustomerKeys(self.config)
        self._estimates_file = estimates.file_of(self.config, bound.address.base_url)
        self._perf_logs = [PerfLog(path) for path in self.config.perf_logs]
        self._http = HttpClient(
            self.config,
            bound.address,
            self._source(bound.credentials),
            self._statistics,
            self._renew,
            on_outage=lambda reason: self.on_outage(reason),
            account=self._source(bound.account),
            estimates=estimates.load(self._estimates_file),
            recorder=self._recorder or (self._record if self._perf_logs else None),
            customer_keys=keys,
        )
        if self._http.is_express:
            # AWS S3 User Guide, "Features not supported by directory buckets".
            self.traits.lists_versions = self.traits.has_tags = self.traits.has_acls = False
        self._reader = Reader(self._http, self.traits)
        self._describer = Describer(self._http, self._reader, self.traits)
        self._digests = DigestReader(self._http, self._reader)
        self._versions = VersionLister(self._http, self._reader, self.traits)
        self._writer = Writer(
            self._http, self._reader, self.traits, self.config.bucket, bound.sign_payload
        )
        self._express = Express(self._http, self._writer)
        self._multipart = Multipart(
            self._http, self._reader, self._writer, self.traits, bound.sign_payload
        )
        return self

    def _record(self, record: RequestRecord) -> None:
        for log in self._perf_logs:
            log(record)

    async def _renew(self, error: StoreError) -> bool:
        """Where other settings may cure ``error``, ask boto3 for all anew; ``True`` when they are others now.

        Somebody may have rotated keys or logged in again, and a region that could not be found out at
        the start may be known now. At once where AWS's files are others than they were, which is a reason to
        look after any 403; else at most every RENEW_EVERY_S, so that settings that stay wrong are not asked
        for at every request.
        """
        stale = error.code in STALE_CODES
        stale = stale or isinstance(error, WrongRegionError | CertificateError)
        if not stale and error.status not in (401, 403):
            return False
        before = self._bound_to
        async with self._renewing:
            if self._bound_to != before:
                return True
            as_before = files_of_settings() == self._files
            too_soon = trio.current_time() < self._renewed_at_s + RENEW_EVERY_S
            if as_before and (too_soon or not stale):
                return False
            try:
                return await self._bind_anew()
            except S3MountError as error:
                _log.warning("the store refuses these settings, and asking again fails: %s", error)
                return False

    async def renew_credentials(self) -> None:
        """See ``Store.renew_credentials``."""
        async with self._renewing:
            await self._bind_anew()

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """See ``Store.set_rates``."""
        await trio.lowlevel.checkpoint()
        self._http.traffic.set_limits(up_bytes_per_s, down_bytes_per_s)

    async def set_log_level(self, level: str) -> None:
        """See ``Store.set_log_level``."""
        await trio.lowlevel.checkpoint()
        logs.set_level(level)

    async def _bind_anew(self) -> bool:
        """Ask boto3 for all; ``True`` when it is other than before. Raises as entering does."""
        before = self._bound_to
        self._renewed_at_s = trio.current_time()
        self._files = files_of_settings()
        bound = await trio.to_thread.run_sync(bind, self.config, abandon_on_cancel=True)
        source = self._source(bound.credentials)
        await source.renew()
        self._http.rebind(bound.address, source, self._source(bound.account))
        if self._bound_to == before:
            return False
        _log.info("other credentials, or another region, were found than before")
        self._statistics.refreshed()
        return True

    def _source(self, given: BotocoreCredentials | None) -> CredentialSource:
        return CredentialSource(given, self._statistics.refreshed)

    @property
    def _bound_to(self) -> tuple[object, ...]:
        """What tells one binding from another."""
        address = self._http.address
        return address.base_url, address.region, self._http.credentials.current

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()
        estimates.save(self._estimates_file, self._http.timeouts.estimates)
        for log in self._perf_logs:
            log.close()
        await trio.lowlevel.checkpoint()

    @property
    def outage(self) -> str:
        """See ``Store.outage``."""
        return self._http.outage.reason

    @property
    def lists_in_order(self) -> bool:
        """See ``Store.lists_in_order``."""
        return not self.config.is_directory_bucket

    async def head(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.head``."""
        return await self._reader.head(key, version_id)

    async def describe(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.describe``."""
        return await self._describer.describe(key, version_id)

    async def put_tags(self, key: Key, tags: str, *, version_id: VersionId | None = None) -> None:
        """See ``Store.put_tags``."""
        await self._describer.put_tags(key, tags, version_id)

    async def get(
        self,
        key: Key,
        *,
        byte_range: ByteRange | None = None,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
    ) -> tuple[ObjectInfo, bytes]:
        """See ``Store.get``."""
        return await self._reader.get(key, byte_range, version_id, if_match)

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
        """See ``Store.fetch``."""
        return await self._reader.fetch(key, byte_range, sink, version_id, if_match, on_progress)

    async def digests(self, key: Key, *, version_id: VersionId | None = None) -> ObjectDigests:
        """See ``Store.digests``."""
        return await self._digests.read(key, version_id)

    async def put(
        self, key: Key, body: Body, headers: ObjectHeaders, *, condition: Condition = ANY
    ) -> PutResult:
        """See ``Store.put``."""
        return await self._writer.put(key, body, headers, condition)

    async def copy(
        self,
        source: ContentRef,
        key: Key,
        headers: ObjectHeaders | None,
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """See ``Store.copy``."""
        stored = headers
        if stored is None:
            stored = (await self.describe(source.key, version_id=source.version_id)).headers
        stored = stored or ObjectHeaders()
        if source.size > PART_BYTES_MAX or self.traits.copies_keyed is False:
            return await self._copy_by_parts(source, key, stored, condition)
        try:
            return await self._writer.copy(source, key, headers, condition, stored)
        except RejectedError as error:
            is_unencrypted = error.code == NOT_ENCRYPTED
            is_unknown = error.status == 501 and self._http.customer_keys.are_used
            if not is_unencrypted and not is_unknown:
                raise
            # Ceph 16 copies in parts alone what has a key, or is to have one.
            self.traits.copies_keyed = False
        if is_unencrypted and condition != ANY:
            now = await self.head(key)
            if now.etag != source.etag:
                raise PreconditionFailedError("somebody else changed the object", key=key)
            condition = Condition(if_match=now.etag)
        return await self._copy_by_parts(source, key, stored, condition)

    async def _copy_by_parts(
        self, source: ContentRef, key: Key, headers: ObjectHeaders, condition: Condition
    ) -> PutResult:
        if not source.size:
            return await self._writer.put(key, b"", headers, condition)
        is_retry = self.traits.copied_checksums is False
        try:
            return await self._copy_parts(source, key, headers, condition)
        except RejectedError as error:
            if error.code != "InvalidPart" or is_retry:
                raise
            # It is known by now that copied parts have no checksums here.
            return await self._copy_parts(source, key, headers, condition)

    async def _copy_parts(
        self, source: ContentRef, key: Key, headers: ObjectHeaders, condition: Condition
    ) -> PutResult:
        upload_id = await self.create_multipart(key, headers, has_copies=True)
        parts: dict[int, PartInfo] = {}

        async def copy_part(number: int, byte_range: ByteRange) -> None:
            parts[number] = await self._writer.upload_part_copy(
                key, upload_id, number, source, byte_range
            )

        try:
            with first_error():
                async with trio.open_nursery() as nursery:
                    for number, part in enumerate(PartPlan(COPY_PART_BYTES).ranges(source.size), 1):
                        nursery.start_soon(copy_part, number, part)
            ordered = [parts[number] for number in sorted(parts)]
            return await self.complete_multipart(key, upload_id, ordered, condition=condition)
        except (StoreError, BaseExceptionGroup):
            await self._give_up(key, upload_id)
            raise

    async def _give_up(self, key: Key, upload_id: str) -> None:
        """Abort an upload that failed, whatever comes of it."""
        with trio.move_on_after(10, shield=True):
            try:
                await self.abort_multipart(key, upload_id)
            except StoreError as error:
                _log.warning("an unfinished upload stays behind: %s", error.describe())

    async def rename(
        self, source: ContentRef, key: Key, *, condition: Condition = ANY
    ) -> PutResult:
        """See ``Store.rename``."""
        return await self._express.rename(source, key, condition)

    async def append(self, base: ContentRef, body: Body) -> PutResult:
        """See ``Store.append``."""
        return await self._express.append(base, body)

    async def delete(
        self, key: Key, *, version_id: VersionId | None = None, if_match: ETag | None = None
    ) -> None:
        """See ``Store.delete``."""
        await self._writer.delete(key, version_id, if_match)

    async def delete_many(
        self, keys: Sequence[Key], *, version_ids: Sequence[VersionId | None] = ()
    ) -> list[StoreError | None]:
        """See ``Store.delete_many``. Keys that XML cannot hold are deleted one by one."""
        if len(keys) > DELETE_KEYS_MAX:
            raise RejectedError(f"{len(keys)} keys in one DeleteObjects, S3 takes 1,000")
        results: dict[Doomed, StoreError | None] = {}
        plain = []
        doomed = list(zip(keys, version_ids or [None] * len(keys), strict=True))
        for each in doomed:
            try:
                check_key(each[0])
            except RejectedError as error:
                results[each] = error
                continue
            if NOT_XML.search(each[0]):
                results[each] = await self._delete_one(*each)
            else:
                plain.append(each)
        if plain:
            results.update(zip(plain, await delete_many(self._http, plain), strict=True))
        return [results[each] for each in doomed]

    async def _delete_one(self, key: Key, version_id: VersionId | None) -> StoreError | None:
        try:
            await self._writer.delete(key, version_id)
        except StoreError as error:
            return error
        return None

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
        return await self._reader.list_page(prefix, delimiter, token, start_after, max_keys)

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
        return await self._versions.page(prefix, delimiter, key_marker, version_marker, max_keys)

    async def create_multipart(
        self, key: Key, headers: ObjectHeaders, *, has_copies: bool = False
    ) -> str:
        """See ``Store.create_multipart``."""
        return await self._multipart.create(key, headers, has_copies=has_copies)

    async def upload_part(self, key: Key, upload_id: str, number: int, body: Body) -> PartInfo:
        """See ``Store.upload_part``."""
        return await self._writer.upload_part(key, upload_id, number, body)

    async def upload_part_copy(
        self, key: Key, upload_id: str, number: int, source: ContentRef, byte_range: ByteRange
    ) -> PartInfo:
        """See ``Store.upload_part_copy``."""
        return await self._writer.upload_part_copy(key, upload_id, number, source, byte_range)

    async def complete_multipart(
        self,
        key: Key,
        upload_id: str,
        parts: Sequence[PartInfo],
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """See ``Store.complete_multipart``."""
        return await self._multipart.complete(key, upload_id, parts, condition)

    async def abort_multipart(self, key: Key, upload_id: str) -> None:
        """See ``Store.abort_multipart``."""
        await self._multipart.abort(key, upload_id)

    async def list_parts(self, key: Key, upload_id: str) -> list[PartInfo]:
        """See ``Store.list_parts``."""
        return await self._multipart.list_parts(key, upload_id)

    async def list_uploads(self, prefix: str) -> list[UploadInfo]:
        """See ``Store.list_uploads``."""
        return await self._multipart.list_uploads(prefix)

    async def check_bucket(self, prefix: str = "") -> BucketInfo:
        """See ``Store.check_bucket``: one key is listed, as an answer to HEAD would not say why not."""
        date_ns = await self._reader.check_list(prefix)
        versioning = "off" if self._http.is_express else "unknown"
        if self.config.sign_requests and not self._http.is_express:
            call = Call("check_bucket", "GET", "", query=canonical_query([("versioning", "")]))
            try:
                _, versioning = await self._http.read(call, parse_versioning)
            except StoreError as error:
                _log.info("whether the bucket keeps versions is unknown: %s", error.describe())
        self.traits.versioned |= versioning in ("enabled", "suspended")
        self.traits.keeps_deleted = versioning == "enabled"
        address = self._http.address
        return BucketInfo(self.config.bucket, address.region, address.base_url, versioning, date_ns)

    async def may_write(self, temporary_key: Key) -> bool | None:
        """See ``Store.may_write``."""
        query = canonical_query([("partNumber", "1"), ("uploadId", NO_UPLOAD)])
        call = Call("probe", "PUT", temporary_key, query=query, body=b"")
        try:
            await self._http.call(call, 1)
        except AccessDeniedError as error:
            return False if error.code == "AccessDenied" else None
        except StoreError as error:
            return True if error.code == "NoSuchUpload" else None
        return None

    async def noncurrent_rule(self, prefix: str = "") -> str:
        """See ``Store.noncurrent_rule``."""
        if not self.config.sign_requests or self._http.is_express:
            await trio.lowlevel.checkpoint()
            return ""
        try:
            call = Call("lifecycle", "GET", "", query=canonical_query([("lifecycle", "")]))
            _, rules = await self._http.read(call, lifecycle.parse_rules)
            return lifecycle.noncurrent_rule(rules, prefix)
        except StoreError as error:
            if error.code != "NoSuchLifecycleConfiguration":
                _log.info("the bucket's lifecycle rules are unknown: %s", error.describe())
            return ""

    async def probe(
        self, temporary_key: Key, *, known: Capabilities | None = None, killed: Key = ""
    ) -> Capabilities:
        """See ``Store.probe``."""
        check_key(temporary_key)
        trials = Trials(
            self._reader, self._writer, self._multipart, self._versions, self.traits, temporary_key
        )
        if known is not None:
            if self._http.customer_keys.are_used:
                # It may have been found before there was a key: with one they never are.
                known = msgspec.structs.replace(known, etag_is_md5=False)
            self.traits.adopt(known)
            if killed:
                await trials.remove_left(killed, is_all=False)
            await trio.lowlevel.checkpoint()
            return known
        prober = Prober(self._http, self._writer, self._multipart, self.traits, trials)
        prober.express = self._express if self._http.is_express else None
        return await prober.run(killed)

    async def try_version_dates(self, temporary_key: Key) -> bool | None:
        """See ``Store.try_version_dates``."""
        check_key(temporary_key)
        trials = Trials(
            self._reader, self._writer, self._multipart, self._versions, self.traits, temporary_key
        )
        return await DateTrial(self._writer, self._versions, trials).run()

    async def statistics(self) -> dict[str, float]:
        """See ``Store.statistics``; the names are in ``metrics.S3_METRICS``."""
        await trio.lowlevel.checkpoint()
        return self._statistics.snapshot() | self._http.gauges()

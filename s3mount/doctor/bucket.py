"""What a mount needs of S3: credentials, an endpoint that answers, a right clock, each right on the bucket, and
what the store honours. Each is tried; what is written is removed again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import trio

from s3mount.config import StoreConfig
from s3mount.doctor.findings import Finding, Level
from s3mount.errors import (
    AccessDeniedError,
    CertificateError,
    EngineError,
    MountError,
    NoCredentialsError,
    NoSuchBucketError,
    NotS3Error,
    S3MountError,
    StoreError,
    UsageError,
    WrongRegionError,
    reason,
)
from s3mount.names import trial_key
from s3mount.refs import BucketInfo, Capabilities, ContentRef, ObjectHeaders
from s3mount.s3.account import describe_account
from s3mount.s3.lacks import describe_lacks
from s3mount.s3.store import Store

ANSWER_S = 30.0
"""A bucket that does not answer for so long is told to be unreachable."""
CLEAN_UP_S = 10.0
SKEW_WARNING_S = 60
SKEW_FAULT_S = 15 * 60
"""S3 refuses what is signed by a clock that differs by more (RequestTimeTooSkewed)."""
BODY = b"s3mount doctor tries what these credentials may do; to be deleted"

_KEY_CODES = frozenset(
    ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")
)
_ADVICE: tuple[tuple[type[S3MountError], str, str], ...] = (
    (NoCredentialsError, "credentials", "aws configure, --profile, AWS_ACCESS_KEY_ID, or --no-sign-request"),
    (NoSuchBucketError, "bucket", "name another bucket, or make it"),
    (WrongRegionError, "region", "give --region as told"),
    (CertificateError, "TLS", "--ca-bundle names the certificates to trust; is the clock right?"),
    (NotS3Error, "endpoint", "give --endpoint-url the address of the S3 server itself; is a proxy in between?"),
    (AccessDeniedError, "right to list", "allow s3:ListBucket on the bucket, for --prefix if one is used"),
    (UsageError, "settings", "change that option or variable"),
    (StoreError, "endpoint", "is the address right, the network up, a proxy needed (HTTPS_PROXY, NO_PROXY)?"),
    (MountError, "endpoint", "is the address right, the network up, a proxy needed (HTTPS_PROXY, NO_PROXY)?"),
    (EngineError, "engine", "see the log; is the machine out of memory?"),
)  # fmt: skip


Tell: TypeAlias = Callable[[Finding], None]
"""Takes one finding as soon as there is one."""


async def look_at_bucket(
    config: StoreConfig,
    prefix: str,
    open_store: Callable[[StoreConfig], contextlib.AbstractAsyncContextManager[Store]],
    tell: Tell,
    *,
    may_write: bool,
) -> None:
    """All checks, one after another, up to the first without which the rest cannot be tried. Raises nothing.

    Without ``may_write`` nothing is written, and so rights to write and what the store honours are not tried.
    """
    try:
        account = await trio.to_thread.run_sync(describe_account, config, abandon_on_cancel=True)
        tell(Finding("credentials", "ok", account.credentials))
        tell(Finding("proxy", "ok", account.proxy))
        async with open_store(config) as store:
            bucket = await _check(store, config, prefix)
            tell(Finding("endpoint", "ok", account.endpoint))
            tell(
                Finding(
                    "bucket", "ok", f"{bucket.name} answers, region {bucket.region or 'unknown'}"
                )
            )
            tell(_clock(bucket))
            tell(_versioning(bucket, await store.noncurrent_rule(prefix)))
            rights = Rights(store, trial_key(prefix), tell)
            await rights.to_read(prefix)
            if may_write and await rights.to_write():
                for finding in _honours(await store.probe(trial_key(prefix))):
                    tell(finding)
    except S3MountError as error:
        tell(_fault(error))


async def _check(store: Store, config: StoreConfig, prefix: str) -> BucketInfo:
    with trio.move_on_after(ANSWER_S):
        return await store.check_bucket(prefix)
    where = config.endpoint_url or "AWS"
    raise MountError(f"S3 at {where} did not answer within {ANSWER_S:g} s")


def _fault(error: S3MountError) -> Finding:
    """Which check it is that ``error`` makes fail, and what to do."""
    if isinstance(error, StoreError) and error.code in _KEY_CODES:
        return Finding(
            "credentials", "fault", reason(error), "these keys are wrong, or of another store"
        )
    if isinstance(error, StoreError) and error.code == "RequestTimeTooSkewed":
        return Finding("clock", "fault", reason(error), "timedatectl set-ntp true")
    check, advice = next(
        (check, advice) for kind, check, advice in _ADVICE if isinstance(error, kind)
    )
    return Finding(check, "fault", reason(error), advice)


def _clock(bucket: BucketInfo) -> Finding:
    if not bucket.date_ns:
        return Finding("clock", "note", "the store tells no time to compare with")
    skew_s = time.time() - bucket.date_ns / 1e9
    told = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the store's"
    if abs(skew_s) < SKEW_WARNING_S:
        return Finding("clock", "ok", told)
    level: Level = "fault" if abs(skew_s) > SKEW_FAULT_S else "warning"
    return Finding("clock", level, told, "timedatectl set-ntp true; files get this clock's times")


def _versioning(bucket: BucketInfo, rule: str) -> Finding:
    if bucket.versioning == "enabled":
        if rule:
            told = f"enabled, but {rule}"
            advice = "older versions than that cannot be shown or restored"
            return Finding("versioning", "note", told, advice)
        return Finding("versioning", "ok", "enabled: what is replaced or deleted can be restored")
    advice = (
        "versioning keeps what is replaced or deleted; aws s3api put-bucket-versioning enables it"
    )
    return Finding("versioning", "note", bucket.versioning, advice)


def _honours(found: Capabilities) -> list[Finding]:
    """What the probe told of conditional writes, and what else the store lacks."""
    findings = []
    if found.if_match and found.if_absent:
        told = "honoured" + (": two writers never both win" if found.atomic else "")
        findings.append(Finding("conditional writes", "ok", told))
    else:
        told = "not honoured" + (f" ({found.reason})" if found.reason else "")
        advice = "of two writers at the same moment one may be lost: let one mount write a key"
        findings.append(Finding("conditional writes", "warning", told, advice))
    lacks = describe_lacks(
        {
            "atomic": found.atomic,
            "content_md5": found.content_md5,
            "checksum": found.checksum,
            "etag_is_md5": found.etag_is_md5,
            "markers": found.markers,
            "marker_metadata": found.marker_metadata,
            "lists_versions": found.lists_versions,
        }
    )
    findings += [
        Finding("store", "note", f"this store {each}", "docs/SERVERS.md") for each in lacks
    ]
    return findings


class Rights:
    """Tries what the credentials may do, by doing it below ``key``, which is removed again."""

    def __init__(self, store: Store, key: str, tell: Tell) -> None:
        self._store = store
        self._key = key
        self._copy = f"{key}.copy"
        self._tell = tell

    async def to_read(self, prefix: str) -> None:
        """List, and look at the first object that is listed. Raises StoreError where nothing can be listed."""
        page = await self._store.list_page(prefix, max_keys=1)
        self._tell(Finding("right to list", "ok", "s3:ListBucket"))
        for info in page.objects[:1]:
            head = partial(self._store.head, info.key)
            await self._try("right to read", "s3:GetObject", head, "no file can be read")

    async def to_write(self) -> bool:
        """Write, read, copy, tag, delete and send in parts; ``False`` where nothing may be written."""
        store, put = self._store, []

        async def write() -> None:
            put.append(await store.put(self._key, BODY, ObjectHeaders()))

        without = "mount it --read-only: what is written would wait in the spool"
        await self._try("right to write", "s3:PutObject", write, without)
        if not put:
            return False
        content = ContentRef(self._key, put[0].etag, len(BODY), put[0].version_id)
        try:
            await self._with_object(content)
        finally:
            with trio.move_on_after(CLEAN_UP_S, shield=True):
                for key in (self._copy, self._key):
                    with contextlib.suppress(StoreError):
                        await store.delete(key)
        return True

    async def _with_object(self, content: ContentRef) -> None:
        store, key = self._store, self._key

        async def parts() -> None:
            upload_id = await store.create_multipart(key, ObjectHeaders())
            await store.abort_multipart(key, upload_id)

        get = partial(store.get, key)
        await self._try("right to read back", "s3:GetObject", get, "no file can be read")
        copy = partial(store.copy, content, self._copy, ObjectHeaders())
        await self._try("right to copy", "s3:GetObject", copy, "renames and chmod do not arrive")
        await self._try(
            "right to send in parts", "s3:AbortMultipartUpload", parts, "large files do not arrive"
        )
        tags = partial(store.put_tags, key, "made-by=s3mount")
        await self._try(
            "right to tag", "s3:PutObjectTagging", tags, "tags are lost by edits", "note"
        )
        uploads = partial(store.list_uploads, key)
        without = "what was cut off stays in S3, and is paid for"
        await self._try(
            "right to see uploads", "s3:ListBucketMultipartUploads", uploads, without, "note"
        )
        versions = partial(store.list_versions_page, key, max_keys=1)
        await self._try(
            "right to see versions", "s3:ListBucketVersions", versions, "there is no --at", "note"
        )
        delete = partial(store.delete, key)
        without = f"rm and mv do not arrive, and {key} stays in the bucket"
        await self._try("right to delete", "s3:DeleteObject", delete, without)

    async def _try(
        self,
        check: str,
        action: str,
        work: Callable[[], Awaitable[object]],
        without: str,
        level: Level = "fault",
    ) -> None:
        """Tell whether ``work`` succeeds; ``without`` is what does not work where it may not be done."""
        try:
            await work()
        except AccessDeniedError as error:
            self._tell(Finding(check, level, reason(error), f"allow {action}: {without}"))
        except StoreError as error:
            told = "warning" if level == "fault" else level
            self._tell(Finding(check, told, reason(error), without))
        else:
            self._tell(Finding(check, "ok", action))

"""What the two processes say to each other: one typed message per call, answer and event.

Each message is a tagged ``msgspec.Struct``, written as MessagePack behind its length
(``channel.py``). Tags are part of no lasting format: both ends are always the same build.
Local paths travel as bytes, since a file name need not be UTF-8; keys travel as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from s3mount import errors
from s3mount.config import StoreConfig
from s3mount.errors import RejectedError, S3MountError, ServerFaultError, StoreError
from s3mount.refs import (
    BucketInfo,
    ByteRange,
    Capabilities,
    Checksum,
    Condition,
    ContentRef,
    ETag,
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


class Slice(msgspec.Struct, frozen=True, array_like=True):
    """A ``refs.FileSlice`` on its way: ``path`` as the file system spells it."""

    path: bytes
    offset: int
    length: int
    expected: Checksum | None = None
    sums_offset: int = 0
    sums_shift: int = 0


WireBody: TypeAlias = bytes | Slice


class ErrorRecord(msgspec.Struct, frozen=True, array_like=True):
    """An error on its way: the name of its class in ``errors`` and what it carries."""

    name: str
    message: str
    key: str = ""
    status: int = 0
    code: str = ""
    request_id: str = ""
    retry_after_s: float | None = None


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of everything that crosses."""


class Request(Message, frozen=True, array_like=True, gc=False):
    """One call of a ``Store`` method; ``id`` never occurs twice in a client's life."""

    id: int


class Start(Message, tag=1, frozen=True, array_like=True, gc=False):
    """First of all: the store to open, and the least level of log records worth sending."""

    config: StoreConfig
    log_level: int


class Stop(Message, tag=2, frozen=True, array_like=True, gc=False):
    """No more requests will come: finish those under way, then end."""


class Ping(Message, tag=3, frozen=True, array_like=True, gc=False):
    """Is the child's loop alive?"""


class Cancel(Message, tag=4, frozen=True, array_like=True, gc=False):
    """Give up request ``id``; answered by ``Cancelled``, or by the outcome if that was quicker."""

    id: int


class Head(Request, tag=10, frozen=True, array_like=True, gc=False):
    """``Store.head``."""

    key: Key
    version_id: VersionId | None


class Get(Request, tag=11, frozen=True, array_like=True, gc=False):
    """``Store.get``."""

    key: Key
    byte_range: ByteRange | None
    version_id: VersionId | None
    if_match: ETag | None


class Fetch(Request, tag=12, frozen=True, array_like=True, gc=False):
    """``Store.fetch``; ``report`` asks for ``Progress``."""

    key: Key
    byte_range: ByteRange
    sink: Slice
    version_id: VersionId | None
    if_match: ETag | None
    report: bool


class Put(Request, tag=13, frozen=True, array_like=True, gc=False):
    """``Store.put``."""

    key: Key
    body: WireBody
    headers: ObjectHeaders
    condition: Condition


class Copy(Request, tag=14, frozen=True, array_like=True, gc=False):
    """``Store.copy``."""

    source: ContentRef
    key: Key
    headers: ObjectHeaders | None
    condition: Condition


class Rename(Request, tag=37, frozen=True, array_like=True, gc=False):
    """``Store.rename``."""

    source: ContentRef
    key: Key
    condition: Condition


class Append(Request, tag=38, frozen=True, array_like=True, gc=False):
    """``Store.append``."""

    base: ContentRef
    body: WireBody


class Delete(Request, tag=15, frozen=True, array_like=True, gc=False):
    """``Store.delete``."""

    key: Key
    version_id: VersionId | None
    if_match: ETag | None


class DeleteMany(Request, tag=16, frozen=True, array_like=True, gc=False):
    """``Store.delete_many``."""

    keys: tuple[Key, ...]
    version_ids: tuple[VersionId | None, ...] = ()


class ListPageOf(Request, tag=17, frozen=True, array_like=True, gc=False):
    """``Store.list_page``."""

    prefix: str
    delimiter: str | None
    token: str | None
    start_after: str | None
    max_keys: int


class CreateMultipart(Request, tag=18, frozen=True, array_like=True, gc=False):
    """``Store.create_multipart``."""

    key: Key
    headers: ObjectHeaders
    has_copies: bool = False


class UploadPart(Request, tag=19, frozen=True, array_like=True, gc=False):
    """``Store.upload_part``."""

    key: Key
    upload_id: str
    number: int
    body: WireBody


class UploadPartCopy(Request, tag=20, frozen=True, array_like=True, gc=False):
    """``Store.upload_part_copy``."""

    key: Key
    upload_id: str
    number: int
    source: ContentRef
    byte_range: ByteRange


class CompleteMultipart(Request, tag=21, frozen=True, array_like=True, gc=False):
    """``Store.complete_multipart``."""

    key: Key
    upload_id: str
    parts: tuple[PartInfo, ...]
    condition: Condition


class AbortMultipart(Request, tag=22, frozen=True, array_like=True, gc=False):
    """``Store.abort_multipart``."""

    key: Key
    upload_id: str


class ListParts(Request, tag=23, frozen=True, array_like=True, gc=False):
    """``Store.list_parts``."""

    key: Key
    upload_id: str


class ListUploads(Request, tag=24, frozen=True, array_like=True, gc=False):
    """``Store.list_uploads``."""

    prefix: str


class CheckBucket(Request, tag=25, frozen=True, array_like=True, gc=False):
    """``Store.check_bucket``."""

    prefix: str = ""


class NoncurrentRule(Request, tag=33, frozen=True, array_like=True, gc=False):
    """``Store.noncurrent_rule``."""

    prefix: str


class Probe(Request, tag=26, frozen=True, array_like=True, gc=False):
    """``Store.probe``."""

    temporary_key: Key
    known: Capabilities | None = None
    killed: Key = ""


class Statistics(Request, tag=27, frozen=True, array_like=True, gc=False):
    """``Store.statistics``."""


class RenewCredentials(Request, tag=34, frozen=True, array_like=True, gc=False):
    """``Store.renew_credentials``."""


class SetRates(Request, tag=39, frozen=True, array_like=True, gc=False):
    """``Store.set_rates``."""

    up_bytes_per_s: int
    down_bytes_per_s: int


class SetLogLevel(Request, tag=64, frozen=True, array_like=True, gc=False):
    """``Store.set_log_level``."""

    level: str


class MayWrite(Request, tag=35, frozen=True, array_like=True, gc=False):
    """``Store.may_write``."""

    temporary_key: Key


class ListVersions(Request, tag=28, frozen=True, array_like=True, gc=False):
    """``Store.list_versions_page``."""

    prefix: str
    delimiter: str | None
    key_marker: str | None
    version_marker: VersionId | None
    max_keys: int


class Digests(Request, tag=29, frozen=True, array_like=True, gc=False):
    """``Store.digests``."""

    key: Key
    version_id: VersionId | None


class TryVersionDates(Request, tag=31, frozen=True, array_like=True, gc=False):
    """``Store.try_version_dates``."""

    temporary_key: Key


class Describe(Request, tag=32, frozen=True, array_like=True, gc=False):
    """``Store.describe``."""

    key: Key
    version_id: VersionId | None


class PutTags(Request, tag=30, frozen=True, array_like=True, gc=False):
    """``Store.put_tags``."""

    key: Key
    tags: str
    version_id: VersionId | None


class Reply(Message, frozen=True, array_like=True, gc=False):
    """The one outcome of request ``id``."""

    id: int


class Failed(Reply, tag=40, frozen=True, array_like=True, gc=False):
    """The call raised."""

    error: ErrorRecord


class Cancelled(Reply, tag=41, frozen=True, array_like=True, gc=False):
    """The request was given up; the child touches none of its files any more."""


class Done(Reply, tag=42, frozen=True, array_like=True, gc=False):
    """The call returned nothing."""


class Found(Reply, tag=43, frozen=True, array_like=True, gc=False):
    """Answer to ``Head``, ``Describe`` and ``Fetch``."""

    info: ObjectInfo


class Got(Reply, tag=44, frozen=True, array_like=True, gc=False):
    """Answer to ``Get``."""

    info: ObjectInfo
    data: bytes


class Stored(Reply, tag=45, frozen=True, array_like=True, gc=False):
    """Answer to ``Put``, ``Copy``, ``Rename``, ``Append`` and ``CompleteMultipart``."""

    result: PutResult


class Deleted(Reply, tag=46, frozen=True, array_like=True, gc=False):
    """Answer to ``DeleteMany``: one entry per key."""

    errors: tuple[ErrorRecord | None, ...]


class Page(Reply, tag=47, frozen=True, array_like=True, gc=False):
    """Answer to ``ListPageOf``."""

    page: ListPage


class Begun(Reply, tag=48, frozen=True, array_like=True, gc=False):
    """Answer to ``CreateMultipart``."""

    upload_id: str


class Part(Reply, tag=49, frozen=True, array_like=True, gc=False):
    """Answer to ``UploadPart`` and ``UploadPartCopy``."""

    part: PartInfo


class Parts(Reply, tag=50, frozen=True, array_like=True, gc=False):
    """Answer to ``ListParts``."""

    parts: list[PartInfo]


class Uploads(Reply, tag=51, frozen=True, array_like=True, gc=False):
    """Answer to ``ListUploads``."""

    uploads: list[UploadInfo]


class Bucket(Reply, tag=52, frozen=True, array_like=True, gc=False):
    """Answer to ``CheckBucket``."""

    info: BucketInfo


class Told(Reply, tag=59, frozen=True, array_like=True, gc=False):
    """Answer to ``NoncurrentRule``."""

    text: str


class Answered(Reply, tag=58, frozen=True, array_like=True, gc=False):
    """Answer to ``TryVersionDates`` and ``MayWrite``: yes, no, or that it is unknown."""

    is_so: bool | None


class Able(Reply, tag=53, frozen=True, array_like=True, gc=False):
    """Answer to ``Probe``."""

    capabilities: Capabilities


class Counted(Reply, tag=54, frozen=True, array_like=True, gc=False):
    """Answer to ``Statistics``."""

    values: dict[str, float]


class Versions(Reply, tag=55, frozen=True, array_like=True, gc=False):
    """Answer to ``ListVersions``."""

    page: VersionPage


class Kept(Reply, tag=56, frozen=True, array_like=True, gc=False):
    """Answer to ``Digests``."""

    digests: ObjectDigests


class Progress(Message, tag=60, frozen=True, array_like=True, gc=False):
    """The first ``done`` bytes of the range of fetch ``id`` lie in the file."""

    id: int
    done: int


class Reachability(Message, tag=63, frozen=True, array_like=True, gc=False):
    """The store cannot be reached, for this ``reason``; empty: it can be reached again."""

    reason: str


class Log(Message, tag=61, frozen=True, array_like=True, gc=False):
    """A log record of the child, for the parent to write."""

    level: int
    logger: str
    text: str
    about: dict[str, Any] = {}


class Pong(Message, tag=62, frozen=True, array_like=True, gc=False):
    """Answer to ``Ping``."""


ToChild: TypeAlias = (
    Start
    | Stop
    | Ping
    | Cancel
    | Head
    | Digests
    | Get
    | Fetch
    | Put
    | Copy
    | Rename
    | Append
    | Describe
    | PutTags
    | Delete
    | DeleteMany
    | ListPageOf
    | ListVersions
    | CreateMultipart
    | UploadPart
    | UploadPartCopy
    | CompleteMultipart
    | AbortMultipart
    | ListParts
    | ListUploads
    | CheckBucket
    | NoncurrentRule
    | TryVersionDates
    | Probe
    | Statistics
    | RenewCredentials
    | SetRates
    | SetLogLevel
    | MayWrite
)

ToParent: TypeAlias = (
    Failed
    | Cancelled
    | Done
    | Found
    | Got
    | Stored
    | Deleted
    | Page
    | Versions
    | Begun
    | Part
    | Parts
    | Uploads
    | Bucket
    | Told
    | Able
    | Answered
    | Counted
    | Kept
    | Progress
    | Reachability
    | Log
    | Pong
)


def _plain(value: Any) -> Any:
    """Headers may come as any Mapping; the encoder itself takes only ``dict``."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} does not cross the engine's boundary")


ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)


def decoder_for_child() -> msgspec.msgpack.Decoder[ToChild]:
    """Decodes what the parent sends."""
    return msgspec.msgpack.Decoder(ToChild)


def decoder_for_parent() -> msgspec.msgpack.Decoder[ToParent]:
    """Decodes what the child sends."""
    return msgspec.msgpack.Decoder(ToParent)


def record_of(error: S3MountError) -> ErrorRecord:
    """What crosses of ``error``."""
    if isinstance(error, StoreError):
        return ErrorRecord(
            type(error).__name__,
            str(error),
            error.key,
            error.status,
            error.code,
            error.request_id,
            error.retry_after_s,
        )
    return ErrorRecord(type(error).__name__, str(error))


def error_of(record: ErrorRecord) -> S3MountError:
    """The error that ``record_of`` was given, of the same class and with the same fields.

    A name that is no class of the error tree gives ServerFaultError: the caller still gets an
    error that it knows how to treat.
    """
    kind = vars(errors).get(record.name)
    if not (isinstance(kind, type) and issubclass(kind, S3MountError)):
        kind = ServerFaultError
    if not issubclass(kind, StoreError):
        return kind(record.message)
    error = kind(
        record.message,
        key=record.key,
        status=record.status,
        code=record.code,
        request_id=record.request_id,
    )
    error.retry_after_s = record.retry_after_s
    return error


def not_utf8(error: UnicodeEncodeError, key: str = "") -> RejectedError:
    """The error for a name that S3 cannot hold: keys are UTF-8."""
    return RejectedError(f"not UTF-8, so S3 cannot store it: {error.object!r}", key=key)

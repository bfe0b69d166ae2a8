"""The store's contract: all that the rooms above ever ask of S3, for one bucket.

Implemented by ``s3.client.S3Store`` (real S3: HTTP client, retries),
``testing.memory_store.MemoryStore`` (in memory, with faults, for tests) and ``engine.client.EngineClient``
(the same, carried to the engine process). One contract suite runs against each of them.

Rules for every method:

- It raises only ``errors.StoreError`` (or ``EngineError``), never a foreign exception.
- It is bounded in time: each try has a deadline, and tries are bounded. What comes out as a
  retryable error has been tried more than once already; the caller may try again later.
- It may be cancelled at any point. A cancelled or failed write may or may not have taken effect.
- Every method may be repeated. A repeated conditional write that did take effect the first
  time is reported as ``PreconditionFailedError``; the caller looks before it believes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from s3mount.errors import StoreError
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

INLINE_BODY_BYTES_MAX = 1 << 20
"""Bodies up to this size may travel as ``bytes``; larger ones as ``FileSlice``."""


class Readable(Protocol):
    """The bytes of one bucket's objects."""

    async def get(
        self,
        key: Key,
        *,
        byte_range: ByteRange | None = None,
        version_id: VersionId | None = None,
        if_match: ETag | None = None,
    ) -> tuple[ObjectInfo, bytes]:
        """GetObject into memory, for at most INLINE_BODY_BYTES_MAX bytes (RejectedError above).

        ``ObjectInfo.size`` is the whole object's size, also for a range. A range that reaches
        over the end is cut; one that begins behind it raises RangeError. ``if_match`` that does
        not hold raises PreconditionFailedError. A whole object whose ETag is a plain MD5 is verified.
        """
        ...

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
        """GetObject of a range into an existing local file, from ``sink.offset`` on.

        ``sink.length`` equals ``byte_range.length``; the object must have that many bytes there
        (RangeError otherwise). ``on_progress(n)`` is called from the trio loop, with n never
        falling: the first n bytes of the range lie in the file. Errors as for ``get``.
        """
        ...


class Store(Readable, Protocol):
    """One bucket."""

    on_outage: Callable[[str], None]
    """Called with ``outage`` when it changes from or to empty."""

    @property
    def outage(self) -> str:
        """Why the store cannot be reached at present; empty while it can, as far as is known.

        While it is set, requests that read fail within ``StoreConfig.offline_wait_s`` of the outage's start.
        """
        ...

    async def renew_credentials(self) -> None:
        """Ask the environment, AWS's files and whoever else gives them for credentials now, whatever is remembered.

        Repeatable. Raises NoCredentialsError and what else keeps a store from being opened; then those from
        before stay.
        """
        ...

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """Hold bodies to these rates from now on, as ``StoreConfig`` does from the start; 0: to none. Repeatable."""
        ...

    async def set_log_level(self, level: str) -> None:
        """Log from this level (``logs.LEVELS``) on, in the process that talks to the store. Repeatable."""
        ...

    @property
    def lists_in_order(self) -> bool:
        """Does it list keys in the order of UTF-8, from any key on? S3 Express does neither."""
        ...

    async def head(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """HeadObject, with ``headers`` filled. Raises NoSuchKeyError."""
        ...

    async def digests(self, key: Key, *, version_id: VersionId | None = None) -> ObjectDigests:
        """What the store keeps by which the object's bytes can be proven: HEAD, and as far as checksums of the
        whole are not told, how long each part is (HEAD of parts, GetObjectAttributes). Raises NoSuchKeyError.
        """
        ...

    async def describe(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """As ``head``, with ``headers.tags`` and ``headers.acl`` as far as store and rights allow.

        One more request for an object with tags, and one in a bucket whose ACLs are enabled.
        """
        ...

    async def put_tags(self, key: Key, tags: str, *, version_id: VersionId | None = None) -> None:
        """PutObjectTagging: the object has exactly ``tags`` (in the form of ``ObjectHeaders.tags``) then."""
        ...

    async def put(
        self, key: Key, body: Body, headers: ObjectHeaders, *, condition: Condition = ANY
    ) -> PutResult:
        """PutObject with a checksum that the store verifies; at most 5 GiB."""
        ...

    async def copy(
        self,
        source: ContentRef,
        key: Key,
        headers: ObjectHeaders | None,
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """Server-side copy of exactly ``source`` to ``key`` with new ``headers`` (REPLACE).

        ``headers`` of ``None`` keeps all that is stored with the source (MetadataDirective COPY), also what
        S3 does not carry over: the source is described first; of one in another bucket they must be given.
        Above 5 GiB by UploadPartCopy. ``key`` may be ``source.key`` (new headers only). Raises
        PreconditionFailedError when the source is no longer that version, NoSuchKeyError when gone.
        """
        ...

    async def rename(
        self, source: ContentRef, key: Key, *, condition: Condition = ANY
    ) -> PutResult:
        """RenameObject: ``source`` has the name ``key`` then, all else of it stays, its ETag too.

        Only where ``Capabilities.renames``. ``condition`` is on what ``key`` holds, and may not be ``if_match``
        where that is ``source`` itself. A source with another ETag raises PreconditionFailedError, one that is
        gone NoSuchKeyError: so does a repetition of what took effect unheard. RejectedError: by a copy it may go.
        """
        ...

    async def append(self, base: ContentRef, body: Body) -> PutResult:
        """PutObject at the end of ``base``, which must be what its key holds; what is stored beside it stays.

        Only where ``Capabilities.appends``, up to 5 GiB at once. Raises PreconditionFailedError when another
        version is there, as after what took effect unheard, and RejectedError for an object that takes no more.
        """
        ...

    async def delete(
        self, key: Key, *, version_id: VersionId | None = None, if_match: ETag | None = None
    ) -> None:
        """DeleteObject; no error when there was nothing.

        With ``if_match`` what is there must have that ETag, else PreconditionFailedError. In a bucket
        that keeps versions the condition is left out, as nothing is destroyed there; where the store
        does not honour it, a HEAD looks just before.
        """
        ...

    async def delete_many(
        self, keys: Sequence[Key], *, version_ids: Sequence[VersionId | None] = ()
    ) -> list[StoreError | None]:
        """DeleteObjects, up to 1,000 keys; one entry per key, ``None`` where it is gone.

        ``version_ids``, one for each key, name versions to destroy; ``None`` among them is what the key has now.
        """
        ...

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = 1000,
    ) -> ListPage:
        """One page of ListObjectsV2; any key that S3 can hold comes back unchanged."""
        ...

    async def list_versions_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        key_marker: str | None = None,
        version_marker: VersionId | None = None,
        max_keys: int = 1000,
    ) -> VersionPage:
        """One page of ListObjectVersions: versions and delete markers of the keys behind ``key_marker``.

        With ``version_marker`` the page begins behind that version of ``key_marker``; without it, with
        the next key. ``max_keys`` is what is asked for; some stores send more. In a bucket without
        versions each key has the one version ``"null"``.
        """
        ...

    async def create_multipart(
        self, key: Key, headers: ObjectHeaders, *, has_copies: bool = False
    ) -> str:
        """CreateMultipartUpload; the upload id. ``has_copies``: some of its parts will be copied.

        Such an upload has no checksums where the store gives copied parts none.
        """
        ...

    async def upload_part(self, key: Key, upload_id: str, number: int, body: Body) -> PartInfo:
        """UploadPart with a checksum; ``number`` from 1 to 10,000. NoSuchKeyError: the upload is gone."""
        ...

    async def upload_part_copy(
        self, key: Key, upload_id: str, number: int, source: ContentRef, byte_range: ByteRange
    ) -> PartInfo:
        """UploadPartCopy of a range of exactly ``source``. Errors as for ``copy``."""
        ...

    async def complete_multipart(
        self,
        key: Key,
        upload_id: str,
        parts: Sequence[PartInfo],
        *,
        condition: Condition = ANY,
    ) -> PutResult:
        """CompleteMultipartUpload. An error inside a 200 answer is an error here too."""
        ...

    async def abort_multipart(self, key: Key, upload_id: str) -> None:
        """AbortMultipartUpload; no error when it is gone."""
        ...

    async def list_parts(self, key: Key, upload_id: str) -> list[PartInfo]:
        """ListParts, all pages. NoSuchKeyError: the upload is gone."""
        ...

    async def list_uploads(self, prefix: str) -> list[UploadInfo]:
        """ListMultipartUploads below ``prefix``, all pages."""
        ...

    async def may_write(self, temporary_key: Key) -> bool | None:
        """May these credentials put an object there? ``None``: it was not told.

        One request, that changes nothing: a part for an upload that there is not. Raises nothing but
        Cancelled; not tried again.
        """
        ...

    async def check_bucket(self, prefix: str = "") -> BucketInfo:
        """Does the bucket answer these credentials, below ``prefix``? The error says what to mend."""
        ...

    async def noncurrent_rule(self, prefix: str = "") -> str:
        """The lifecycle rule that destroys noncurrent versions below ``prefix``, in words.

        Empty where there is none, and where these credentials or this store do not tell.
        """
        ...

    async def probe(
        self, temporary_key: Key, *, known: Capabilities | None = None, killed: Key = ""
    ) -> Capabilities:
        """Try by writing and deleting below ``temporary_key`` what the store honours. Never raises for a refusal.

        What earlier probes left is removed: after an hour, or below ``killed``, the temporary key of one that
        is known to have ended.
        What it finds guides later writes. With ``known``, found by an earlier probe of the same bucket,
        nothing is tried and that is taken over.
        """
        ...

    async def try_version_dates(self, temporary_key: Key) -> bool | None:
        """Does the store list all versions, each under the time at which it was written?

        Two versions and a delete marker below ``temporary_key`` show it, in a little more than 4 s; they are
        removed. ``None``: the bucket keeps no versions. Raises StoreError where it cannot be tried.
        """
        ...

    async def statistics(self) -> dict[str, float]:
        """Counters since the start, by the names in ``metrics``: requests, retries, bytes, overdue..."""
        ...

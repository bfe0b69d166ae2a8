"""The nouns that every room shares: keys, versions, ranges and what S3 says about an object.

All of them are frozen ``msgspec.Struct`` values, so that they cross the engine's process
boundary without a second definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

Key: TypeAlias = str
"""An object's full key in the bucket (mount prefix included), as text; S3 keys are UTF-8."""

ETag: TypeAlias = str
"""An entity tag without its quotes, otherwise exactly as the store gave it."""

VersionId: TypeAlias = str
"""A version id, opaque. ``None`` stands for "the store keeps no versions"; ``"null"`` is S3's own."""


Checksum: TypeAlias = str
"""A CRC64NVME in base64, as S3 writes it."""


class ByteRange(msgspec.Struct, frozen=True):
    """The half-open range of bytes ``[start, start + length)``; ``length`` is at least 1."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        """First offset behind the range."""
        return self.start + self.length


class ContentRef(msgspec.Struct, frozen=True, gc=False):
    """One immutable sequence of bytes in the bucket: one version of one object.

    Two refs with equal fields always name equal bytes. ``version_id`` is ``None`` where the
    bucket keeps no versions (or the listing did not tell); then ``etag`` alone pins it. ``bucket`` is set for the
    source of a copy that lies in another bucket than the store's.
    """

    key: Key
    etag: ETag
    size: int
    version_id: VersionId | None = None
    bucket: str = ""


class FileSlice(msgspec.Struct, frozen=True, gc=False):
    """``length`` bytes at ``offset`` of the local file ``path``: a body to send or a place to fill.

    ``expected``, where it is known, is the CRC64NVME that a body to send must have. Of a place to fill the
    CRC64NVME of each block of ``1 << sums_shift`` bytes of the file is written to ``sums_offset`` + 8 times
    the block's number (64 bits, little endian) before the block is reported; ``sums_offset`` 0: nowhere.
    """

    path: str
    offset: int
    length: int
    expected: Checksum | None = None
    sums_offset: int = 0
    sums_shift: int = 0


Body: TypeAlias = bytes | FileSlice


class ObjectHeaders(msgspec.Struct, frozen=True, gc=False):
    """What is stored with an object beside its bytes.

    ``metadata`` holds user metadata, names in lower case without ``x-amz-meta-``. One character of a value
    is one byte as it travels (latin-1), whatever encoding the bytes are in: what came goes back as it came.
    Unset fields are not sent. ``tags`` and ``acl`` are what only ``Store.describe`` tells: the tag set in the form
    of ``x-amz-tagging``, and the request headers that grant what the object's ACL grants (empty: to its owner
    alone, ``None``: not told).
    """

    metadata: Mapping[str, str] = {}
    content_type: str | None = None
    content_encoding: str | None = None
    content_language: str | None = None
    content_disposition: str | None = None
    cache_control: str | None = None
    expires: str | None = None
    storage_class: str | None = None
    website_redirect: str | None = None
    encryption: str | None = None
    kms_key_id: str | None = None
    bucket_key: str | None = None
    lock_mode: str | None = None
    lock_until: str | None = None
    legal_hold: str | None = None
    tags: str | None = None
    acl: Mapping[str, str] | None = None

    def __hash__(self) -> int:
        """Of a part of it: mappings have none."""
        return hash((frozenset(self.metadata.items()), self.content_type, self.storage_class))


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """What POSIX keeps about a file beside its bytes and its size.

    ``mode`` is a whole ``st_mode`` (type and permissions). Times are nanoseconds since the epoch.
    ``xattrs`` holds the user's extended attributes by full name (``user.*``).
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    rdev: int = 0
    xattrs: Mapping[str, bytes] = {}


class ObjectInfo(msgspec.Struct, frozen=True, gc=False):
    """One object version as HEAD, GET or LIST described it.

    ``headers`` is ``None`` when it came from LIST, which tells no metadata.
    ``last_modified_ns`` is nanoseconds since the epoch, at S3's resolution (1 s, or 1 ms in lists).
    ``etag`` may be empty where a store gives none. ``etag_is_md5``: whether it is the MD5 of the
    bytes, which its form alone does not tell (SSE-KMS, SSE-C); ``None`` when it came from LIST.
    ``is_proven``: the whole object came with this answer, and was held against a checksum or MD5 of it.
    ``tag_count``: how many tags it has; ``None`` where the answer did not tell.
    ``archive``: of what is in an archive, by HEAD: ``archived``, ``restoring``, or ``restored`` (with until when).
    """

    key: Key
    size: int
    etag: ETag
    last_modified_ns: int
    version_id: VersionId | None = None
    storage_class: str | None = None
    headers: ObjectHeaders | None = None
    etag_is_md5: bool | None = None
    is_proven: bool = False
    tag_count: int | None = None
    archive: str | None = None

    @property
    def ref(self) -> ContentRef:
        """The bytes that this object version holds."""
        return ContentRef(self.key, self.etag, self.size, self.version_id)


class ObjectDigests(msgspec.Struct, frozen=True):
    """What a store keeps beside an object's bytes by which they can be proven.

    ``checksums`` in base64 by algorithm (``crc64nvme``, ``crc32c``, ``crc32``, ``sha1``, ``sha256``): of the
    whole object or, with ``is_composite``, of its parts' checksums in a row. ``part_lengths`` are those of all
    parts in order, ``first_part_bytes`` the first one's; empty and 0 where the store does not tell.
    ``etag_is_digest``: ``False`` where the store says that the ETag is made of no MD5s (SSE-KMS, SSE-C).
    """

    size: int
    etag: ETag
    etag_is_digest: bool
    checksums: Mapping[str, str] = {}
    is_composite: bool = False
    part_lengths: tuple[int, ...] = ()
    first_part_bytes: int = 0


class ListPage(msgspec.Struct, frozen=True):
    """One page of ListObjectsV2: objects and common prefixes, each in the store's order.

    ``next_token`` is ``None`` on the last page.
    """

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]
    next_token: str | None


class ObjectVersion(msgspec.Struct, frozen=True):
    """One version of one key, or a delete marker, as ListObjectVersions told it.

    ``version_id`` is ``"null"`` for what was written while the bucket kept no versions. A delete
    marker has no bytes: its ``size`` is 0 and its ``etag`` empty. ``last_modified_ns`` is nanoseconds
    since the epoch, at the store's resolution (whole seconds on AWS and others).
    """

    key: Key
    version_id: VersionId
    is_latest: bool
    is_delete_marker: bool
    size: int
    etag: ETag
    last_modified_ns: int
    storage_class: str | None = None

    @property
    def ref(self) -> ContentRef:
        """The bytes that this version holds."""
        return ContentRef(self.key, self.etag, self.size, self.version_id)


class VersionPage(msgspec.Struct, frozen=True):
    """One page of ListObjectVersions, in the store's order: by key, the newest of a key first.

    Both markers are ``None`` on the last page. ``next_version_marker`` alone is ``None`` where the
    next page begins with another key. A page may be empty and still not be the last.
    """

    versions: tuple[ObjectVersion, ...]
    prefixes: tuple[str, ...]
    next_key_marker: str | None
    next_version_marker: str | None


class Condition(msgspec.Struct, frozen=True):
    """What a write demands of the key's present state: at most one of the two is set."""

    if_match: ETag | None = None
    if_absent: bool = False


ANY = Condition()
"""No demand: whatever is there is replaced."""


class PutResult(msgspec.Struct, frozen=True):
    """What a finished PUT, COPY or CompleteMultipartUpload made.

    ``date_ns`` is the store's own clock (the Date header) when it answered, 0 where it sent none.
    """

    etag: ETag
    version_id: VersionId | None = None
    date_ns: int = 0


class PartInfo(msgspec.Struct, frozen=True):
    """One uploaded part. ``checksum`` is the base64 CRC that the store confirmed, or ``None``."""

    number: int
    etag: ETag
    size: int
    checksum: str | None = None


class UploadInfo(msgspec.Struct, frozen=True):
    """An unfinished multipart upload."""

    key: Key
    upload_id: str
    initiated_ns: int


class BucketInfo(msgspec.Struct, frozen=True):
    """What the bucket's own calls told: ``versioning`` is ``enabled``, ``suspended``, ``off`` or ``unknown``.

    ``date_ns`` is the store's own clock (the Date header) when it answered, 0 where it sent none.
    """

    name: str
    region: str
    endpoint_url: str
    versioning: str
    date_ns: int = 0


class Capabilities(msgspec.Struct, frozen=True):
    """What the store was seen to honour, by trying; ``None`` where it could not be tried.

    ``if_match`` / ``if_absent``: conditional PutObject is refused with 412 when it must be; so are
    CompleteMultipartUpload, CopyObject, CopyObject of a source with another ETag, and DeleteObject, in the others.
    Each is tried with a condition that holds and with one that does not.
    ``checksum``: the strongest ``x-amz-checksum-*`` it verifies (``crc64nvme``, ``crc32c``, ``crc32``), else ``None``.
    ``reason``: why something was not tried, for people. ``etag_is_md5``: what a PUT makes has the MD5 of its bytes
    as ETag (not where the bucket encrypts with SSE-KMS). ``unusable``: conditions that the store refuses even where
    they hold, as "COPY If-None-Match"; they are never sent. ``atomic``: of eight conditional PUTs at once exactly one
    won. ``content_md5``: it verifies Content-MD5. ``part_copies``: UploadPartCopy is answered. ``copied_checksums``:
    a part made by it counts in an upload with checksums. ``markers``: a key that ends in ``/`` is an object of its
    own, with keys below it; ``marker_metadata``: such an object keeps its metadata. ``lists_versions``:
    ListObjectVersions is answered. ``version_dates``: its versions are all listed, each dated when it was written.
    ``counts_tags``: HEAD tells how many tags an object has. ``may_write``: these credentials may put an object.
    ``renames``: RenameObject moves an object with its ETag and metadata, and heeds its conditions. ``appends``:
    PutObject with a write offset adds to an object, and is refused where that has another size.
    """

    if_match: bool | None = None
    if_absent: bool | None = None
    complete_condition: bool | None = None
    checksum: str | None = None
    reason: str = ""
    copy_condition: bool | None = None
    copy_source_condition: bool | None = None
    delete_condition: bool | None = None
    etag_is_md5: bool | None = None
    unusable: tuple[str, ...] = ()
    atomic: bool | None = None
    content_md5: bool | None = None
    copied_checksums: bool | None = None
    markers: bool | None = None
    marker_metadata: bool | None = None
    lists_versions: bool | None = None
    version_dates: bool | None = None
    counts_tags: bool | None = None
    part_copies: bool | None = None
    may_write: bool | None = None
    renames: bool | None = None
    appends: bool | None = None


class TreeWork(msgspec.Struct):
    """How much of some trees is in the cache already, of how much; ``error`` is of the first file that failed."""

    files: int = 0
    size_bytes: int = 0
    files_total: int = 0
    bytes_total: int = 0
    failed: int = 0
    error: str = ""


class Evicted(msgspec.Struct, frozen=True):
    """What left the cache, and what stays there for now: files that are open, files that are pinned."""

    files: int = 0
    size_bytes: int = 0
    in_use: int = 0
    pinned: int = 0


class Pinned(msgspec.Struct):
    """A path that is kept in the cache, and what the last look at it found; ``error`` of the first file that failed."""

    path: str
    files: int = 0
    size_bytes: int = 0
    error: str = ""


class MountEvent(msgspec.Struct, frozen=True):
    """One event of a mount: ``seq`` grows by one with each since the mount began, ``at_ns`` is wall time."""

    seq: int
    at_ns: int
    kind: str
    about: dict[str, Any]

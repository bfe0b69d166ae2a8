"""The state of a bucket in memory, by S3's rules: versions, delete markers, uploads, listing."""

from __future__ import annotations

import bisect
import hashlib

import msgspec

from s3mount.clock import WallClock
from s3mount.errors import NoSuchKeyError, PreconditionFailedError, RejectedError
from s3mount.refs import (
    Condition,
    ContentRef,
    ETag,
    Key,
    ListPage,
    ObjectHeaders,
    ObjectInfo,
    ObjectVersion,
    PartInfo,
    PutResult,
    VersionId,
    VersionPage,
)
from s3mount.s3.headers import DEFAULT_CONTENT_TYPE, DEFAULT_STORAGE_CLASS, is_md5_etag

_SECOND_NS = 1_000_000_000
_MILLISECOND_NS = 1_000_000


class Version(msgspec.Struct, frozen=True):
    """One version of one key; ``data`` is ``None`` for a delete marker. ``part_lengths``: as it was uploaded."""

    info: ObjectInfo
    data: bytes | None
    part_lengths: tuple[int, ...] = ()


class Upload(msgspec.Struct):
    """An unfinished multipart upload."""

    key: Key
    headers: ObjectHeaders
    initiated_ns: int
    parts: dict[int, tuple[PartInfo, bytes]] = {}


class Habits(msgspec.Struct):
    """What other stores do otherwise than S3.

    ``markers``: keys that end in a slash are objects of their own, not files without the slash.
    ``marker_metadata``: what is stored with them is kept. ``marker_copies``: they can be copied.
    ``lists_versions``, ``version_dates``: what is told of that; the lists are right all the same.
    ``is_ordered``: keys are listed in their order. ``renames``, ``appends``: it has RenameObject, and PutObject
    with a write offset, as directory buckets do.
    """

    markers: bool = True
    marker_metadata: bool = True
    marker_copies: bool = True
    lists_versions: bool = True
    version_dates: bool = True
    is_ordered: bool = True
    renames: bool = False
    appends: bool = False
    appended_parts_max: int = 10_000


class Bucket:
    """The bucket's state, shared by all stores that look at it. Every method is synchronous and atomic."""

    def __init__(self, versioning: str, clock: WallClock, *, is_opaque: bool = False) -> None:
        self.versioning = versioning
        self.is_opaque = is_opaque
        self.clock = clock
        self.versions: dict[Key, list[Version]] = {}
        self.names: list[bytes] = []  # present keys, UTF-8, sorted as S3 sorts them
        self.names_ever: list[
            bytes
        ] = []  # the same of all keys that have a version or delete marker
        self.uploads: dict[str, Upload] = {}
        self.habits = Habits()
        self.serial = 0

    def next_id(self, kind: str) -> str:
        """An id that no other version or upload has."""
        self.serial += 1
        return f"{kind}{self.serial:08d}"

    def etag_of(self, data: bytes) -> ETag:
        """The ETag of an object or part: its MD5, or where it ``is_opaque``, what looks like one."""
        if self.is_opaque:
            data = self.next_id("e").encode()
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def current(self, key: Key) -> Version | None:
        """The version that a plain GET sees; ``None`` if there is none or it is a delete marker."""
        history = self.versions.get(key)
        return history[-1] if history and history[-1].data is not None else None

    def version(self, key: Key, version_id: VersionId | None) -> Version:
        """The named (or current) version. Raises NoSuchKeyError."""
        found: Version | None = None
        if version_id is None:
            found = self.current(key)
        else:
            for candidate in self.versions.get(key, ()):
                if (candidate.info.version_id or "null") == version_id:
                    found = candidate
        if found is None or found.data is None:
            what = "version" if version_id else "key"
            raise NoSuchKeyError(f"no such {what}", key=key, status=404, code="NoSuchKey")
        return found

    def check(self, key: Key, condition: Condition) -> None:
        """Raise PreconditionFailedError when ``condition`` does not hold for the current version."""
        now = self.current(key)
        if condition.if_absent and now is not None:
            raise replaced(key)
        wanted = condition.if_match
        if wanted is not None and (now is None or now.info.etag != wanted):
            raise replaced(key)

    def store(
        self,
        key: Key,
        data: bytes,
        etag: ETag,
        headers: ObjectHeaders,
        part_lengths: tuple[int, ...] = (),
    ) -> PutResult:
        """Make a new current version."""
        now_ns = self.clock.now_ns()
        version_id = {"enabled": self.next_id("v"), "suspended": "null"}.get(self.versioning)
        headers = _as_stored(headers)
        if key.endswith("/") and not self.habits.marker_metadata:
            headers = msgspec.structs.replace(headers, metadata={})
        if not self.habits.markers:
            key = key.rstrip("/")
        info = ObjectInfo(
            key=key,
            size=len(data),
            etag=etag,
            last_modified_ns=now_ns - now_ns % _MILLISECOND_NS,
            version_id=version_id,
            storage_class=headers.storage_class,
            headers=headers,
            etag_is_md5=is_md5_etag(etag) and not self.is_opaque,
        )
        self._push(key, Version(info, data, part_lengths))
        return PutResult(etag, version_id, self._date_ns())

    def _date_ns(self) -> int:
        now_ns = self.clock.now_ns()
        return now_ns - now_ns % _SECOND_NS

    def rename(self, source: ContentRef, key: Key, condition: Condition) -> PutResult:
        """RenameObject. Raises RejectedError where there is none, NoSuchKeyError, PreconditionFailedError."""
        if not self.habits.renames or key.endswith("/") or source.key.endswith("/"):
            raise RejectedError("no RenameObject", key=key, status=501, code="NotImplemented")
        found = self.version(source.key, None)
        if found.info.etag != source.etag:
            raise replaced(source.key)
        self.check(key, condition)
        info = msgspec.structs.replace(found.info, key=key)
        if source.key != key:
            self._replace(source.key, [])
            self._replace(key, [Version(info, found.data, found.part_lengths)])
        return PutResult(info.etag, None, self._date_ns())

    def append(self, key: Key, data: bytes, offset: int, if_match: ETag | None) -> PutResult:
        """PutObject with a write offset. Raises RejectedError, NoSuchKeyError, PreconditionFailedError."""
        if not self.habits.appends:
            raise RejectedError("no write offset", key=key, status=501, code="NotImplemented")
        found = self.version(key, None)
        self.check(key, Condition(if_match=if_match))
        before = found.data or b""
        if offset != len(before):
            raise RejectedError("another size", key=key, status=400, code="InvalidWriteOffset")
        lengths = (*(found.part_lengths or (len(before),)), len(data))
        if len(lengths) > self.habits.appended_parts_max:
            raise RejectedError("no more parts", key=key, status=400, code="TooManyParts")
        whole = before + data
        return self.store(
            key, whole, self.etag_of(whole), found.info.headers or ObjectHeaders(), lengths
        )

    def set_tags(self, key: Key, version_id: VersionId | None, tags: str) -> None:
        """Give a version other tags; nothing else of it changes. Raises NoSuchKeyError."""
        found = self.version(key, version_id)
        headers = msgspec.structs.replace(found.info.headers or ObjectHeaders(), tags=tags or None)
        changed = Version(msgspec.structs.replace(found.info, headers=headers), found.data)
        self.versions[key] = [changed if v is found else v for v in self.versions[key]]

    def delete(self, key: Key, version_id: VersionId | None) -> None:
        """Remove a version for good, or the current one as the bucket's versioning wants it."""
        if version_id is not None:
            history = self.versions.get(key, [])
            kept = [v for v in history if (v.info.version_id or "null") != version_id]
            self._replace(key, kept)
        elif self.versioning == "off":
            self._replace(key, [])
        else:
            marker_id = self.next_id("v") if self.versioning == "enabled" else "null"
            now_ns = self.clock.now_ns()
            marker = ObjectInfo(key, 0, "", now_ns - now_ns % _MILLISECOND_NS, marker_id)
            self._push(key, Version(marker, None))

    def _push(self, key: Key, version: Version) -> None:
        history = self.versions.get(key, [])
        if self.versioning != "enabled":
            history = [v for v in history if (v.info.version_id or "null") != "null"]
        self._replace(key, [*history, version])

    def _replace(self, key: Key, history: list[Version]) -> None:
        was = self.current(key) is not None
        name = key.encode()
        if history and key not in self.versions:
            bisect.insort(self.names_ever, name)
        elif not history and key in self.versions:
            del self.names_ever[bisect.bisect_left(self.names_ever, name)]
        if history:
            self.versions[key] = history
        else:
            self.versions.pop(key, None)
        present = self.current(key) is not None
        if present and not was:
            bisect.insort(self.names, name)
        elif was and not present:
            del self.names[bisect.bisect_left(self.names, name)]

    def list_page(
        self,
        prefix: str,
        delimiter: str | None,
        token: str | None,
        start_after: str | None,
        max_keys: int,
    ) -> ListPage:
        """One page of the present keys, in the order of UTF-8."""
        names = self.names
        prefix_bytes = prefix.encode()
        # A token is the kind and the name of the page's last entry, in hex: opaque to callers.
        kind, _, name_hex = (token or "").partition(":")
        after = bytes.fromhex(name_hex) if token else (start_after or "").encode()
        divider = delimiter.encode() if delimiter else b""
        skip_group = after if kind == "prefix" else None
        index = bisect.bisect_left(names, prefix_bytes)
        if after:
            index = max(index, bisect.bisect_right(names, after))
        objects: list[ObjectInfo] = []
        prefixes: list[bytes] = []
        last, kind = b"", ""
        while index < len(names) and names[index].startswith(prefix_bytes):
            name = names[index]
            if skip_group is not None and name.startswith(skip_group):
                index = _behind(names, skip_group, index)
                continue
            if len(objects) + len(prefixes) >= max_keys:
                return _page(objects, prefixes, f"{kind}:{last.hex()}")
            cut = name.find(divider, len(prefix_bytes)) if divider else -1
            if cut >= 0:
                last, kind = name[: cut + len(divider)], "prefix"
                prefixes.append(last)
                index = _behind(names, last, index)
                continue
            last, kind = name, "key"
            objects.append(_listed(self.versions[name.decode()][-1].info))
            index += 1
        return _page(objects, prefixes, None)

    def list_versions_page(
        self,
        prefix: str,
        delimiter: str | None,
        key_marker: str | None,
        version_marker: VersionId | None,
        max_keys: int,
    ) -> VersionPage:
        """One page of all versions and delete markers, in the order of UTF-8, the newest first."""
        names = self.names_ever
        start, divider = prefix.encode(), (delimiter or "").encode()
        after = (key_marker or "").encode()
        index = bisect.bisect_left(names, start)
        if after:
            index = max(index, bisect.bisect_left(names, after))
        found: list[ObjectVersion] = []
        prefixes: list[str] = []
        last: tuple[str, str | None] = ("", None)
        while index < len(names) and names[index].startswith(start):
            name = names[index]
            cut = name.find(divider, len(start)) if divider else -1
            if cut >= 0:
                group = name[: cut + len(divider)]
                index = _behind(names, group, index)
                if after.startswith(group):
                    continue
                if len(found) + len(prefixes) >= max_keys:
                    return VersionPage(tuple(found), tuple(prefixes), *last)
                prefixes.append(group.decode())
                last = (prefixes[-1], None)
                continue
            for entry in self._listed_versions(name, after, version_marker):
                if len(found) + len(prefixes) >= max_keys:
                    return VersionPage(tuple(found), tuple(prefixes), *last)
                found.append(entry)
                last = (entry.key, entry.version_id)
            index += 1
        return VersionPage(tuple(found), tuple(prefixes), None, None)

    def _listed_versions(
        self, name: bytes, after: bytes, version_marker: VersionId | None
    ) -> list[ObjectVersion]:
        """A key's versions as a list tells them, without those up to the marker."""
        history = self.versions[name.decode()]
        entries = [_listed_version(version, version is history[-1]) for version in history[::-1]]
        if name != after:
            return entries
        ids = [entry.version_id for entry in entries]
        return entries[ids.index(version_marker) + 1 :] if version_marker in ids else []


def _page(objects: list[ObjectInfo], prefixes: list[bytes], token: str | None) -> ListPage:
    return ListPage(tuple(objects), tuple(name.decode() for name in prefixes), token)


def _behind(names: list[bytes], group: bytes, start: int) -> int:
    """Index of the first name behind all that begin with ``group``."""
    return bisect.bisect_left(names, True, start, key=lambda name: not name.startswith(group))


def _listed(info: ObjectInfo) -> ObjectInfo:
    """An object as LIST tells it: no headers, no version."""
    return msgspec.structs.replace(info, headers=None, version_id=None, etag_is_md5=None)


def _listed_version(version: Version, is_latest: bool) -> ObjectVersion:
    info = version.info
    return ObjectVersion(
        key=info.key,
        version_id=info.version_id or "null",
        is_latest=is_latest,
        is_delete_marker=version.data is None,
        size=info.size,
        etag=info.etag,
        last_modified_ns=info.last_modified_ns,
        storage_class=info.storage_class,
    )


def _as_stored(headers: ObjectHeaders) -> ObjectHeaders:
    """``headers`` as they read back: S3's defaults are told as ``None``."""
    content_type = headers.content_type
    storage_class = headers.storage_class
    return msgspec.structs.replace(
        headers,
        metadata=dict(headers.metadata),
        content_type=None if content_type == DEFAULT_CONTENT_TYPE else content_type,
        storage_class=None if storage_class == DEFAULT_STORAGE_CLASS else storage_class,
    )


def replaced(key: Key) -> PreconditionFailedError:
    """The error of a condition that does not hold."""
    return PreconditionFailedError(
        "somebody else changed the object", key=key, status=412, code="PreconditionFailed"
    )

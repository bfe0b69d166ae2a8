"""What a manifest says: which versions of which keys, and what is known of each."""

from __future__ import annotations

import re

import msgspec

from s3mount.refs import ContentRef, ETag, Key, VersionId

_DIGEST = re.compile(r"[0-9A-Fa-f]{32}(-[0-9]+)?")


def plain_etag(text: str, *, is_foreign: bool = False) -> ETag:
    """An ETag as lists write it, without quotes; ``is_foreign``: digests in lower case.

    Some stores write them in capitals, and know them only so; other programs change the letters.
    """
    bare = text.strip().removeprefix("W/").strip('"')
    return bare.lower() if is_foreign and _DIGEST.fullmatch(bare) else bare


def is_same_etag(one: ETag, other: ETag) -> bool:
    """Are these the same, whatever the letters of a digest?"""
    return one == other or (one.lower() == other.lower() and _DIGEST.fullmatch(one) is not None)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One version that a manifest names.

    ``version_id`` of ``None``: what the key has now, as the manifest names no version. ``size`` of
    ``None``: not told (two-column manifests and those for batch jobs). ``last_modified_ns`` and
    ``mtime_ns`` are nanoseconds since the epoch; ``mode`` is a whole ``st_mode`` or only permissions.
    """

    bucket: str
    key: Key
    version_id: VersionId | None
    size: int | None = None
    etag: ETag = ""
    last_modified_ns: int | None = None
    mode: int | None = None
    mtime_ns: int | None = None

    @property
    def order(self) -> tuple[bytes, bytes]:
        """By bucket, then key in the order of UTF-8: the order of the manifests that s3mount writes."""
        return self.bucket.encode(), self.key.encode()

    @property
    def ref(self) -> ContentRef | None:
        """The bytes of this version; ``None`` while its size is unknown."""
        if self.size is None:
            return None
        return ContentRef(self.key, self.etag, self.size, self.version_id)


def is_same_line(one: Entry, other: Entry) -> bool:
    """Do two entries of one key name the same version, so that one of them is enough?"""
    if (
        one.version_id is None
        and one.etag
        and other.etag
        and not is_same_etag(one.etag, other.etag)
    ):
        return False
    return one.version_id == other.version_id

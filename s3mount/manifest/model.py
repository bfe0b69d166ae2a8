"""What a manifest says: which versions of which keys, and what is known of each."""

from __future__ import annotations

import msgspec

from s3mount.refs import ContentRef, ETag, Key, VersionId


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

"""Where a snapshot's bytes come from: for each bucket a store to ask and a cache to read through."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import trio

from s3mount.cache.reader import CacheReader
from s3mount.refs import Key, ObjectInfo, VersionId, VersionPage


class Asked(Protocol):
    """What is asked of a bucket beside bytes."""

    async def head(self, key: Key, *, version_id: VersionId | None = None) -> ObjectInfo:
        """See ``Store.head``."""
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
        """See ``Store.list_versions_page``."""
        ...


class Access(NamedTuple):
    """One bucket."""

    store: Asked
    reader: CacheReader


class Buckets(Protocol):
    """All buckets of a snapshot; each is opened when it is needed first."""

    async def access(self, bucket: str) -> Access:
        """The store and the cache of a bucket. Raises S3MountError."""
        ...

    def open_reader(self, bucket: str) -> CacheReader | None:
        """The cache of a bucket if it is open already."""
        ...


class OneBucket:
    """The bucket of a mount that is there already."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def access(self, bucket: str) -> Access:
        """See ``Buckets.access``."""
        await trio.lowlevel.checkpoint()
        return self._access

    def open_reader(self, bucket: str) -> CacheReader | None:
        """See ``Buckets.open_reader``."""
        return self._access.reader

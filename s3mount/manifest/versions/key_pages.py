"""Pages of what lies below a prefix: of versions, or of objects as they are now and the folders between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from s3mount.refs import Key, ObjectInfo, ObjectVersion, VersionId
from s3mount.s3.store import Store

R = TypeVar("R", ObjectVersion, ObjectInfo)
"""A row: what a page lists. A folder's key ends with its slash."""
Cursor = tuple[str | None, str | None]
"""Where a list goes on; what stands in it is the pages' own business."""


class KeyPage(NamedTuple, Generic[R]):
    """``rows`` in the order of keys. All up to ``reached`` is listed; ``None``: to the end. ``cursor`` goes on."""

    rows: Sequence[R]
    reached: Key | None
    cursor: Cursor | None


class KeyPages(Protocol[R]):
    """One kind of list. Errors are the store's."""

    prefix: str
    kind: type[R]
    may_be_parted: bool
    """Can a list begin behind any key?"""

    async def page(
        self, after: Key | None, cursor: Cursor | None = None, max_keys: int = 1000
    ) -> KeyPage[R]:
        """The page at ``cursor``, or the first behind ``after``; ``None``: of all."""
        ...


class VersionPages:
    """All versions and delete markers, the newest of a key first."""

    kind = ObjectVersion
    may_be_parted = True

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self.prefix = prefix

    async def page(
        self, after: Key | None, cursor: Cursor | None = None, max_keys: int = 1000
    ) -> KeyPage[ObjectVersion]:
        """See ``KeyPages``."""
        marker: Key | None = after
        version: VersionId | None = None
        if cursor is not None:
            marker, version = cursor
        page = await self._store.list_versions_page(
            self.prefix, key_marker=marker, version_marker=version, max_keys=max_keys
        )
        following = page.next_key_marker
        on = None if following is None else (following, page.next_version_marker)
        return KeyPage(page.versions, following, on)


class ObjectPages:
    """Objects as they are now; with ``delimiter`` only those in the folder itself, and its folders as rows.

    A folder's row is an ObjectInfo whose key ends with the delimiter, with neither ETag nor date. It may come once
    more in the next range.
    """

    kind = ObjectInfo

    def __init__(self, store: Store, prefix: str, *, delimiter: str | None = None) -> None:
        self._store = store
        self._delimiter = delimiter
        self.prefix = prefix
        self.may_be_parted = store.lists_in_order

    async def page(
        self, after: Key | None, cursor: Cursor | None = None, max_keys: int = 1000
    ) -> KeyPage[ObjectInfo]:
        """See ``KeyPages``."""
        token = cursor[0] if cursor is not None else None
        page = await self._store.list_page(
            self.prefix,
            delimiter=self._delimiter,
            token=token,
            start_after=None if token is not None else after,
            max_keys=max_keys,
        )
        rows: Sequence[ObjectInfo] = page.objects
        if page.prefixes:
            folders = [ObjectInfo(common, 0, "", 0) for common in page.prefixes]
            rows = sorted([*rows, *folders], key=lambda row: row.key)
        if page.next_token is None:
            return KeyPage(rows, None, None)
        reached = rows[-1].key if rows else (cursor[1] if cursor is not None else after)
        return KeyPage(rows, reached or "", (page.next_token, reached))

"""ListObjectVersions: pages of versions and delete markers, in the store's order.

The protocol says that a document holds both kinds mixed, in order; some stores send all delete
markers of a page before (or behind) all versions. Times then tell how they belong together, and
where those are equal the store is asked which one comes behind a delete marker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from xml.etree import ElementTree

import trio

from s3mount.errors import RejectedError, ServerFaultError, StoreError, StuckListError
from s3mount.refs import Key, ListPage, ObjectVersion, VersionId, VersionPage
from s3mount.s3.calls.pages import Pages, is_behind
from s3mount.s3.calls.reading import Reader
from s3mount.s3.documents import parse_document, shown_name, size_of
from s3mount.s3.headers import DEFAULT_STORAGE_CLASS, bare_etag, check_key, iso_date_ns
from s3mount.s3.http.http_client import HttpClient
from s3mount.s3.traits import Traits

LIST_BYTES_PER_VERSION = 500
"""About what a version takes in a page, for the deadline."""
LAST_LETTER = "\U0010ffff"
ASKED_AT_ONCE_MAX = 8
"""Requests at once about the order of one page's entries."""

Successors = dict[tuple[Key, VersionId], VersionId | None]
"""What comes behind a delete marker among the versions of its key; ``None``: nothing."""


class VersionLister:
    """Lists versions by the HTTP client."""

    def __init__(self, http: HttpClient, reader: Reader, traits: Traits) -> None:
        self._http = http
        self._pages = Pages(http)
        self._reader = reader
        self._traits = traits

    async def page(
        self,
        prefix: str,
        delimiter: str | None,
        key_marker: str | None,
        version_marker: VersionId | None,
        max_keys: int,
    ) -> VersionPage:
        """See ``Store.list_versions_page``."""
        if self._traits.lists_versions is False:
            return await self._present(prefix, delimiter, key_marker, max_keys)
        try:
            page = await self._ask(prefix, delimiter, key_marker, version_marker, max_keys)
        except RejectedError as error:
            if error.status != 501 or self._traits.versioned:
                raise
            self._traits.lists_versions = False
            return await self._present(prefix, delimiter, key_marker, max_keys)
        if is_grouped(page.versions):
            successors = await self._successors(undecided(page.versions))
            page = VersionPage(
                in_order(page.versions, successors),
                page.prefixes,
                page.next_key_marker,
                page.next_version_marker,
            )
        return page

    async def _ask(
        self,
        prefix: str,
        delimiter: str | None,
        key_marker: str | None,
        version_marker: VersionId | None,
        max_keys: int,
    ) -> VersionPage:
        wanted = [("max-keys", str(max_keys)), ("versions", "")]
        if prefix:
            check_key(prefix)
        wanted.extend(
            (name, value)
            for name, value in (
                ("prefix", prefix),
                ("delimiter", delimiter),
                ("key-marker", key_marker),
                ("version-id-marker", version_marker),
            )
            if value
        )

        def parse(body: bytes) -> VersionPage:
            return _behind(parse_versions(body), key_marker, version_marker)

        _, page = await self._pages.ask(
            "list_versions", wanted, parse, max_keys * LIST_BYTES_PER_VERSION, _names, _merged
        )
        return page

    async def _present(
        self, prefix: str, delimiter: str | None, key_marker: str | None, max_keys: int
    ) -> VersionPage:
        """The keys there are, each with the one version "null": this store knows no list of versions."""
        if self._http.is_express:
            # It lists in no order, and only its own token tells how to go on.
            page = await self._reader.list_page(prefix, delimiter, key_marker, None, max_keys)
            return VersionPage(_as_versions(page), page.prefixes, page.next_token, None)
        after = key_marker
        if after is not None and delimiter and after.endswith(delimiter):
            # Behind all keys of that prefix, which was told as one.
            after += LAST_LETTER
        page = await self._reader.list_page(prefix, delimiter, None, after, max_keys)
        names = [*(info.key for info in page.objects), *page.prefixes]
        last = max(names, key=str.encode, default=None) if page.next_token else None
        prefixes = tuple(each for each in page.prefixes if each != key_marker)
        return VersionPage(_as_versions(page), prefixes, last, None)

    async def _successors(self, markers: Sequence[ObjectVersion]) -> Successors:
        """Ask what follows each of ``markers``."""
        found: Successors = {}
        failures: list[StoreError] = []
        limit = trio.CapacityLimiter(ASKED_AT_ONCE_MAX)

        async def ask(marker: ObjectVersion) -> None:
            key, version_id = marker.key, marker.version_id
            async with limit:
                if failures:
                    return
                try:
                    page = await self._ask(key, None, key, version_id, 1)
                except StoreError as error:
                    failures.append(error)
                    return
            following = page.versions[0] if page.versions else None
            found[key, version_id] = (
                following.version_id if following is not None and following.key == key else None
            )

        async with trio.open_nursery() as nursery:
            for marker in markers:
                nursery.start_soon(ask, marker)
        if failures:
            raise failures[0]
        return found


def _as_versions(page: ListPage) -> tuple[ObjectVersion, ...]:
    return tuple(
        ObjectVersion(
            info.key,
            "null",
            is_latest=True,
            is_delete_marker=False,
            size=info.size,
            etag=info.etag,
            last_modified_ns=info.last_modified_ns,
            storage_class=info.storage_class,
        )
        for info in page.objects
    )


def _behind(
    page: VersionPage, key_marker: Key | None, version_marker: VersionId | None
) -> VersionPage:
    """The page without what was listed before: Swift repeats entries, and Ceph begins with the marker's key
    where no version is given.

    Raises StuckListError when it does not advance, or brings nothing but what was listed before.
    """
    if key_marker is None:
        return page
    if (page.next_key_marker, page.next_version_marker) == (key_marker, version_marker):
        raise StuckListError("the store's list of versions does not advance")

    def is_new(version: ObjectVersion) -> bool:
        if version.key == key_marker:
            return version_marker is not None and version.version_id != version_marker
        return is_behind(version.key, key_marker)

    kept = tuple(version for version in page.versions if is_new(version))
    prefixes = tuple(prefix for prefix in page.prefixes if is_behind(prefix, key_marker))
    went_back = any(version.key != key_marker for version in page.versions if not is_new(version))
    if went_back and not kept and not prefixes:
        raise StuckListError("the store's list of versions repeats a page")
    return VersionPage(kept, prefixes, page.next_key_marker, page.next_version_marker)


def _names(page: VersionPage) -> list[str]:
    return [version.key for version in page.versions] + list(page.prefixes)


def _merged(plain: VersionPage, encoded: VersionPage) -> VersionPage:
    return VersionPage(
        encoded.versions, encoded.prefixes, plain.next_key_marker, plain.next_version_marker
    )


def parse_versions(body: bytes) -> VersionPage:
    """A ListVersionsResult, its entries as they stand. Raises ServerFaultError when it is none."""
    root, ns = parse_document(body, "ListVersionsResult", "IsTruncated")
    encoded = root.findtext(f"{ns}EncodingType") == "url"
    version_tag, marker_tag = f"{ns}Version", f"{ns}DeleteMarker"
    versions = []
    prefixes = []
    for element in root:
        tag = element.tag
        if tag in (version_tag, marker_tag):
            versions.append(_version(element, len(ns), encoded, tag == marker_tag))
        elif tag == f"{ns}CommonPrefixes":
            prefixes.append(shown_name(element.findtext(f"{ns}Prefix") or "", encoded))
    key_marker = version_marker = None
    if root.findtext(f"{ns}IsTruncated") == "true":
        key_marker = shown_name(root.findtext(f"{ns}NextKeyMarker") or "", encoded) or None
        if key_marker is None:
            raise ServerFaultError("a page of versions says that more follow, but not how to ask")
        version_marker = root.findtext(f"{ns}NextVersionIdMarker") or None
    return VersionPage(tuple(versions), tuple(prefixes), key_marker, version_marker)


def _version(
    element: ElementTree.Element, skip: int, encoded: bool, is_delete_marker: bool
) -> ObjectVersion:
    fields = {child.tag[skip:]: child.text or "" for child in element}
    storage_class = fields.get("StorageClass") or None
    try:
        return ObjectVersion(
            key=shown_name(fields["Key"], encoded),
            version_id=fields.get("VersionId") or "null",
            is_latest=fields["IsLatest"] == "true",
            is_delete_marker=is_delete_marker,
            size=0 if is_delete_marker else size_of(fields),
            etag=bare_etag(fields.get("ETag", "")),
            last_modified_ns=iso_date_ns(fields["LastModified"]),
            storage_class=None if storage_class == DEFAULT_STORAGE_CLASS else storage_class,
        )
    except (KeyError, ValueError) as error:
        raise ServerFaultError(f"a version in a list lacks {error}") from error


def is_grouped(versions: Sequence[ObjectVersion]) -> bool:
    """May these entries be sorted by kind first? Then all of one kind stand before all of the other."""
    changes = sum(
        before.is_delete_marker != behind.is_delete_marker for before, behind in pairwise(versions)
    )
    return changes == 1


def undecided(versions: Iterable[ObjectVersion]) -> list[ObjectVersion]:
    """Delete markers of which neither time nor being the latest tells where they belong."""
    found = []
    for _, markers, objects in _by_key(versions):
        settled = {version.last_modified_ns for version in objects if not version.is_latest}
        found += [m for m in markers if not m.is_latest and m.last_modified_ns in settled]
    return found


def in_order(
    versions: Iterable[ObjectVersion], successors: Successors
) -> tuple[ObjectVersion, ...]:
    """Entries that were sorted by kind, in the store's order: by key, the newest of a key first."""
    result: list[ObjectVersion] = []
    for _, markers, objects in _by_key(versions):
        while markers and objects:
            is_marker = _comes_first(markers[0], objects[0], successors)
            result.append(markers.pop(0) if is_marker else objects.pop(0))
        result += markers + objects
    return tuple(result)


def _by_key(
    versions: Iterable[ObjectVersion],
) -> Iterable[tuple[Key, list[ObjectVersion], list[ObjectVersion]]]:
    """Delete markers and others of each key, in the order of UTF-8; each as it stood."""
    in_key_order = sorted(versions, key=lambda version: version.key.encode())
    for key, group in groupby(in_key_order, lambda version: version.key):
        entries = list(group)
        markers = [entry for entry in entries if entry.is_delete_marker]
        yield key, markers, [entry for entry in entries if not entry.is_delete_marker]


def _comes_first(marker: ObjectVersion, version: ObjectVersion, successors: Successors) -> bool:
    """Is the delete marker newer than ``version`` of the same key?"""
    if marker.is_latest or version.is_latest:
        return marker.is_latest
    if marker.last_modified_ns != version.last_modified_ns:
        return marker.last_modified_ns > version.last_modified_ns
    following: VersionId | None = marker.version_id
    while following is not None and (marker.key, following) in successors:
        following = successors[marker.key, following]
    return following == version.version_id

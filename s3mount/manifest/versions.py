"""Which version of each key was current at a time, from lists of versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from s3mount.manifest.model import Entry
from s3mount.refs import Key, ObjectVersion


def current_at(versions: Iterable[ObjectVersion], at_ns: int) -> Iterator[ObjectVersion]:
    """Of each key the version that was current at ``at_ns``; none where that is a delete marker.

    ``versions`` come as the store lists them: by key, the newest of a key first. What was last
    modified after ``at_ns`` is left out; of what remains the first counts, so that the store's order
    decides among equal dates.
    """
    decided: Key | None = None
    for version in versions:
        if version.key == decided or version.last_modified_ns > at_ns:
            continue
        decided = version.key
        if not version.is_delete_marker:
            yield version


def entry_of(bucket: str, version: ObjectVersion) -> Entry:
    """What a manifest says of a listed version."""
    return Entry(
        bucket,
        version.key,
        version.version_id,
        version.size,
        version.etag,
        version.last_modified_ns,
    )

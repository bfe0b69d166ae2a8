"""Which version of each key was current at a time, from lists of versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from s3mount.manifest.model import Entry
from s3mount.manifest.versions.dating import Gaps
from s3mount.names import is_trial_key
from s3mount.refs import Key, ObjectVersion


class CurrentAt:
    """Chooses from versions in the store's order, page by page. ``at_ns`` of ``None``: the latest.

    ``gaps`` is told of all of them.
    """

    def __init__(self, at_ns: int | None, gaps: Gaps | None = None) -> None:
        self._at_ns = at_ns
        self._gaps = gaps
        self._decided: Key | None = None

    def __call__(self, versions: Iterable[ObjectVersion]) -> list[ObjectVersion]:
        """Those of these that were current, as ``current_at`` says; keys of trials are left out."""
        if self._gaps is not None:
            versions = tuple(versions)
            self._gaps.note(versions)
        decided, at_ns = self._decided, self._at_ns
        chosen = []
        for version in versions:
            if version.key == decided or is_trial_key(version.key):
                continue
            if at_ns is not None and version.last_modified_ns > at_ns:
                continue
            decided = version.key
            if not version.is_delete_marker:
                chosen.append(version)
        self._decided = decided
        return chosen


def current_at(versions: Iterable[ObjectVersion], at_ns: int) -> Iterator[ObjectVersion]:
    """Of each key the version that was current at ``at_ns``; none where that is a delete marker.

    ``versions`` come as the store lists them: by key, the newest of a key first. What was last
    modified after ``at_ns`` is left out; of what remains the first counts, so that the store's order
    decides among equal dates.
    """
    choose = CurrentAt(at_ns)
    for version in versions:
        yield from choose((version,))


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

"""The summary of a manifest: how many files and bytes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from s3mount.manifest.model import Entry


class Summary(msgspec.Struct):
    """Sums over entries. ``size_bytes`` is of those whose size is told; times are nanoseconds."""

    count: int = 0
    size_bytes: int = 0
    without_size: int = 0
    without_version: int = 0
    first_modified_ns: int | None = None
    last_modified_ns: int | None = None
    buckets: dict[str, int] = {}
    is_in_order: bool = True


def summarise(entries: Iterable[Entry]) -> Summary:
    """Add all entries up. Raises what reading them raises."""
    summary = Summary(buckets={})
    before = ("", "")
    for entry in entries:
        summary.count += 1
        summary.buckets[entry.bucket] = summary.buckets.get(entry.bucket, 0) + 1
        summary.without_version += entry.version_id is None
        if entry.size is None:
            summary.without_size += 1
        else:
            summary.size_bytes += entry.size
        moment = entry.last_modified_ns
        if moment is not None:
            first, last = summary.first_modified_ns, summary.last_modified_ns
            summary.first_modified_ns = moment if first is None else min(first, moment)
            summary.last_modified_ns = moment if last is None else max(last, moment)
        order = (entry.bucket, entry.key)
        if order < before:
            summary.is_in_order = False
        before = order
    return summary

"""JSON as ``aws s3api list-object-versions`` and its kin print it: current versions of one bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3mount.errors import ManifestError, UsageError
from s3mount.manifest.inventory import JSON_BYTES_MAX
from s3mount.manifest.model import Entry, plain_etag
from s3mount.manifest.times import parse_time


def parse(source: Path) -> list[Mapping[str, Any]] | None:
    """The versions or objects that the file lists; ``None`` when it is no such JSON.

    Raises ManifestError for JSON that lists neither.
    """
    if source.stat().st_size > JSON_BYTES_MAX:
        return None
    try:
        data = json.loads(source.read_bytes())
    except ValueError:
        return None
    if isinstance(data, dict):
        found = data.get("Versions", data.get("Contents"))
        if found is None and "DeleteMarkers" in data:
            found = []
    else:
        found = data
    if not isinstance(found, list) or not all(
        isinstance(each, dict) and isinstance(each.get("Key"), str) for each in found
    ):
        raise ManifestError(
            f"{source} is JSON, but neither an inventory's manifest.json nor what aws s3api list-object-versions prints"
        )
    return found


def read(source: Path, bucket: str | None) -> Iterator[Entry]:
    """The current versions of the list: those that are the latest, where it tells. Raises ManifestError."""
    if not bucket:
        raise ManifestError(f"{source} names keys but no bucket; say which one it is with --bucket")
    for row in parse(source) or ():
        if row.get("IsLatest") is False:
            continue
        try:
            moment = row.get("LastModified")
            yield Entry(
                bucket,
                row["Key"],
                row.get("VersionId") or None,
                None if row.get("Size") is None else int(row["Size"]),
                plain_etag(row.get("ETag") or ""),
                parse_time(moment, 0) if moment else None,
            )
        except (ValueError, TypeError, UsageError) as error:
            raise ManifestError(f"{source}: {row['Key']!r}: {error}") from error

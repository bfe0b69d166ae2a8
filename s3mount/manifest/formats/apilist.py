"""JSON as ``aws s3api list-object-versions`` and its kin print it: current versions of one bucket."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3mount.errors import ManifestError
from s3mount.manifest.formats.values import entry_of
from s3mount.manifest.model import Entry

_log = logging.getLogger(__name__)


def parse(data: bytes, source: Path) -> list[Mapping[str, Any]] | None:
    """The versions or objects that ``data``, which ``source`` holds, lists; ``None`` when it is no JSON.

    Raises ManifestError for JSON that lists neither.
    """
    told: Any = None
    try:
        told = json.loads(data)
    except ValueError as error:
        if ".json" in source.suffixes:
            raise ManifestError(f"{source} is no JSON: {error}") from error
        return None
    except RecursionError:
        _log.debug("%s is JSON of too many levels", source)
    if isinstance(told, dict):
        found = told.get("Versions", told.get("Contents"))
        if found is None and "DeleteMarkers" in told:
            found = []
    else:
        found = told
    if not isinstance(found, list) or not all(
        isinstance(each, dict) and isinstance(each.get("Key"), str) for each in found
    ):
        raise ManifestError(
            f"{source} is JSON, but neither an inventory's manifest.json nor what aws s3api list-object-versions prints"
        )
    return found


def read(data: bytes, source: Path, bucket: str | None) -> Iterator[Entry]:
    """The current versions of the list: those that are the latest, where it tells. Raises ManifestError."""
    if not bucket:
        raise ManifestError(f"{source} names keys but no bucket; say which one it is with --bucket")
    for row in parse(data, source) or ():
        if row.get("IsLatest") is False:
            continue
        try:
            names = ("VersionId", "Size", "ETag", "LastModified")
            yield entry_of(bucket, row["Key"], *map(row.get, names))
        except ValueError as error:
            raise ManifestError(f"{source}: {row['Key']!r}: {error}") from error

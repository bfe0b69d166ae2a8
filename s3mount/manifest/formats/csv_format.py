"""Our own format: CSV with a header, one line per key.

``bucket,key,version_id,size,etag,last_modified,mode,mtime``; what is not known is empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TextIO

import msgspec

from s3mount.errors import ManifestError
from s3mount.manifest import scope
from s3mount.manifest.formats.records import read_records, write_records
from s3mount.manifest.formats.values import entry_of
from s3mount.manifest.model import Entry
from s3mount.manifest.scope import Scope, Scopes
from s3mount.manifest.times import format_time

COLUMNS = ("bucket", "key", "version_id", "size", "etag", "last_modified", "mode", "mtime")

_SPELLINGS = {
    "versionid": "version_id",
    "version": "version_id",
    "path": "key",
    "e_tag": "etag",
    "last_modified_date": "last_modified",
    "lastmodifieddate": "last_modified",
    "lastmodified": "last_modified",
    "islatest": "is_latest",
    "isdeletemarker": "is_delete_marker",
}
_WORD = re.compile(r"[a-z][a-z0-9_]*")


def columns_of(record: Sequence[str]) -> list[str] | None:
    """The columns that a header names, or ``None`` when the record is none.

    A header names a key, and a version id or a bucket; columns that mean nothing to us may stand among them.
    """
    names = [field.strip().lower().replace(" ", "_").replace("-", "_") for field in record]
    names = [_SPELLINGS.get(name, name) for name in names]
    is_known = "key" in names and ("version_id" in names or "bucket" in names)
    is_header = is_known and all(map(_WORD.fullmatch, names))
    return names if is_header and len(set(names)) == len(names) else None


class PlainWriter:
    """Writes the header, then entries. With a ``scope`` there is a column for it. Raises OSError."""

    def __init__(self, file: TextIO, told: Scope | None = None) -> None:
        self._file = file
        self._scope = told
        self._held: list[Entry] = []
        write_records(file, [COLUMNS if told is None else (*COLUMNS, scope.COLUMN)])

    def write(self, entries: list[Entry]) -> None:
        """Write entries; the last one waits, as what stands beside it is known at the end."""
        if self._scope is None:
            write_records(self._file, map(_record, entries))
            return
        entries = self._held + entries
        self._held = entries[-1:]
        write_records(self._file, ((*_record(entry), "") for entry in entries[:-1]))

    def finish(self, count: int) -> None:
        """Write what waits. ``count``: entries there were."""
        told = self._scope and str(msgspec.structs.replace(self._scope, count=count))
        write_records(self._file, ((*_record(entry), told or "") for entry in self._held))


def read_scopes(file: TextIO, name: str) -> Scopes:
    """What the file says that it is a list of. Raises ManifestError."""
    records = read_records(file, name)
    _, header = next(records, (1, []))
    columns = columns_of(header) or []
    place = columns.index(scope.COLUMN) if scope.COLUMN in columns else len(columns)
    count = 0
    found = []
    for _, record in records:
        count += 1
        if len(record) > place and record[place]:
            found.append(scope.parse(record[place]))
    return Scopes([each for each in found if each is not None], count)


def _record(entry: Entry) -> tuple[str, ...]:
    return (
        entry.bucket,
        entry.key,
        entry.version_id or "",
        "" if entry.size is None else str(entry.size),
        entry.etag,
        "" if entry.last_modified_ns is None else format_time(entry.last_modified_ns),
        "" if entry.mode is None else f"{entry.mode:o}",
        "" if entry.mtime_ns is None else format_time(entry.mtime_ns),
    )


def read(file: TextIO, name: str, bucket: str | None) -> Iterator[Entry]:
    """The entries below the header. ``bucket`` is for lines that name none. Raises ManifestError."""
    first = file.readline()
    # Blanks behind the commas of a header are behind those below as well.
    blanks = re.search(r",[ \t]", first) is not None
    records = read_records(_again(first, file), name, skips_blanks=blanks)
    line, header = next(records, (1, []))
    columns = columns_of(header)
    if columns is None:
        raise ManifestError(f"{name}: line {line}: this header names no key and version_id")
    places = [columns.index(column) if column in columns else -1 for column in COLUMNS]
    width = len(columns)
    is_foreign = header[: len(COLUMNS)] != list(COLUMNS)
    told = {
        name: columns.index(name) for name in ("is_latest", "is_delete_marker") if name in columns
    }
    for line, record in records:
        if len(record) != width:
            raise ManifestError(f"{name}: line {line} has {len(record)} fields, not {width}")
        words = {name: record[place].strip().lower() for name, place in told.items()}
        if words.get("is_latest") == "false" or words.get("is_delete_marker") == "true":
            continue
        try:
            fields = ["" if place < 0 else record[place] for place in places]
            yield _entry(fields, bucket, is_foreign=is_foreign)
        except ValueError as error:
            raise ManifestError(f"{name}: line {line}: {error}") from error


def _again(first: str, rest: TextIO) -> Iterator[str]:
    yield first
    yield from rest


def _entry(fields: Sequence[str], bucket: str | None, *, is_foreign: bool) -> Entry:
    """Raises ValueError, which says what is wrong."""
    bucket_named, _, *values = map(str.strip, fields)
    return entry_of(bucket_named or bucket, fields[1], *values, is_foreign=is_foreign)

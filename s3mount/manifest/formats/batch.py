"""The CSV of S3 Batch Operations: ``Bucket,Key,VersionId`` or ``Bucket,Key`` without a header, keys URL-encoded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO
from urllib.parse import quote, unquote_to_bytes

from s3mount.errors import ManifestError
from s3mount.manifest.formats.records import read_records, write_records
from s3mount.manifest.model import Entry

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_VERSION = re.compile(r"null|[A-Za-z0-9._-]{20,}")
_ALL_QUOTED = re.compile(r'"[^"]*"(,"[^"]*")*')
_NO_VERSION = re.compile(r"\d{1,13}|true|false|\d{4}-\d\d-\d\dT.*", re.IGNORECASE)


def decoded_key(text: str) -> str:
    """A URL-encoded key as it is meant; ``+`` is a blank there. Raises ValueError."""
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise ValueError(f"the key {text!r} is not UTF-8 in URL encoding") from None


def may_be(records: Sequence[Sequence[str]], bucket: str | None) -> bool:
    """May these first records be a batch's? ``bucket`` is what the manifest is said to be about.

    Two fields are also what the old format has, key and version: they are a batch's when all begin with the
    bucket, or without one, when several keys follow the same bucket's name.
    """
    record = records[0]
    if not _BUCKET.fullmatch(record[0]) or (bucket is not None and record[0] != bucket):
        return False
    if len(record) == 3:
        return True
    if not all(len(each) == 2 and each[0] == record[0] and each[1] for each in records):
        return False
    if len({each[1] for each in records}) > 1:
        return True
    return bucket is not None and not _VERSION.fullmatch(record[1])


def is_inventory_data(record: Sequence[str], line: str) -> bool:
    """Is this first record, which is ``line``, from an S3 Inventory's data file, whose columns nothing tells?"""
    if len(record) < 3 or not _ALL_QUOTED.fullmatch(line.rstrip("\r\n")):
        return False
    return len(record) > 3 or bool(_NO_VERSION.fullmatch(record[2]))


def write(file: TextIO, entries: Iterable[Entry]) -> None:
    """Write entries; what is not ASCII, ``+`` and blanks are encoded. Raises OSError."""
    write_records(
        file,
        ((entry.bucket, quote(entry.key, safe="/"), entry.version_id or "") for entry in entries),
    )


def read(file: TextIO, name: str) -> Iterator[Entry]:
    """The entries. Raises ManifestError."""
    fields = 0
    for line, record in read_records(file, name):
        fields = fields or len(record)
        if len(record) != fields or not record[1]:
            columns = "Bucket,Key,VersionId" if fields == 3 else "Bucket,Key"
            raise ManifestError(f"{name}: line {line} is not {columns!r}")
        bucket, key, version_id = (*record, "")[:3]
        try:
            yield Entry(bucket, decoded_key(key), version_id or None)
        except ValueError as error:
            raise ManifestError(f"{name}: line {line}: {error}") from error

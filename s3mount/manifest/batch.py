"""The CSV of S3 Batch Operations: ``Bucket,Key,VersionId`` without a header, keys URL-encoded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO
from urllib.parse import quote, unquote_to_bytes

from s3mount.errors import ManifestError
from s3mount.manifest.model import Entry
from s3mount.manifest.records import read_records, write_records

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def decoded_key(text: str) -> str:
    """A URL-encoded key as it is meant; ``+`` is a blank there. Raises ValueError."""
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise ValueError(f"the key {text!r} is not UTF-8 in URL encoding") from None


def may_be(record: Sequence[str], bucket: str | None) -> bool:
    """May this first record be one of a batch's? ``bucket`` is what the manifest is said to be about."""
    if len(record) != 3 or not _BUCKET.fullmatch(record[0]):
        return False
    return bucket is None or record[0] == bucket


def write(file: TextIO, entries: Iterable[Entry]) -> None:
    """Write entries; what is not ASCII, ``+`` and blanks are encoded. Raises OSError."""
    write_records(
        file,
        ((entry.bucket, quote(entry.key, safe="/"), entry.version_id or "") for entry in entries),
    )


def read(file: TextIO, name: str) -> Iterator[Entry]:
    """The entries. Raises ManifestError."""
    for line, record in read_records(file, name):
        if len(record) != 3 or not record[1]:
            raise ManifestError(f"{name}: line {line} is not 'Bucket,Key,VersionId'")
        bucket, key, version_id = record
        try:
            yield Entry(bucket, decoded_key(key), version_id or None)
        except ValueError as error:
            raise ManifestError(f"{name}: line {line}: {error}") from error

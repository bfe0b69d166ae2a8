"""Manifests in any of the formats that are known: which one it is, and what it says.

All of this blocks: call it in a thread. Nothing is held in memory but the line that is read.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import itertools
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, TextIO, TypeAlias, cast

from s3mount.errors import ManifestError
from s3mount.manifest.formats import apilist, batch, csv_format, inventory, legacy_csv, parquet
from s3mount.manifest.formats.records import read_records
from s3mount.manifest.model import Entry
from s3mount.manifest.scope import Scopes

Format: TypeAlias = Literal["csv", "legacy", "batch", "parquet", "orc", "inventory", "json"]

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_ORC = b"ORC"
_OTHERS = {
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it",
    b"\xfd7zX": "packed with xz: unpack it",
    b"BZh9": "packed with bzip2: unpack it",
    b"PK\x03\x04": "packed with zip, as spreadsheets are: unpack it, or save it as CSV",
}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_RECORDS_LOOKED_AT = 100
"""By so many records two columns are told from each other."""


def format_of(source: Path, *, bucket: str | None = None) -> Format:
    """Which format ``source`` has. Raises ManifestError when it cannot be read or is empty.

    ``bucket`` is what it is said to be about: it tells a batch's three fields from a key with a comma.
    """
    head = _head(source, 4)
    if head == _PARQUET:
        return "parquet"
    if head[:3] == _ORC:
        return "orc"
    if head in _OTHERS:
        raise ManifestError(f"{source} is {_OTHERS[head]}")
    if head[:2] == _GZIP:
        with _unpacked(source) as packed:
            head = packed.read(4)
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        data = _json_bytes(source)
        if data and inventory.parse(data) is not None:
            return "inventory"
        if data and apilist.parse(data, source) is not None:
            return "json"
    records = _first_records(source)
    if records is None:
        return "legacy"
    _must_have_commas(source, records[0])
    columns = csv_format.columns_of(records[0])
    if columns is not None and (len(columns) > 2 or "bucket" in columns):
        return "csv"
    with _text(source) as file:
        if batch.is_inventory_data(records[0], file.readline()):
            raise ManifestError(
                f"{source} looks like a data file of an S3 Inventory, which does not tell what its columns are: give "
                "the inventory's manifest.json"
            )
    return "batch" if batch.may_be(records, bucket) else "legacy"


def _must_have_commas(source: Path, record: Sequence[str]) -> None:
    """Raises ManifestError for a header whose columns something else parts, as spreadsheets do."""
    for mark, name in (("\t", "tabs"), (";", "semicolons")):
        if len(record) == 1 and csv_format.columns_of(record[0].split(mark)) is not None:
            raise ManifestError(f"{source} parts its columns by {name}: save it with commas")


def _first_records(source: Path) -> list[list[str]] | None:
    """Some records of a CSV file; ``None`` where the first is none, as may be in the old format."""
    found: list[list[str]] = []
    with _text(source) as file:
        try:
            records = read_records(file, str(source))
            found.extend(record for _, record in itertools.islice(records, _RECORDS_LOOKED_AT))
        except ManifestError as error:
            if not isinstance(error.__cause__, csv.Error):
                raise
            if not found:
                return None
    if not found:
        raise ManifestError(f"{source} is empty: not even a header")
    return found


def read_entries(source: Path, *, bucket: str | None = None) -> Iterator[Entry]:
    """What ``source`` says, in its order, which may be any.

    ``bucket`` is for manifests that name none. Raises ManifestError, with the line where there is one,
    and UsageError where a library is missing.
    """
    kind = format_of(source, bucket=bucket)
    if kind == "parquet" and not parquet.is_inventory(source, str(source)):
        yield from parquet.read(source, str(source), bucket)
    elif kind in ("parquet", "orc"):
        yield from inventory.read_data(source, bucket)
    elif kind == "json":
        yield from apilist.read(_json_bytes(source), source, bucket)
    elif kind == "inventory":
        found = inventory.parse(_json_bytes(source))
        assert found is not None
        yield from inventory.read(source, found)
    else:
        with _text(source) as file:
            if kind == "csv":
                yield from csv_format.read(file, str(source), bucket)
            elif kind == "batch":
                yield from batch.read(file, str(source))
            else:
                yield from legacy_csv.read(file, str(source), bucket)


def scopes_of(source: Path, *, bucket: str | None = None) -> Scopes:
    """What ``source`` says that it is a list of; nothing in formats that cannot. Raises ManifestError."""
    kind = format_of(source, bucket=bucket)
    if kind == "parquet" and not parquet.is_inventory(source, str(source)):
        return parquet.read_scopes(source, str(source))
    if kind == "csv":
        with _text(source) as file:
            return csv_format.read_scopes(file, str(source))
    return Scopes((), 0)


def in_order(source: Path, *, bucket: str | None = None) -> bool:
    """Are the entries sorted by bucket, then key in the order of UTF-8? Reads all of them."""
    entries = read_entries(source, bucket=bucket)
    return all(
        (before.bucket, before.key) <= (behind.bucket, behind.key)
        for before, behind in itertools.pairwise(entries)
    )


def digest_of(source: Path) -> str:
    """SHA-256 of the file's bytes, in hex: its identity. Raises ManifestError."""
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ManifestError(f"{source} cannot be read: {error.strerror}") from error


def _head(source: Path, length: int) -> bytes:
    try:
        with open(source, "rb") as file:
            return file.read(length)
    except OSError as error:
        raise ManifestError(f"{source} cannot be read: {error.strerror}") from error


def _json_bytes(source: Path) -> bytes:
    """The whole file, unpacked; nothing of one that is too long to be JSON with a manifest. Raises ManifestError."""
    with _unpacked(source) as file:
        data = file.read(inventory.JSON_BYTES_MAX + 1)
    return b"" if len(data) > inventory.JSON_BYTES_MAX else data


@contextmanager
def _unpacked(source: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it is packed. Raises ManifestError where they cannot be read."""
    opened = gzip.open if _head(source, 2) == _GZIP else open
    try:
        with opened(source, "rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(f"{source} cannot be read: {error}") from error


@contextmanager
def _text(source: Path) -> Iterator[TextIO]:
    """The file as text, unpacked where it is packed; line ends stay as they are."""
    head = _head(source, 2)
    if head in _UTF_16:
        raise ManifestError(f"{source} is not UTF-8 but UTF-16: save it anew")
    opened = gzip.open if head == _GZIP else open
    with opened(source, "rt", encoding="utf-8-sig", newline="") as text:
        yield cast(TextIO, text)

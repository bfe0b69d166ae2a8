"""S3 Inventory: a ``manifest.json`` that names data files, gzip CSV, Parquet or ORC, as its schema says."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from s3mount.errors import ManifestError
from s3mount.manifest.formats.batch import decoded_key
from s3mount.manifest.formats.parquet import rows_of, rows_of_orc
from s3mount.manifest.formats.records import read_records
from s3mount.manifest.formats.values import entry_of
from s3mount.manifest.model import Entry

JSON_BYTES_MAX = 64 << 20
"""A manifest.json lists its data files, some 100,000 at the most."""

_WANTED = ("bucket", "key", "version_id", "is_latest", "is_delete_marker", "size")
_TIMES_AND_TAGS = ("last_modified_date", "e_tag")
# The names in a CSV's fileSchema, folded; Parquet has the others already.
_FOLDED = {
    "bucket": "bucket",
    "key": "key",
    "versionid": "version_id",
    "islatest": "is_latest",
    "isdeletemarker": "is_delete_marker",
    "size": "size",
    "lastmodifieddate": "last_modified_date",
    "etag": "e_tag",
}


class DataFile(msgspec.Struct, frozen=True):
    """One of the inventory's data files; ``key`` is the whole one in the destination bucket."""

    key: str
    size: int = 0
    md5: str = msgspec.field(name="MD5checksum", default="")


class Inventory(msgspec.Struct, frozen=True, rename="camel"):
    """A ``manifest.json``."""

    source_bucket: str
    file_format: str
    file_schema: str
    files: tuple[DataFile, ...]


def parse(data: bytes) -> Inventory | None:
    """What a ``manifest.json`` says, or ``None`` when it is something else."""
    try:
        return msgspec.json.decode(data, type=Inventory)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def read(path: Path, inventory: Inventory) -> Iterator[Entry]:
    """The current versions that the inventory lists; its data files lie beside or near ``path``.

    Of a list with all versions those count that are the latest and no delete markers. Each data
    file's MD5 is checked before anything is taken from it. Raises ManifestError, UsageError.
    """
    kind = inventory.file_format.upper()
    if kind not in ("CSV", "PARQUET", "ORC"):
        raise ManifestError(
            f"{path}: an inventory in {inventory.file_format} cannot be read; make it CSV, Parquet or ORC"
        )
    _check_own_sum(path)
    for file in inventory.files:
        place = place_of(path, file)
        _check_sum(place, file)
        rows = _csv_rows(place, inventory) if kind == "CSV" else _arrow_rows(place, kind)
        for row in rows:
            if _is_current(row):
                yield _entry(row, inventory.source_bucket, place)


def read_data(place: Path, bucket: str | None) -> Iterator[Entry]:
    """As ``read``, of one data file alone, in Parquet or ORC; ``bucket`` is for one that names none."""
    with open(place, "rb") as file:
        kind = "ORC" if file.read(3) == b"ORC" else "PARQUET"
    for row in _arrow_rows(place, kind):
        if _is_current(row):
            yield _entry(row, bucket or "", place)


def local_name(file: DataFile) -> str:
    """What a data file is called in a folder that holds nothing else."""
    return file.key.rsplit("/", 1)[-1]


def place_of(path: Path, file: DataFile) -> Path:
    """Where a data file lies: as S3 has it, in ``data`` beside the dated folder, or in the same folder.

    Raises ManifestError.
    """
    if ".." in file.key.split("/"):
        raise ManifestError(f"{path}: its data file {file.key} is no name of one")
    name = local_name(file)
    folder = path.absolute().parent
    above = [parent / file.key for parent in folder.parents]
    places = [folder / name, folder / "data" / name, folder.parent / "data" / name, *above]
    unpacked = [place.with_suffix("") for place in places if place.suffix == ".gz"]
    for place in (*places, *unpacked):
        if place.is_file():
            return place
    raise ManifestError(
        f"{path}: its data file {file.key} is neither beside it nor in 'data' there or one folder up"
    )


def _check_own_sum(path: Path) -> None:
    """``manifest.checksum`` beside it holds its MD5, where it was copied along."""
    beside = path.with_name("manifest.checksum")
    if path.name != "manifest.json" or not beside.is_file():
        return
    wanted = beside.read_text(encoding="ascii", errors="replace").strip().lower()
    if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != wanted:
        raise ManifestError(f"{path} is damaged: its MD5 is not the one in {beside.name}")


def _check_sum(place: Path, file: DataFile) -> None:
    if not file.md5 or (file.key.endswith(".gz") and not _is_packed(place)):
        # Somebody unpacked it: the sum is that of the packed bytes.
        return
    try:
        with open(place, "rb") as data:
            found = hashlib.file_digest(data, lambda: hashlib.md5(usedforsecurity=False))
    except OSError as error:
        raise ManifestError(f"{place} cannot be read: {error.strerror}") from error
    if found.hexdigest() != file.md5.lower():
        raise ManifestError(f"{place} is damaged: its MD5 is not the one that the inventory names")


def _is_packed(place: Path) -> bool:
    try:
        with open(place, "rb") as data:
            return data.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise ManifestError(f"{place} cannot be read: {error.strerror}") from error


def _csv_rows(place: Path, inventory: Inventory) -> Iterator[dict[str, Any]]:
    columns = [
        _FOLDED.get(name.strip().lower().replace("_", ""), "")
        for name in inventory.file_schema.split(",")
    ]
    if "key" not in columns:
        raise ManifestError(f"{place}: the inventory's fileSchema names no Key")
    try:
        opened = gzip.open if _is_packed(place) else open
        with opened(place, "rt", encoding="utf-8", newline="") as text:
            for line, record in read_records(text, str(place)):
                if len(record) != len(columns):
                    raise ManifestError(
                        f"{place}: line {line} has {len(record)} fields, not {len(columns)}"
                    )
                row: dict[str, Any] = dict(zip(columns, record, strict=True))
                yield _with_values(row, place, line)
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(f"{place} cannot be read: {error}") from error


def _with_values(row: dict[str, Any], place: Path, line: int) -> dict[str, Any]:
    """A row of texts with its key and truths."""
    try:
        row["key"] = decoded_key(row["key"])
        for name in ("is_latest", "is_delete_marker"):
            if name in row:
                row[name] = row[name].strip().lower() == "true"
    except ValueError as error:
        raise ManifestError(f"{place}: line {line}: {error}") from error
    return row


def _arrow_rows(place: Path, kind: str) -> Iterator[Mapping[str, Any]]:
    rows = rows_of_orc if kind == "ORC" else rows_of
    yield from rows(place, str(place), [*_WANTED, *_TIMES_AND_TAGS])


def _is_current(row: Mapping[str, Any]) -> bool:
    return row.get("is_latest", True) is not False and not row.get("is_delete_marker")


def _entry(row: Mapping[str, Any], bucket: str, place: Path) -> Entry:
    # A list of versions has no id for what was written before the bucket kept them.
    version_id = (row["version_id"] or "null") if "version_id" in row else None
    where, key, modified = (
        row.get("bucket") or bucket,
        row.get("key"),
        row.get("last_modified_date"),
    )
    try:
        return entry_of(where, key, version_id, row.get("size"), row.get("e_tag"), modified or None)
    except ValueError as error:
        raise ManifestError(f"{place}: {key!r}: {error}") from error

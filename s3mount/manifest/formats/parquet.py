"""Parquet and ORC, by way of pyarrow where that is installed (``pip install 's3mount[parquet]'``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from s3mount.errors import ManifestError, UsageError
from s3mount.manifest import scope
from s3mount.manifest.formats.values import entry_of
from s3mount.manifest.model import Entry
from s3mount.manifest.scope import Scope, Scopes

ROWS_AT_ONCE = 64 * 1024
"""A row group; what is held in memory."""

_OF_INVENTORIES = {"is_latest", "is_delete_marker", "e_tag", "last_modified_date"}
_SNAKE = ("bucket", "key", "version_id", "size", "etag", "last_modified", "mode", "mtime")


def _arrow() -> tuple[Any, Any]:
    """The library and its Parquet part. Raises UsageError with what to do when it is not there."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "Parquet needs pyarrow, which is not installed: pip install 's3mount[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


class ParquetWriter:
    """Writes entries to ``file``, a row group at a time. Raises UsageError where pyarrow is missing.

    ``told``: what they are a list of, kept in the file's metadata.
    """

    def __init__(self, file: BinaryIO, told: Scope | None = None) -> None:
        arrow, parquet = _arrow()
        self._arrow = arrow
        self._scope = told
        self._count = 0
        moment = arrow.timestamp("ns", tz="UTC")
        self._schema = arrow.schema(
            [
                arrow.field("bucket", arrow.string(), nullable=False),
                arrow.field("key", arrow.string(), nullable=False),
                ("version_id", arrow.string()),
                ("size", arrow.int64()),
                ("etag", arrow.string()),
                ("last_modified", moment),
                ("mode", arrow.int32()),
                ("mtime", moment),
            ]
        )
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[Entry] = []

    def write(self, entries: Iterable[Entry]) -> None:
        """Take entries. Raises OSError."""
        self._rows.extend(entries)
        while len(self._rows) >= ROWS_AT_ONCE:
            self._flush(self._rows[:ROWS_AT_ONCE])
            del self._rows[:ROWS_AT_ONCE]

    def close(self) -> None:
        """Write the rest and the file's end; once. Raises OSError."""
        if self._rows:
            self._flush(self._rows)
        if self._scope is not None:
            told = str(msgspec.structs.replace(self._scope, count=self._count))
            self._writer.add_key_value_metadata({scope.METADATA: told.encode()})
        self._writer.close()

    def _flush(self, rows: Sequence[Entry]) -> None:
        self._count += len(rows)
        columns: list[list[Any]] = [
            [row.bucket for row in rows],
            [row.key for row in rows],
            [row.version_id for row in rows],
            [row.size for row in rows],
            [row.etag or None for row in rows],
            [row.last_modified_ns for row in rows],
            [row.mode for row in rows],
            [row.mtime_ns for row in rows],
        ]
        arrays = [
            self._arrow.array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))


def rows_of(path: Path, name: str, wanted: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Rows with those of the ``wanted`` columns that the file has; times are nanoseconds.

    Raises ManifestError, and UsageError where pyarrow is missing.
    """
    arrow, parquet = _arrow()
    try:
        with parquet.ParquetFile(path) as file:
            columns = [column for column in wanted if column in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                yield from _plain_rows(arrow, batch)
    except (OSError, arrow.ArrowException) as error:
        raise _unreadable(error, name, "Parquet") from error


def read_scopes(path: Path, name: str) -> Scopes:
    """What the file says that it is a list of. Raises ManifestError, and UsageError without pyarrow."""
    arrow, parquet = _arrow()
    try:
        told = parquet.read_metadata(path)
    except (OSError, arrow.ArrowException) as error:
        raise _unreadable(error, name, "Parquet") from error
    found = scope.parse((told.metadata or {}).get(scope.METADATA, b"").decode("utf-8", "replace"))
    return Scopes([] if found is None else [found], told.num_rows)


def is_inventory(path: Path, name: str) -> bool:
    """Is a Parquet file a data file of an S3 Inventory, by its columns? Raises as ``rows_of``."""
    arrow, parquet = _arrow()
    try:
        names = set(parquet.read_schema(path).names)
    except (OSError, arrow.ArrowException) as error:
        raise _unreadable(error, name, "Parquet") from error
    return bool(names & _OF_INVENTORIES)


def rows_of_orc(path: Path, name: str, wanted: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """As ``rows_of``, of an ORC file, a stripe at a time."""
    arrow, _ = _arrow()
    try:
        from pyarrow import orc

        file = orc.ORCFile(path)
        columns = [column for column in wanted if column in file.schema.names]
        for stripe in range(file.nstripes):
            yield from _plain_rows(arrow, file.read_stripe(stripe, columns))
    except (OSError, ImportError, arrow.ArrowException) as error:
        raise _unreadable(error, name, "ORC") from error


def _unreadable(error: Exception, name: str, kind: str) -> ManifestError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ManifestError(f"{name} cannot be read as {kind}: {first}")


def _plain_rows(arrow: Any, batch: Any) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    columns = []
    for column in batch.columns:
        if arrow.types.is_timestamp(column.type):
            moment = arrow.timestamp("ns", tz=column.type.tz)
            column = column.cast(moment).cast(arrow.int64())
        elif _is_binary(arrow, column.type):
            # Text that its writer did not call text.
            column = column.cast(arrow.string())
        columns.append(column.to_pylist())
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _is_binary(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind))


def read(path: Path, name: str, bucket: str | None) -> Iterator[Entry]:
    """The entries of a file that s3mount or somebody else wrote. Raises ManifestError, UsageError."""
    for row_number, row in enumerate(rows_of(path, name, _SNAKE), 1):
        values = [row.get(column) for column in _SNAKE[2:]]
        try:
            yield entry_of(row.get("bucket") or bucket, row.get("key"), *values)
        except ValueError as error:
            raise ManifestError(f"{name}: row {row_number}: {error}") from error

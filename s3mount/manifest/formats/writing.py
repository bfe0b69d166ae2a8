"""Writing a manifest in one of the formats, to a file that appears whole or to a stream."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, TypeAlias, get_args

from s3mount.errors import ManifestError
from s3mount.manifest.formats import batch, csv_format, legacy_csv
from s3mount.manifest.formats.parquet import ParquetWriter
from s3mount.manifest.model import Entry
from s3mount.manifest.scope import Scope

OutputFormat: TypeAlias = Literal["csv", "legacy", "batch", "parquet"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)


class ManifestWriter:
    """Takes entries in their final order and writes them to ``file``.

    Equal entries give equal bytes (in Parquet, by the same release of pyarrow). Raises UsageError when
    a library is missing. ``scope`` is what the entries are a list of, for the formats that can hold it.
    """

    def __init__(
        self, file: BinaryIO, output_format: OutputFormat = "csv", scope: Scope | None = None
    ) -> None:
        self.count = 0
        self.size_bytes = 0
        self._format = output_format
        self._bucket: str | None = None
        self._parquet = ParquetWriter(file, scope) if output_format == "parquet" else None
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
        self._plain = csv_format.PlainWriter(self._text, scope) if output_format == "csv" else None

    def write(self, entries: list[Entry]) -> None:
        """Write entries. Raises ManifestError where the format cannot hold them, OSError."""
        self.count += len(entries)
        self.size_bytes += sum(entry.size or 0 for entry in entries)
        if self._parquet is not None:
            self._parquet.write(entries)
        elif self._plain is not None:
            self._plain.write(entries)
        elif self._format == "batch":
            batch.write(self._text, entries)
        else:
            legacy_csv.write(self._text, self._of_one_bucket(entries))

    def finish(self) -> None:
        """Write what is buffered, and the format's end; the file stays open. Once. Raises OSError."""
        if self._parquet is not None:
            self._parquet.close()
        if self._plain is not None:
            self._plain.finish(self.count)
        self._text.flush()
        self._text.detach()

    def _of_one_bucket(self, entries: Iterable[Entry]) -> Iterable[Entry]:
        for entry in entries:
            if self._bucket is None:
                self._bucket = entry.bucket
            if entry.bucket != self._bucket:
                raise ManifestError("the two-column format cannot hold keys of several buckets")
            yield entry


class WholeFile:
    """A file that appears at ``path`` only when all of it is written: ``with WholeFile(path) as file``.

    Raises ManifestError when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fresh = path.with_name(f".{path.name}.{os.getpid()}.new")

    def __enter__(self) -> BinaryIO:
        try:
            self._file = open(self._fresh, "wb")
        except OSError as error:
            raise ManifestError(f"{self._path} cannot be written: {error.strerror}") from error
        return self._file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                os.replace(self._fresh, self._path)
        except OSError as failure:
            raise ManifestError(f"{self._path} cannot be written: {failure.strerror}") from failure
        finally:
            self._file.close()
            self._fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ManifestError(f"{self._path} cannot be written: {error.strerror}") from error

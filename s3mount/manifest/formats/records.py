"""CSV records with the line on which each begins: RFC 4180, with any character in quotes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from typing import TextIO

from s3mount.errors import ManifestError

FIELD_CHARS_MAX = 1 << 20
"""More than any key, version id or list of checksums; a quote that never ends is noticed there."""


_MUST_BE_QUOTED = re.compile(r'[",\r\n]|^\s|\s$|^\ufeff')


def read_records(
    file: Iterable[str], name: str, *, skips_blanks: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Each record with its first line's number, from 1; empty lines are left out.

    ``skips_blanks``: those behind a comma are no part of the field. ``file`` must leave line ends alone
    (``newline=""``). Raises ManifestError.
    """
    csv.field_size_limit(FIELD_CHARS_MAX)
    reader = csv.reader(_lines(file, name), strict=True, skipinitialspace=skips_blanks)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ManifestError(f"{name}: line {line}: this is no CSV: {error}") from error
        if record:
            yield line, record


def _lines(file: Iterable[str], name: str) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise ManifestError(f"{name} is not UTF-8 text: {error}") from error
    except (OSError, EOFError) as error:
        raise ManifestError(f"{name} cannot be read: {error}") from error


def write_records(file: TextIO, records: Iterable[Iterable[str]]) -> None:
    """Write records, quoted where they must be, with a newline behind each. Raises OSError.

    Not by ``csv.writer``, whose quoting differs between releases of Python.
    """
    quoted = _MUST_BE_QUOTED.search
    file.writelines(
        ",".join(
            ['"' + field.replace('"', '""') + '"' if quoted(field) else field for field in record]
        )
        + "\n"
        for record in records
    )

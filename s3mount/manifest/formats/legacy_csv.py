"""The old two-column format: ``key,version``, also written ``path:version``, without a header.

Fields may be quoted by ``"`` or, as the old tool wrote them, by a backslash; a quote inside is doubled.
What is not quoted is split at the last comma or colon, since a version id has neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TextIO

from s3mount.errors import ManifestError
from s3mount.manifest.model import Entry

LINES_MAX = 1100
"""A key has at most 1,024 bytes, so a quoted one has no more lines than that."""

_MUST_BE_QUOTED = re.compile(r'[,\\"\r\n:]|^\s|\s$|^\ufeff')
_QUOTED = {
    quote: re.compile(
        f"{re.escape(quote)}((?:[^{re.escape(quote)}]|{re.escape(quote) * 2})*)"
        f"{re.escape(quote)}([,:]|(?=\r?\n?$))"
    )
    for quote in ('"', "\\")
}
_HEADERS = frozenset(
    first + separator + second
    for first in ("key", "path")
    for separator in ",:"
    for second in ("version", "versionid")
)
_NOT_IN_HEADERS = re.compile(r'[\s"\\_-]')


def write(file: TextIO, entries: Iterable[Entry]) -> None:
    """Write entries as the old tool reads them. Raises OSError."""
    file.writelines(f"{_quoted(entry.key)},{entry.version_id or ''}\r\n" for entry in entries)


def _quoted(text: str) -> str:
    if not _MUST_BE_QUOTED.search(text):
        return text
    return "\\" + text.replace("\\", "\\\\") + "\\"


def read(file: TextIO, name: str, bucket: str | None) -> Iterator[Entry]:
    """The entries. Raises ManifestError; also without a ``bucket``, which the format does not name."""
    if not bucket:
        raise ManifestError(f"{name} names keys but no bucket; say which one it is with --bucket")
    for line, record in _records(file, name):
        if line == 1 and _NOT_IN_HEADERS.sub("", record.lower()) in _HEADERS:
            continue
        key, version_id = _split(record)
        if not key:
            raise ManifestError(f"{name}: line {line}: no 'key,version' and no 'path:version'")
        yield Entry(bucket, key, version_id or None)


def _records(file: TextIO, name: str) -> Iterator[tuple[int, str]]:
    """Each record with its first line's number; a quoted field may go over several lines."""
    number = 0
    pending: list[str] = []
    while True:
        record = pending.pop(0) if pending else _next_line(file, name)
        if not record:
            return
        number += 1
        if not record.strip("\r\n"):
            continue
        start = number
        quote = record[0]
        if quote in _QUOTED and _QUOTED[quote].match(record) is None:
            more, rest = _until_closed(file, name, record, quote, pending)
            number += more
            record, pending = rest
        yield start, record


def _until_closed(
    file: TextIO, name: str, record: str, quote: str, pending: list[str]
) -> tuple[int, tuple[str, list[str]]]:
    """How many more lines belong to the record, the whole record, and what was read ahead.

    Where no quote ends the field, the one at its start is a character of the key.
    """
    lines: list[str] = []
    ahead = list(pending)
    whole = record
    while len(lines) < LINES_MAX:
        line = ahead.pop(0) if ahead else _next_line(file, name)
        if not line:
            break
        lines.append(line)
        whole += line
        if quote in line and _QUOTED[quote].match(whole):
            return len(lines), (whole, ahead)
    return 0, (record, lines + ahead)


def _next_line(file: TextIO, name: str) -> str:
    try:
        return file.readline()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{name} is not UTF-8 text: {error}") from error
    except (OSError, EOFError) as error:
        raise ManifestError(f"{name} cannot be read: {error}") from error


def _split(record: str) -> tuple[str, str]:
    """Key and version id of one record; the key is empty where there are no two fields."""
    quote = record[0]
    found = _QUOTED[quote].match(record) if quote in _QUOTED else None
    if found is None:
        return _split_plain(record.rstrip("\r\n"))
    text = found[1].replace(quote * 2, quote)
    if found[2]:
        return text, _unquoted(record[found.end() :].rstrip("\r\n"))
    return _split_plain(text)  # "path:version" as a whole


def _split_plain(text: str) -> tuple[str, str]:
    at = max(text.rfind(","), text.rfind(":"))
    if text.endswith(('"', "\\")):
        # The version is quoted on its own; a separator inside of it would be part of the key.
        quoted = text.rfind(text[-1], 0, -1)
        if quoted > 0 and text[quoted - 1] in ",:":
            at = quoted - 1
    return (text[:at], _unquoted(text[at + 1 :])) if at > 0 else ("", "")


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in _QUOTED:
        return text[1:-1]
    return text

"""Values of manifests, which anybody may have written: taken where they can be meant, else named."""

from __future__ import annotations

import math

from s3mount.errors import UsageError
from s3mount.manifest.model import Entry, plain_etag
from s3mount.manifest.times import parse_time

INTEGER_MAX = (1 << 63) - 1
"""What catalogs and Parquet can hold."""
_DIGITS_MAX = 19
_MODE_DIGITS_MAX = 7
_MODE_MAX = 0o177777


def entry_of(
    bucket: object,
    key: object,
    version_id: object = None,
    size: object = None,
    etag: object = None,
    last_modified: object = None,
    mode: object = None,
    mtime: object = None,
    *,
    is_foreign: bool = False,
) -> Entry:
    """An entry of such values as text formats, JSON and Parquet have. Raises ValueError, which says what is wrong.

    ``is_foreign``: others wrote it, whose ETags may be in capitals.
    """
    where, name = _text(bucket, "bucket"), _text(key, "key")
    if not where:
        raise ValueError("no bucket is named; say which one it is with --bucket")
    if not name:
        raise ValueError("the key is empty")
    return Entry(
        where,
        name,
        _text(version_id, "version_id") or None,
        _whole(size),
        plain_etag(_text(etag, "etag"), is_foreign=is_foreign),
        _moment(last_modified, "last_modified"),
        _mode(mode),
        _moment(mtime, "mtime"),
    )


def _text(value: object, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no {name}: it is no text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{value!r} is no {name}: it cannot be written in UTF-8") from None
    return value


def _whole(value: object) -> int | None:
    found = _number(value, 10, _DIGITS_MAX)
    if found is not None and not 0 <= found <= INTEGER_MAX:
        raise ValueError(f"{_short(value)} is no size")
    return found


def _mode(value: object) -> int | None:
    """Octal digits, or the number itself."""
    octal = value.removeprefix("0o") if isinstance(value, str) else value
    found = _number(octal, 8, _MODE_DIGITS_MAX)
    if found is not None and not 0 <= found <= _MODE_MAX:
        raise ValueError(f"{_short(value)} is no mode: octal, such as 100644")
    return found


def _number(value: object, base: int, digits_max: int) -> int | None:
    """``None`` for nothing, -1 for what is no number. It may be a float, where others of its column are missing."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        digits = value.lstrip("0") or "0"
        is_number = value.isascii() and value.isdigit() and len(digits) <= digits_max
        return int(value, base) if is_number and int(max(digits)) < base else -1
    if isinstance(value, float):
        return int(value) if value.is_integer() else -1
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _moment(value: object, name: str) -> int | None:
    """Text, or nanoseconds since the epoch."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            return parse_time(value, 0)
        except UsageError as error:
            raise ValueError(str(error)) from error
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= INTEGER_MAX:
        return value
    raise ValueError(f"{_short(value)} is no {name}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}..."

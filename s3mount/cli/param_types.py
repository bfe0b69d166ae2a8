"""Values as people write them on a command line: sizes, times, file modes, buckets."""

from __future__ import annotations

import re
from collections.abc import Callable

import click
import msgspec

from s3mount.config import TimeoutSettings
from s3mount.names import OWN_NAME, is_name, normal_prefix

_SIZE = re.compile(
    r"\s*(\d+\.?\d*|\.\d+)\s*(?:([kmgtp])(i?b?)|(kilo|mega|giga|tera|peta|kibi|mebi|gibi|tebi|pebi)|b|byte)?\s*",
    re.IGNORECASE,
)
_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)\s*", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_YES, _NO = ("1", "true", "yes", "on", "t", "y"), ("", "0", "false", "no", "off", "f", "n")
SNAPSHOTS_FOLDER = ".snapshots"
"""What ``--snapshots`` calls the folder of the past where it names none."""
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LETTERS = "kmgtp"
RATE_MIN = 4 << 10
"""Slower than this, stores give up on requests."""


def size(value: str | int) -> int:
    """Bytes: ``10G`` and ``10GiB`` are 10 * 2**30, ``10GB`` is 10 * 10**9, ``4096`` is 4096.

    s3am's words as well: ``0.5kilo`` and ``0.5kibi`` are 512.

    Raises click.BadParameter, as the others here do.
    """
    found = _SIZE.fullmatch(str(value))
    if found is None:
        raise click.BadParameter(f"{value!r} is no size such as 512MiB or 10G")
    number, letter, rest, word = found.groups()
    letter = letter or (word or "")[:1]
    base = 1000 if (rest or "").lower() == "b" else 1024
    power = _LETTERS.index(letter.lower()) + 1 if letter else 0
    return int(float(number) * base**power)


def rates(value: str | tuple[int, int]) -> tuple[int, int]:
    """Bytes a second up and down: ``10M`` for both, ``512K:2M``, ``1M:off``; 0 is no limit."""
    if isinstance(value, tuple):
        return value
    words = value.split(":")
    if len(words) > 2:
        raise click.BadParameter(f"{value!r} is no RATE or UP:DOWN, such as 10M or 512K:2M")
    up, down = (_rate(word) for word in (words[0], words[-1]))
    return up, down


def _rate(word: str) -> int:
    if word.strip().lower() in ("off", "0"):
        return 0
    found = size(word)
    if found < RATE_MIN:
        raise click.BadParameter(
            f"{word!r} is {found} bytes a second, which cannot be meant: at least {RATE_MIN >> 10}K"
        )
    return found


def timeouts(value: str | TimeoutSettings) -> TimeoutSettings:
    """``base_s=1,fraction=2,s_per_byte.put=2e-6``: deadlines by their fields, the rest as they are.

    Raises click.BadParameter for a field that is none, or a value that cannot be meant.
    """
    if isinstance(value, TimeoutSettings):
        return value
    given: dict[str, object] = {}
    rates: dict[str, str] = {}
    for part in filter(None, map(str.strip, value.split(","))):
        name, is_set, number = part.partition("=")
        if not is_set:
            raise click.BadParameter(f"{part!r} must be FIELD=NUMBER")
        kind = name.removeprefix("s_per_byte.")
        if kind != name:
            rates[kind] = number
        else:
            given[name] = number
    if rates:
        given["s_per_byte"] = rates
    try:
        return msgspec.convert(given, TimeoutSettings, strict=False)
    except msgspec.ValidationError as error:
        fields = ", ".join(TimeoutSettings.__struct_fields__)
        raise click.BadParameter(f"{error} (fields: {fields}; s_per_byte.KIND)") from None


def size_from(least: int, *, or_zero: bool = True) -> Callable[[str | int], int]:
    """A reader of sizes that refuses those that cannot be meant: below ``least`` bytes, but for 0."""

    def read(value: str | int) -> int:
        found = size(value)
        if found >= least or (found == 0 and or_zero):
            return found
        unit = f"{least >> 20}M" if least >= 1 << 20 else f"{least >> 10}K"
        raise click.BadParameter(
            f"{value!r} is {found} bytes, which cannot be meant: at least {unit}; "
            "a size has a unit, as 512MiB or 10G"
        )

    # click shows the function's name where the value goes.
    read.__name__ = "size"
    return read


def seconds(value: str | float) -> float:
    """A length of time in seconds: ``1``, ``0.5s``, ``250ms``, ``5m``, ``1h``."""
    found = _TIME.fullmatch(str(value))
    if found is None:
        raise click.BadParameter(f"{value!r} is no time such as 1s, 250ms or 5m")
    return float(found[1]) * _SECONDS[found[2].lower()]


def mode(value: str | int) -> int:
    """Permission bits in octal: ``644``, ``0644`` or ``0o644``."""
    if isinstance(value, int):
        return value
    try:
        bits = int(value, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o7777:
        raise click.BadParameter(f"{value!r} is no octal mode such as 644")
    return bits


def umask(value: str | int) -> int:
    """Permission bits that are taken away, in octal: ``022``, ``77``."""
    if isinstance(value, int):
        return value
    if not re.fullmatch(r"[0-7]{1,4}", value):
        raise click.BadParameter(f"{value!r}: umask is an octal number such as 022")
    return int(value, 8)


def snapshots_folder(value: str) -> str:
    """The name of the folder that shows the past; words for yes mean the usual one, words for no none."""
    if value.lower() in (*_YES, *_NO):
        return SNAPSHOTS_FOLDER if value.lower() in _YES else ""
    if not is_name(value) or value == OWN_NAME:
        raise click.BadParameter(f"{value!r} cannot be the name of a folder at the mount's top")
    return value


def parse_bucket(text: str) -> tuple[str, str]:
    """Bucket and prefix of ``BUCKET`` or ``s3://BUCKET[/PREFIX]``; the prefix is empty or ends with /.

    Raises click.UsageError.
    """
    if text.startswith("arn:"):
        return text, ""
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "s3":
        raise click.UsageError(f"{text!r} is no bucket: BUCKET or s3://BUCKET[/PREFIX]")
    bucket, slash, prefix = (rest if separator else text).partition("/")
    if not _BUCKET.fullmatch(bucket) or (slash and not separator):
        hint = "; for a part of a bucket write s3://BUCKET/PREFIX" if slash and bucket else ""
        if not bucket and slash and not separator:
            hint = ", and no manifest is there"
        raise click.UsageError(f"{text!r} is no bucket{hint}")
    return bucket, normal_prefix(prefix)

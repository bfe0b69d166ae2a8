"""Points in time as people write them, and as manifests do."""

from __future__ import annotations

import calendar
import re
import time

from s3mount.clock import DATE_NS_MAX, clamped_ns
from s3mount.errors import UsageError

SECOND_NS = 1_000_000_000
ZONE_HOURS_MAX = 14

_MOMENT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9})\d*)?)?\s*(Z|z|[+-]\d\d(?::?\d\d)?)?)?"
)
_AGO = re.compile(r"-\s*(\d+(?:\.\d+)?)\s*(s|m|h|d|w)", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_time(text: str, now_ns: int) -> int:
    """Nanoseconds since the epoch of ``2026-10-01T12:00Z``, ``2026-10-01`` or ``-3d``. Raises UsageError.

    A date alone is its midnight in UTC. A time of day needs its zone (``Z`` or ``+02:00``), as nobody
    could tell otherwise which one is meant. ``-3d``, ``-12h``, ``-30m``, ``-10s``, ``-2w`` count back
    from ``now_ns``.
    """
    stripped = text.strip()
    ago = _AGO.fullmatch(stripped)
    if ago is not None:
        ago_ns = float(ago[1]) * _SECONDS[ago[2].lower()] * SECOND_NS
        if ago_ns > now_ns:
            raise UsageError(f"{text!r} is no time: that was before 1970")
        return now_ns - int(ago_ns)
    found = _MOMENT.fullmatch(stripped)
    if found is None:
        raise UsageError(
            f"{text!r} is no time: write 2026-10-01T12:00Z, 2026-10-01 (its midnight in UTC) or -3d"
        )
    if found[4] is not None and found[8] is None:
        raise UsageError(f"{text!r} names no zone: write {stripped}Z for UTC, or {stripped}+02:00")
    return _moment_ns(found, text)


def _moment_ns(found: re.Match[str], text: str) -> int:
    year, month, day = (int(found[n]) for n in (1, 2, 3))
    hour, minute, second = (int(found[n] or 0) for n in (4, 5, 6))
    possible = 1 <= month <= 12 and hour < 24 and minute < 60 and second < 61 and year > 0
    if not possible or not 1 <= day <= calendar.monthrange(year, month)[1]:
        raise UsageError(f"{text!r} is no time: there is no such day or hour")
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    at_ns = (seconds - _zone_s(found[8] or "Z")) * SECOND_NS + int((found[7] or "").ljust(9, "0"))
    return clamped_ns(at_ns, DATE_NS_MAX)


def _zone_s(zone: str) -> int:
    """East of Greenwich, in seconds. Raises UsageError for more than there is."""
    if zone in "Zz":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours > ZONE_HOURS_MAX or minutes > 59:
        raise UsageError(f"{zone!r} is no zone: there are those from -12:00 to +14:00")
    seconds = hours * 3600 + minutes * 60
    return -seconds if zone[0] == "-" else seconds


def format_time(at_ns: int) -> str:
    """``2026-10-01T00:00:00Z``, with as many digits behind the second as it needs, by threes."""
    seconds, rest = divmod(at_ns, SECOND_NS)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    if not rest:
        return f"{text}Z"
    digits = f"{rest:09d}"
    while digits.endswith("000"):
        digits = digits[:-3]
    return f"{text}.{digits}Z"

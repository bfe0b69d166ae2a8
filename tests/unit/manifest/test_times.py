from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.errors import UsageError
from s3mount.manifest.times import format_time, parse_time

SECOND = 1_000_000_000
OCTOBER = 1_790_812_800 * SECOND
"""2026-10-01T00:00:00Z"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-10-01T00:00Z", OCTOBER),
        ("2026-10-01", OCTOBER),
        (" 2026-10-01T00:00:00Z ", OCTOBER),
        ("2026-10-01 02:00+02:00", OCTOBER),
        ("2026-09-30T19:30-0430", OCTOBER),
        ("2026-10-01T09:00+09", OCTOBER),
        ("20261001", None),
        ("2026-10-01T00:00:00.250Z", OCTOBER + SECOND // 4),
        ("2026-10-01T00:00:00.123456789Z", OCTOBER + 123_456_789),
        ("2026-10-01T0000Z", OCTOBER),
        ("1970-01-01", 0),
        ("2024-02-29", 1_709_164_800 * SECOND),
        ("-3d", OCTOBER - 3 * 86400 * SECOND),
        ("-12h", OCTOBER - 12 * 3600 * SECOND),
        ("-30m", OCTOBER - 1800 * SECOND),
        ("-1.5h", OCTOBER - 5400 * SECOND),
        ("-2w", OCTOBER - 14 * 86400 * SECOND),
    ],
)
def test_times_are_read_as_people_write_them(text: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            parse_time(text, OCTOBER)
    else:
        assert parse_time(text, OCTOBER) == expected


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-10-01T12:00", "2026-13-01", "2026-02-29", "2026-10-01T24:00Z", "3d"],
)
def test_what_is_no_time_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no time|names no zone"):
        parse_time(text, OCTOBER)


@pytest.mark.parametrize(
    "text",
    [
        *("2026-10-01T00:00+99:99", "2026-10-01T00:00+15:00", "2026-10-01T00:00+01:60"),
        *("-99999999999999999w", "-60y", f"-{'9' * 400}d", "-99999d"),
    ],
)
def test_zones_and_times_that_there_never_were_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no zone|is no time"):
        parse_time(text, OCTOBER)


@given(st.integers(0, 4_000_000_000 * SECOND))
def test_a_time_comes_back_from_its_text(at_ns: int) -> None:
    text = format_time(at_ns)
    assert parse_time(text, 0) == at_ns
    assert datetime.datetime.fromisoformat(text[:19] + "Z").timestamp() == at_ns // SECOND

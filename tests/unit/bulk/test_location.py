from __future__ import annotations

import pytest

from s3mount.bulk.location import LocalPath, Location, RemoteUrl, S3Location, Stream, parse
from s3mount.errors import S3MountError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b", S3Location("b")),
        ("s3://b/", S3Location("b")),
        ("S3://b/k", S3Location("b", "k")),
        ("s3://b/k y%20/ü", S3Location("b", "k y%20/ü")),
        ("s3://b//k", S3Location("b", "/k")),
        ("s3://b/2020/*/x*", S3Location("b", "2020/*/x*", True)),
        ("s3://b/a?c", S3Location("b", "a?c", True)),
        ("s3://b/[1]{a}", S3Location("b", "[1]{a}")),
        (
            "s3://arn:aws:s3:eu-west-1:1234:accesspoint/name/k/l",
            S3Location("arn:aws:s3:eu-west-1:1234:accesspoint/name", "k/l"),
        ),
        ("-", Stream()),
        ("./s3:x", LocalPath("./s3:x")),
        ("dir/", LocalPath("dir/")),
        ("a:b", LocalPath("a:b")),
        ("file:/p%20q", LocalPath("/p q")),
        ("file://localhost/p", LocalPath("/p")),
        ("file:///p", LocalPath("/p")),
        ("https://h/p/q%20r?x=1", RemoteUrl("https://h/p/q%20r?x=1")),
        ("ftp://h/f", RemoteUrl("ftp://h/f")),
    ],
)
def test_what_an_argument_names(text: str, expected: Location) -> None:
    found = parse(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "exit_code"),
    [
        ("", 2),
        ("s3://", 7),
        ("s3:///k", 7),
        ("s3:/b/k", 7),
        ("s3://b!/k", 7),
        ("s3://b/" + "k" * 1025, 7),
        ("s3://b/\udcff", 7),
        ("file://other/p", 5),
        ("gopher://h/p", 5),
        ("http:///p", 5),
    ],
)
def test_wrong_ones_have_the_statuses_of_s3am(text: str, exit_code: int) -> None:
    with pytest.raises(S3MountError) as raised:
        parse(text)
    assert raised.value.exit_code == exit_code
    assert "\n" not in str(raised.value)


def test_raw_takes_wildcards_for_themselves() -> None:
    assert parse("s3://b/a*?", raw=True) == S3Location("b", "a*?")


@pytest.mark.parametrize(
    ("pattern", "meant", "others"),
    [
        (
            "2020/*/x*",
            ["2020/1/x", "2020/a/b/x/y", "2020//x\n"],
            ["2020/x", "2021/1/x", "2020/1/y"],
        ),
        ("a?c", ["abc", "a/c"], ["ac", "abbc"]),
        ("*", ["", "a", "a/b"], []),
        ("a.b*", ["a.b", "a.bc"], ["axb"]),
    ],
)
def test_wildcards_match_at_any_depth(pattern: str, meant: list[str], others: list[str]) -> None:
    location = parse(f"s3://b/{pattern}")
    assert isinstance(location, S3Location)
    assert [key for key in meant + others if location.matches(key)] == meant


@pytest.mark.parametrize(
    ("text", "beginning", "base"),
    [
        ("s3://b/2020/ab*/x", "2020/ab", "2020/"),
        ("s3://b/*", "", ""),
        ("s3://b/p/", "p/", "p/"),
        ("s3://b/p/k", "p/k", "p/"),
        ("s3://b", "", ""),
    ],
)
def test_where_names_begin(text: str, beginning: str, base: str) -> None:
    location = parse(text)
    assert isinstance(location, S3Location)
    assert (location.beginning, location.base) == (beginning, base)

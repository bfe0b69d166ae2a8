"""Globs and regular expressions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.checkout.selection import Selection
from s3mount.errors import UsageError


@pytest.mark.parametrize(
    ("pattern", "path", "takes"),
    [
        ("*.tmp", "a.tmp", True),
        ("*.tmp", "d/e/a.tmp", True),
        ("*.tmp", "a.tmp.gz", False),
        ("*.tmp", "a.tmp/b", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[ab]c", "d/bc", True),
        ("[!ab]c", "bc", False),
        ("[!ab]c", "xc", True),
        ("[]]x", "]x", True),
        ("[^^]x", "^x", False),
        ("[", "[", True),
        ("d/*.csv", "d/a.csv", True),
        ("d/*.csv", "d/e/a.csv", False),
        ("d/*.csv", "x/d/a.csv", False),
        ("d/**/a", "d/a", True),
        ("d/**/a", "d/e/f/a", True),
        ("d/**", "d/e/f", True),
        ("/a", "a", True),
        ("/a", "d/a", False),
        ("logs/", "logs/a/b", True),
        ("logs/", "d/logs/b", True),
        ("logs/", "logs", False),
        ("/d/logs/", "d/logs/x", True),
        ("a.b", "axb", False),
        ("a", "a\n", False),
        ("re:[0-9]+$", "d/12", True),
        ("re:^d/", "x/d/", False),
    ],
)
def test_patterns(pattern: str, path: str, takes: bool) -> None:
    assert Selection(include=[pattern]).takes(path) is takes
    assert Selection(exclude=[pattern]).takes(path) is not takes


def test_excludes_win_and_any_include_is_enough() -> None:
    selection = Selection(include=["*.a", "*.b"], exclude=["x*", "re:bad"])
    assert [name for name in ("1.a", "1.b", "1.c", "x.a", "d/bad.b") if selection.takes(name)] == [
        "1.a",
        "1.b",
    ]
    assert Selection().takes_all
    assert Selection().takes("anything")
    assert not selection.takes_all


@pytest.mark.parametrize("patterns", [["re:("], ["re:(?P<x>a)", "re:(?P<x>b)"]])
def test_no_regular_expression(patterns: list[str]) -> None:
    with pytest.raises(UsageError, match="--exclude"):
        Selection(exclude=patterns)


@given(
    st.text(alphabet="ab*?[]!^\\-/.(){}|+$&~", max_size=12), st.text(alphabet="ab/.", max_size=8)
)
def test_every_glob_means_something(pattern: str, path: str) -> None:
    Selection(include=[pattern]).takes(path)


@given(st.text(alphabet="ab.[]^$+(){}|\\ -&~", min_size=1, max_size=10))
def test_a_name_without_wildcards_means_itself(name: str) -> None:
    if "[" not in name:
        assert Selection(include=[name]).takes(f"d/{name}")
        assert not Selection(include=[name]).takes(f"d/{name}x")

"""Which changes a path means, and what must be given up together."""

from __future__ import annotations

import pytest

from s3mount.refs import ContentRef
from s3mount.spool.journal.changes import Change, Copy, Delete, Put
from s3mount.spool.journal.path_filter import given_up_with, select


def keys(changes: list[Change]) -> set[str]:
    return {change.key for change in changes}


def put(key: str) -> Change:
    return Put(key=key)


def copy(source: str, key: str) -> Change:
    return Copy(key=key, source=ContentRef(source, "e", 1))


def delete(key: str) -> Change:
    return Delete(key=key)


@pytest.mark.parametrize(
    ("prefix", "paths", "expected"),
    [
        ("", (), {"p/", "p/a", "p/a/", "p/a/b", "p/ab"}),
        ("", ("",), {"p/", "p/a", "p/a/", "p/a/b", "p/ab"}),
        ("", ("p/a",), {"p/a", "p/a/", "p/a/b"}),
        ("p/", ("a",), {"p/a", "p/a/", "p/a/b"}),
        ("p/", ("",), {"p/", "p/a", "p/a/", "p/a/b", "p/ab"}),
        ("p/", ("a/b", "ab"), {"p/a/b", "p/ab"}),
        ("p/", ("none",), set()),
    ],
)
def test_a_path_means_itself_and_what_is_below(
    prefix: str, paths: tuple[str, ...], expected: set[str]
) -> None:
    changes = [put(key) for key in ("p/", "p/a", "p/a/", "p/a/b", "p/ab")]
    assert keys(select(changes, prefix, paths)) == expected


def given_up(changes: list[Change], *selected: str) -> set[str]:
    return set(given_up_with({change.key: change for change in changes}, selected))


def test_a_move_is_given_up_whole() -> None:
    changes = [copy("old", "new"), delete("old"), put("other"), delete("another")]
    assert given_up(changes, "new") == {"new", "old"}
    assert given_up(changes, "old") == {"old"}, "then both names stay"


def test_a_moved_directory_comes_back_whole() -> None:
    changes = [
        *(put("e/"), copy("d/a", "e/a"), copy("d/s/b", "e/s/b")),
        *(delete("d/"), delete("d/a"), delete("d/s/"), delete("d/s/b"), delete("x/")),
    ]
    assert given_up(changes, "e/a") == {"e/a", "d/a", "d/"}
    assert given_up(changes, "e/", "e/a", "e/s/b") == keys(changes) - {"x/"}


def test_a_chain_of_moves_is_followed() -> None:
    changes = [copy("a", "b"), delete("a"), copy("b", "c"), copy("c", "d")]
    assert given_up(changes, "b") == {"a", "b"}
    assert given_up(changes, "d") == {"d"}, "its source is no deletion"

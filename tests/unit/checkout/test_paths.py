"""Keys that stay in the folder, and keys that are refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mount.checkout.paths import (
    HIDDEN,
    Folding,
    Spellings,
    as_text,
    native,
    permissions,
    refusal,
    split,
)

PIECES = st.sampled_from(
    ["", ".", "..", "...", "a", "b", " ", "\0", "\n", "ä", "~", "-", HIDDEN, "x" * 256, "ü" * 128]
)
PATHS = st.lists(PIECES | st.text(max_size=5), min_size=1, max_size=6).map("/".join)


@given(PATHS)
def test_no_path_leads_out(path: str) -> None:
    """What is not refused is below the folder by its text, and made of names that Linux takes."""
    if refusal(path) is not None:
        return
    plain = path.removesuffix("/")
    top = "/target"
    full = os.path.normpath(os.path.join(top, plain))
    assert full == f"{top}/{plain}"
    for name in plain.split("/"):
        assert name not in ("", ".", "..")
        assert "\0" not in name
        assert len(name.encode()) <= 255
    assert plain.split("/")[0] != HIDDEN


@given(PATHS)
def test_what_is_refused_has_a_reason(path: str) -> None:
    names = path.removesuffix("/").split("/")
    if not any(name in ("", ".", "..", HIDDEN) or "\0" in name for name in names):
        lengths = [len(name.encode("utf-8", "surrogatepass")) for name in names]
        if max(lengths) <= 255 and not any("\ud800" <= letter <= "\udfff" for letter in path):
            assert refusal(path) is None


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../a", "'..'"),
        ("a/..", "'..'"),
        ("/etc/passwd", "begins with '/'"),
        ("a//b", "empty name"),
        ("a//", "empty name"),
        ("", "empty name"),
        ("./a", "'.'"),
        ("n\0l", "NUL"),
        ("\ud800", "UTF-8"),
        (f"{HIDDEN}/x", "checkout keeps"),
        ("é" * 128, "longer"),
    ],
)
def test_why(path: str, said: str) -> None:
    assert said in (refusal(path) or "")


@pytest.mark.parametrize("path", ["a", "a/", "...", "..a/b..", "é" * 127, f"a/{HIDDEN}", "a\nb"])
def test_what_is_fine(path: str) -> None:
    assert refusal(path) is None


def test_the_file_system_says_how_long_a_name_may_be() -> None:
    assert refusal("é" * 72, 143) is not None
    assert refusal("é" * 71, 143) is None


@given(st.binary(min_size=1, max_size=20).filter(lambda raw: b"/" not in raw and b"\0" not in raw))
def test_names_from_the_disk_come_back_to_the_same_file(raw: bytes) -> None:
    text = as_text(os.fsdecode(raw))
    again = native(text)
    assert (again.encode() if isinstance(again, str) else again) == raw


def test_split() -> None:
    assert (split("a/b/c"), split("a")) == (("a/b", "c"), ("", "a"))


@pytest.mark.parametrize(
    ("mode", "bits"),
    [(None, None), (0o100644, 0o644), (0o640, 0o640), (0o104755, 0o755), (0o120777, None)],
)
def test_permissions(mode: int | None, bits: int | None) -> None:
    assert permissions(mode) == bits


# Names that a file system takes for one.


@pytest.mark.parametrize(
    ("case", "form", "names", "clashes"),
    [
        (False, False, ["A", "a", "é", "e\u0301"], []),
        (True, False, ["A", "a", "é", "e\u0301"], ["a"]),
        (False, True, ["A", "a", "é", "e\u0301"], ["é"]),
        (True, True, ["A", "a", "É", "e\u0301"], ["a", "É"]),
        (True, True, ["D/x", "d/y", "d/z", "e"], ["d/y", "d/z"]),
        (True, True, ["d/X", "d/e/x", "d/x", "x"], ["d/x"]),
    ],
)
def test_clashes(case: bool, form: bool, names: list[str], clashes: list[str]) -> None:
    asked = []

    def really() -> Folding:
        asked.append(1)
        return Folding(case=case, form=form)

    spellings = Spellings(really)
    assert [name for name in sorted(names) if spellings.clash(name)] == clashes
    assert len(asked) == 1


def test_nobody_asks_the_disk_while_no_two_names_are_alike() -> None:
    def never() -> Folding:
        raise AssertionError

    spellings = Spellings(never)
    assert not any(map(spellings.clash, ["a", "a/b", "a/c/d", "b/a", "b/a/", "b/c"]))

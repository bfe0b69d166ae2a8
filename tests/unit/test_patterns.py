"""Patterns as gitignore's, with git itself as the judge; braces and regular expressions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.errors import UsageError
from s3mount.patterns import PathFilter, expanded


@pytest.mark.parametrize(
    ("pattern", "path", "takes"),
    [
        ("*.tmp", "a.tmp", True),
        ("*.tmp", "d/e/a.tmp", True),
        ("*.tmp", "a.tmp.gz", False),
        ("*.tmp", "a.tmp/b", True),
        ("build", "build", True),
        ("build", "build/x/y", True),
        ("build", "d/build/x", True),
        ("build", "rebuild/x", False),
        ("build/", "build/x", True),
        ("build/", "build", False),
        ("build/*", "build/x", True),
        ("build/*", "build/x/y", True),
        ("build/*", "d/build/x", False),
        ("build/**", "build/x/y", True),
        ("./build", "build/x", True),
        ("./build", "d/build/x", False),
        ("./build/", "build/x", True),
        (".//d/./build", "d/build/x", True),
        ("**/build", "build/x", True),
        ("**/build", "d/e/build/x", True),
        ("{a,b}/**", "a/x", True),
        ("{a,b}/**", "b/x/y", True),
        ("{a,b}/**", "c/x", False),
        ("*.{jpg,png}", "d/x.png", True),
        ("{a}", "{a}", True),
        ("\\{a,b\\}", "{a,b}", True),
        ("\\!x", "!x", True),
        ("\\*", "*", True),
        ("\\*", "x", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[ab]c", "d/bc", True),
        ("[!ab]c", "bc", False),
        ("[!ab]c", "xc", True),
        ("[]]x", "]x", True),
        ("[^^]x", "^x", False),
        ("[[:digit:]]x", "7x", True),
        ("[[:digit:]]x", "dx", False),
        ("[", "[", True),
        ("d/*.csv", "d/a.csv", True),
        ("d/*.csv", "d/e/a.csv", False),
        ("d/*.csv", "x/d/a.csv", False),
        ("d/**/a", "d/a", True),
        ("d/**/a", "d/e/f/a", True),
        ("d/**", "d/e/f", True),
        ("d/**", "d/", False),
        ("/a", "a", True),
        ("/a", "d/a", False),
        ("logs/", "logs/a/b", True),
        ("logs/", "logs/", True),
        ("logs/", "d/logs/b", True),
        ("/d/logs/", "d/logs/x", True),
        ("a.b", "axb", False),
        ("a", "a\n", False),
        ("re:[0-9]+$", "d/12", True),
        ("re:^d/", "x/d/", False),
    ],
)
def test_patterns(pattern: str, path: str, takes: bool) -> None:
    assert PathFilter(include=[pattern]).takes(path) is takes
    assert PathFilter(exclude=[pattern]).takes(path) is not takes
    # The same where the last pattern that matches decides.
    assert PathFilter(exclude=["!nothing", pattern]).takes(path) is not takes


def test_excludes_win_and_any_include_is_enough() -> None:
    selection = PathFilter(include=["*.a", "*.b"], exclude=["x*", "re:bad"])
    assert [name for name in ("1.a", "1.b", "1.c", "x.a", "d/bad.b") if selection.takes(name)] == [
        "1.a",
        "1.b",
    ]
    assert PathFilter().takes_all
    assert PathFilter().takes("anything")
    assert not selection.takes_all


def test_an_exclude_may_be_taken_back_but_not_below_a_folder_that_is_excluded() -> None:
    selection = PathFilter(exclude=["*.log", "!keep.log", "/out/", "!/out/keep.log"])
    assert [selection.takes(name) for name in ("a.log", "d/keep.log", "out/keep.log", "a")] == [
        False,
        True,
        False,
        True,
    ]


def test_patterns_that_matched_nothing_are_known() -> None:
    selection = PathFilter(include=["*.a", "*.b"], exclude=["biuld", "x*"])
    for name in ("1.a", "build/y", "x.a"):
        selection.takes(name)
    assert selection.unmatched() == ["--include '*.b'", "--exclude 'biuld'"]


@pytest.mark.parametrize(
    ("patterns", "why"),
    [
        (["re:("], "no regular expression"),
        (["re:(?P<x>a)", "re:(?P<x>b)"], "cannot be used together"),
        (["../x"], "leads out"),
        (["{1..9}"], "name each"),
        ([""], "matches nothing"),
        (["./"], "matches nothing"),
        (["[[:nonsense:]]"], "no class"),
        (["[z-a]"], "no pattern"),
        (["{a,b}" * 12], "more than 1000"),
    ],
)
def test_what_is_not_understood_is_refused(patterns: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=f"--exclude.*{why}"):
        PathFilter(exclude=patterns)


def test_includes_are_not_taken_back() -> None:
    with pytest.raises(UsageError, match="say --exclude 'x'"):
        PathFilter(include=["!x"])


def test_braces() -> None:
    assert expanded("{a,b}{1,2}") == ["a1", "a2", "b1", "b2"]
    assert expanded("{a,{b,c}d}") == ["a", "bd", "cd"]
    assert expanded("{a,}x") == ["ax", "x"]
    assert expanded("{a{b,c}") == ["{ab", "{ac"]
    assert expanded("[{a,b}]") == ["[{a,b}]"]


@given(
    st.text(alphabet="ab*?[]!^\\-/.(){}|+$&~,", max_size=12), st.text(alphabet="ab/.", max_size=8)
)
def test_every_pattern_means_something_or_is_refused(pattern: str, path: str) -> None:
    try:
        selection = PathFilter(exclude=[pattern])
    except UsageError:
        return
    assert selection.takes(path) in (True, False)


@given(st.text(alphabet="ab.]^$+(){}| -&~", min_size=1, max_size=10))
def test_a_name_without_wildcards_means_itself(name: str) -> None:
    if name not in (".", "..") and ".." not in name:
        assert PathFilter(include=[name]).takes(f"d/{name}")
        assert not PathFilter(include=[name]).takes(f"d/{name}x")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty git repository."""
    if shutil.which("git") is None:
        pytest.skip("no git here")
    folder = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


NAMES = st.sampled_from(
    ["a", "b", "ab", "a-b", "*", "**", "a*", "?b", "[ab]", "[!a]*", "\\a", "***"]
)
PATTERNS = st.builds(
    lambda negation, start, names, end: negation + start + "/".join(names) + end,
    st.sampled_from(["", "", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(NAMES, min_size=1, max_size=3),
    st.sampled_from(["", "", "/"]),
)
PATHS = [
    "/".join(names)
    for names in (
        *([one] for one in ("a", "b", "ab", "a-b", "aab")),
        *([one, other] for one in ("a", "b", "ab") for other in ("a", "b", "ab")),
        *(["a", one, other] for one in ("a", "b") for other in ("a", "b", "a-b")),
        ["b", "a", "b", "a"],
    )
]


@settings(max_examples=60)
@given(st.lists(PATTERNS, min_size=1, max_size=3))
def test_they_mean_what_git_says(repository: Path, patterns: list[str]) -> None:
    (repository / ".git/info/exclude").write_text("".join(f"{each}\n" for each in patterns))
    asked = subprocess.run(
        ["git", "-C", repository, "check-ignore", "--no-index", "--stdin"],
        input="\n".join(PATHS),
        capture_output=True,
        text=True,
    )
    assert asked.returncode in (0, 1), asked.stderr
    selection = PathFilter(exclude=patterns)
    assert [path for path in PATHS if not selection.takes(path)] == asked.stdout.splitlines()

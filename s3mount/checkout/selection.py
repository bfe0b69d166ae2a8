"""Which paths are meant: globs and regular expressions that include and exclude."""

from __future__ import annotations

import re
from collections.abc import Sequence

from s3mount.errors import UsageError

REGEX = "re:"
"""Begins a pattern that is a regular expression."""


class Selection:
    """What ``--include`` and ``--exclude`` leave: all, or what some include matches; never what an exclude does.

    A pattern with a ``/`` within it is matched against the whole path, one without against the file's
    name in any folder; with a ``/`` at its end it means everything below a folder. ``*`` and ``?`` stand for
    anything but ``/``, ``**`` for anything, ``[a-z]`` for one of these. ``re:EXPRESSION`` is searched for in
    the whole path. Raises UsageError for an expression that is none.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = _compiled("--include", include)
        self._exclude = _compiled("--exclude", exclude)
        self.takes_all = self._include is None and self._exclude is None

    def takes(self, path: str) -> bool:
        """Is the file at ``path``, relative to the folder, meant?"""
        if self._exclude is not None and self._exclude.search(path):
            return False
        return self._include is None or self._include.search(path) is not None


def _compiled(option: str, patterns: Sequence[str]) -> re.Pattern[str] | None:
    if not patterns:
        return None
    found = []
    for pattern in patterns:
        is_regex = pattern.startswith(REGEX)
        text = pattern.removeprefix(REGEX) if is_regex else translate(pattern)
        try:
            found.append(re.compile(text, re.DOTALL).pattern)
        except re.error as error:
            raise UsageError(f"{option} {pattern!r} is no regular expression: {error}") from None
    joined = "|".join(f"(?:{text})" for text in found)
    try:
        return re.compile(joined, re.DOTALL)
    except re.error as error:
        # Each alone is one; together they are not where a group's name is used twice, for example.
        raise UsageError(f"{option}: these patterns cannot be used together: {error}") from None


def translate(glob: str) -> str:
    """A glob as a regular expression to be searched for in a path.

    >>> translate("*.tmp")
    '(?:^|/)[^/]*\\\\.tmp\\\\Z'
    """
    below = glob.endswith("/")
    body = glob.strip("/")
    anchored = "/" in body or glob.startswith("/")
    parts = ["^" if anchored else "(?:^|/)"]
    place = 0
    while place < len(body):
        letter = body[place]
        if body.startswith("**/", place):
            parts.append("(?:.*/)?")
            place += 3
        elif body.startswith("**", place):
            parts.append(".*")
            place += 2
        elif letter == "[" and (end := _class_end(body, place)) > 0:
            parts.append(_class(body[place + 1 : end]))
            place = end + 1
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(letter) or re.escape(letter))
            place += 1
    parts.append("/" if below else r"\Z")
    return "".join(parts)


def _class_end(body: str, start: int) -> int:
    """Where the ``]`` of a set stands, or -1; one that comes first is a member."""
    first = start + 2 if body[start + 1 : start + 2] in ("!", "^") else start + 1
    return body.find("]", first + 1)


def _class(inside: str) -> str:
    negated = inside[:1] in ("!", "^")
    members = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
    return f"(?:(?!/)[{'^' if negated else ''}{members}])"

"""Which paths are meant: patterns as in a .gitignore, and regular expressions, for all commands over many files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from s3mount.errors import UsageError

REGEX = "re:"
"""Begins a pattern that is a regular expression."""
BRACES_MAX = 1000
"""A pattern may stand for so many by its braces."""
_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "digit": "0-9",
    "lower": "a-z",
    "punct": "!-.:-@\\[-`{-~",
    "space": "\\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
_CLASS = re.compile(r"\[:(\w+):\]")


class _Rule(NamedTuple):
    """One pattern. ``below`` finds it and all that lies in it; ``itself`` only a path (folders end with a slash)."""

    given: str
    is_negated: bool
    below: re.Pattern[str]
    itself: re.Pattern[str]


class PathFilter:
    """What ``--include`` and ``--exclude`` leave: all, or what some include matches; never what an exclude does.

    Patterns mean what they mean in a .gitignore at the top: without a slash (but at its end) a pattern
    matches a name in any folder, with one it is the path from the top; a slash at its end makes it match folders
    only. What matches a folder matches all that is in it. ``*`` and ``?`` stand for anything but ``/``, ``**``
    for any folders, ``[a-z]`` for one of these, ``\\`` takes the meaning from the next character. An exclude that
    begins with ``!`` takes back earlier ones, but for what lies in an excluded folder. Beyond gitignore:
    ``./`` at the beginning means the top, ``{a,b}`` is either, and ``re:EXPRESSION`` is searched for in
    the whole path. Paths have no slash at the beginning.

    Raises UsageError for a pattern that cannot be understood.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = [_rule("--include", pattern) for pattern in include]
        self._exclude = [_rule("--exclude", pattern) for pattern in exclude]
        for rule in self._include:
            if rule.is_negated:
                told = rule.given[1:]
                raise UsageError(
                    f"--include {rule.given!r}: say --exclude {told!r} (or \\! for a name)"
                )
        self._is_included = _any_of("--include", self._include)
        has_negations = any(rule.is_negated for rule in self._exclude)
        self._is_excluded = (
            _Last(self._exclude) if has_negations else _any_of("--exclude", self._exclude)
        )
        # What an expression finds in a folder's path it need not find in the paths below.
        plain = [rule for rule in self._exclude if not rule.given.startswith(REGEX)]
        self._prunes = self._is_excluded if has_negations else _any_of("--exclude", plain)
        self.takes_all = not include and not exclude
        self._unseen = [
            *(("--include", rule) for rule in self._include),
            *(("--exclude", rule) for rule in self._exclude),
        ]

    def __call__(self, path: str) -> bool:
        """See ``takes``."""
        return self.takes(path)

    def enters(self, folder: str) -> bool:
        """May anything in the folder, whose path ends with a slash, be meant? An excluded folder need not be listed."""
        if self._prunes is None or not self._prunes(folder):
            return True
        self._note_seen(folder)
        return False

    def takes(self, path: str) -> bool:
        """Is the file at ``path`` meant? A path that ends with a slash is a folder's."""
        self._note_seen(path)
        if self._is_excluded is not None and self._is_excluded(path):
            return False
        return self._is_included is None or self._is_included(path)

    def _note_seen(self, path: str) -> None:
        if self._unseen:
            self._unseen = [each for each in self._unseen if not each[1].below.search(path)]

    def unmatched(self) -> list[str]:
        """The options whose pattern matched none of the paths asked for so far, as they were given."""
        return [f"{option} {rule.given!r}" for option, rule in self._unseen]


class _Last:
    """The last rule that matches decides, folder by folder from the top: below an excluded one all is."""

    _FOLDERS_MAX = 10_000

    def __init__(self, rules: Sequence[_Rule]) -> None:
        self._rules = list(reversed(rules))
        self._folders: dict[str, bool] = {}

    def __call__(self, path: str) -> bool:
        end = path.rstrip("/").rfind("/") + 1
        if end and self._is_folder_excluded(path[:end]):
            return True
        for rule in self._rules:
            if rule.itself.search(path):
                return not rule.is_negated
        return False

    def _is_folder_excluded(self, folder: str) -> bool:
        known = self._folders.get(folder)
        if known is None:
            if len(self._folders) >= self._FOLDERS_MAX:
                self._folders.clear()
            known = self._folders[folder] = self(folder)
        return known


def _any_of(option: str, rules: Sequence[_Rule]) -> Callable[[str], bool] | None:
    if not rules:
        return None
    joined = "|".join(f"(?:{rule.below.pattern})" for rule in rules)
    try:
        search = re.compile(joined, re.DOTALL).search
    except re.error as error:
        # Each alone is one; together they are not where a group's name is used twice, for example.
        raise UsageError(f"{option}: these patterns cannot be used together: {error}") from None
    return lambda path: search(path) is not None


def _rule(option: str, given: str) -> _Rule:
    is_negated = given.startswith("!")
    pattern = given.removeprefix("!")
    if not pattern.strip("/"):
        raise UsageError(f"{option} {given!r} matches nothing; to mean all, leave it out")
    try:
        if pattern.startswith(REGEX):
            expression = re.compile(pattern.removeprefix(REGEX), re.DOTALL)
            return _Rule(given, is_negated, expression, expression)
        bodies = [translate(each) for each in expanded(pattern)]
        tails = [(body, "/" if each.endswith("/") else "(?:/|\\Z)") for body, each in bodies]
        below = "|".join(f"(?:{body}{tail})" for body, tail in tails)
        itself = "|".join(f"(?:{body}{'/' if tail == '/' else '/?'}\\Z)" for body, tail in tails)
        return _Rule(given, is_negated, re.compile(below, re.DOTALL), re.compile(itself, re.DOTALL))
    except (re.error, ValueError) as error:
        what = "no regular expression" if pattern.startswith(REGEX) else "no pattern"
        raise UsageError(f"{option} {given!r} is {what}: {error}") from None


def expanded(pattern: str) -> list[str]:
    """What a pattern with braces stands for; braces without a comma mean themselves, as in a shell.

    Raises ValueError for too many, and for a range.

    >>> expanded("{a,b{1,2}}/{c}")
    ['a/{c}', 'b1/{c}', 'b2/{c}']
    """
    waiting, done = [pattern], []
    while waiting:
        one = waiting.pop()
        found = _first_braces(one)
        if found is None:
            done.append(one)
        else:
            start, end, choices = found
            waiting += [f"{one[:start]}{choice}{one[end:]}" for choice in reversed(choices)]
        if len(waiting) + len(done) > BRACES_MAX:
            raise ValueError(f"its braces stand for more than {BRACES_MAX} patterns")
    return done


def _first_braces(pattern: str) -> tuple[int, int, list[str]] | None:
    """Where the first ``{x,y}`` begins and ends, and what is in it."""
    opened: list[tuple[int, list[int]]] = []
    found: tuple[int, int, list[str]] | None = None
    place = 0
    while place < len(pattern):
        letter = pattern[place]
        if letter == "\\":
            place += 1
        elif letter == "[" and (end := _class_end(pattern, place)) > 0:
            place = end
        elif letter == "{":
            opened.append((place, [place]))
        elif letter == "," and opened:
            opened[-1][1].append(place)
        elif letter == "}" and opened:
            start, commas = opened.pop()
            if re.fullmatch(r"\w+\.\.\w+(\.\.\w+)?", pattern[start + 1 : place]):
                raise ValueError("ranges in braces are not understood: name each, {1,2,3}")
            if len(commas) > 1 and (found is None or start < found[0]):
                stops = [*commas[1:], place]
                choices = [pattern[a + 1 : b] for a, b in zip(commas, stops, strict=True)]
                found = (start, place + 1, choices)
        place += 1
    return found


def translate(pattern: str) -> tuple[str, str]:
    """A pattern without braces as a regular expression for where it begins, and the pattern in its normal form.

    What may follow, a slash or the end, is not in the expression. Raises ValueError.
    """
    plain = _normal(pattern)
    is_anchored = "/" in plain[:-1]
    names = [
        "**" if re.fullmatch(r"\*{2,}", name) else name for name in plain.strip("/").split("/")
    ]
    parts = ["^" if is_anchored or names[0] == "**" else "(?:^|/)"]
    for place, name in enumerate(names):
        is_last = place == len(names) - 1
        if name == "**":
            parts.append(".+" if is_last else "(?:.*/)?")
        else:
            parts += [_name(name), "" if is_last else "/"]
    return "".join(parts), plain


def _normal(pattern: str) -> str:
    """Without ``./`` and doubled slashes; with a slash at the beginning where ``./`` meant the top."""
    names = pattern.split("/")
    if ".." in names:
        raise ValueError("'..' leads out of the folder")
    starts = "/" if names[0] in ("", ".") and len(names) > 1 else ""
    ends = "/" if names[-1] in ("", ".") else ""
    kept = [name for name in names if name not in ("", ".")]
    if not kept:
        raise ValueError("it matches nothing; to mean all, leave it out")
    return starts + "/".join(kept) + ends


def _name(name: str) -> str:
    # No name is empty, whatever "*" could stand for.
    return ("(?=[^/])" if name.startswith("*") else "") + "".join(_letters(name))


def _letters(name: str) -> Iterator[str]:
    place = 0
    while place < len(name):
        letter = name[place]
        if letter == "*":
            while name[place + 1 : place + 2] == "*":
                place += 1
            yield "[^/]*"
        elif letter == "?":
            yield "[^/]"
        elif letter == "\\":
            place += 1
            yield re.escape(name[place : place + 1] or "\\")
        elif letter == "[" and (end := _class_end(name, place)) > 0:
            yield _class(name[place + 1 : end])
            place = end
        else:
            yield re.escape(letter)
        place += 1


def _class_end(body: str, start: int) -> int:
    """Where the ``]`` of a set stands, or -1; one that comes first is a member, and so is ``[:alpha:]``."""
    place = start + 2 if body[start + 1 : start + 2] in ("!", "^") else start + 1
    if body[place : place + 1] == "]":
        place += 1
    while place < len(body) and body[place] != "]":
        named = _CLASS.match(body, place)
        place = named.end() if named else place + (2 if body[place] == "\\" else 1)
    return place if place < len(body) and "/" not in body[start:place] else -1


def _class(inside: str) -> str:
    negated = inside[:1] in ("!", "^")
    members = []
    place = 1 if negated else 0
    while place < len(inside):
        named = _CLASS.match(inside, place)
        if named:
            if named[1] not in _CLASSES:
                raise ValueError(f"{named[0]} is no class of characters")
            members.append(_CLASSES[named[1]])
            place = named.end()
            continue
        if inside[place] == "\\" and place + 1 < len(inside):
            place += 1
            members.append(re.escape(inside[place]))
        else:
            members.append(inside[place] if inside[place] == "-" else re.escape(inside[place]))
        place += 1
    return f"(?:(?!/)[{'^' if negated else ''}{''.join(members)}])"

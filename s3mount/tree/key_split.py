"""Split points for listing a large directory in parallel, guessed from the names that are known.

A name is taken for a number whose digits are its characters. The first place where names differ has the
characters seen there and all others of their kinds, as more may follow; the places behind it went round
already, as a rule, and have those seen and the next digit. Of the places before it, where all names are the same, only
the last one with a digit counts, which is the next to go on. How far two names are apart, in pages, then
follows from how far the first and the last name of a page are.
"""

from __future__ import annotations

import bisect
import math
import string
from collections.abc import Iterable, Sequence
from typing import NamedTuple

DIGITS = frozenset(string.digits)
HEX = DIGITS | frozenset("abcdef")
KINDS = (DIGITS, frozenset(string.ascii_lowercase), frozenset(string.ascii_uppercase))
PLACES_MAX = 48
"""Characters of a name that are looked at: an UUID with something before it."""


class KeySplit(NamedTuple):
    """A place between names, and how many pages may be left in the range that it parts."""

    point: str
    pages_left: float


class _Place(NamedTuple):
    characters: list[str]
    weight: int

    def digit(self, character: str) -> int:
        return bisect.bisect_left(self.characters, character)


class NameShape:
    """What the names of one directory look like, as far as they are known."""

    def __init__(self) -> None:
        self._seen: list[set[str]] = []
        self._places: list[_Place] = []

    def learn(self, names: Iterable[str]) -> None:
        """Take note of names; some of a page are enough."""
        for name in names:
            short = name[:PLACES_MAX]
            while len(self._seen) < len(short):
                self._seen.append(set())
            for seen, character in zip(self._seen, short, strict=False):
                seen.add(character)
        self._places = []

    def parting(
        self, first: str, last: str, stop: str | None, pages_max: float = math.inf
    ) -> KeySplit | None:
        """Where to part what lies between a page of names, ``first`` to ``last``, and ``stop`` (``None``: no end).

        At most ``pages_max`` such pages are thought to follow it. The point is about the middle of what follows the
        page after this one; ``pages_left`` counts from there, too. ``None`` where nothing is known to part at. The
        point lies behind ``last`` and before ``stop``; all else is a guess, so either side of it may be empty. The
        names of the page must have been learned.

        >>> shape = NameShape()
        >>> shape.learn(f"f{number:04}.txt" for number in range(1000, 2000))
        >>> shape.parting("f1000.txt", "f1999.txt", None)
        KeySplit(point='f2', pages_left=0.0)
        >>> shape.learn(["f2000.txt"])
        >>> shape.parting("f1000.txt", "f1999.txt", None)
        KeySplit(point='f6', pages_left=7.01)
        >>> shape.parting("f1000.txt", "f1999.txt", None, pages_max=5)
        KeySplit(point='f5', pages_left=4.0)
        >>> shape.parting("f1000.txt", "f1999.txt", "f5")
        KeySplit(point='f4', pages_left=2.0)
        """
        self._places = self._places or _weighed(self._characters())
        last_at = self._number(last)
        page = max(1, last_at - self._number(first))
        next_at = last_at + page
        end_at = self._end() if stop is None else self._number(stop)
        if end_at > last_at + page * pages_max:
            end_at = last_at + int(page * pages_max)
        middle = (next_at + end_at) // 2
        point, distance = "", 0
        before_at = 0
        for index, (place, mine) in enumerate(zip(self._places, last, strict=False)):
            for digit, character in enumerate(place.characters):
                away = abs(before_at + digit * place.weight - middle)
                if character > mine and (not point or away < distance):
                    guess = last[:index] + character
                    if stop is None or guess < stop:
                        point, distance = guess, away
            before_at += place.digit(mine) * place.weight
        return KeySplit(point, round((end_at - next_at) / page, 2)) if point else None

    def _characters(self) -> list[list[str]]:
        """What may stand at each place, in order."""
        differ = (place for place, seen in enumerate(self._seen) if len(seen) > 1)
        first = next(differ, len(self._seen))
        is_hex = any(seen <= HEX and seen & DIGITS and seen - DIGITS for seen in self._seen[first:])
        counting = HEX if is_hex else DIGITS
        places = [sorted(seen) for seen in self._seen]
        if first < len(places):
            places[first] = _completed(self._seen[first], is_hex=is_hex)
        for place in range(first + 1, len(places)):
            if digits := self._seen[place] & DIGITS:
                places[place] = sorted(self._seen[place] | _following(max(digits), DIGITS))
        for place in range(first - 1, -1, -1):
            if self._seen[place] <= counting:
                places[place] += _following(places[place][0], counting)
                break
        return places

    def _number(self, name: str) -> int:
        return sum(
            place.digit(character) * place.weight
            for place, character in zip(self._places, name, strict=False)
        )

    def _end(self) -> int:
        """More than the number of any name."""
        return self._places[0].weight * len(self._places[0].characters)


def _weighed(characters: Sequence[list[str]]) -> list[_Place]:
    """The places, each with what one more of it adds to the number."""
    places: list[_Place] = []
    weight = 1
    for each in reversed(characters):
        places.append(_Place(each, weight))
        weight *= len(each)
    return places[::-1]


def _following(character: str, kind: frozenset[str]) -> set[str]:
    """The next one of its kind, if any."""
    return set(sorted(each for each in kind if each > character)[:1])


def _completed(seen: set[str], *, is_hex: bool) -> list[str]:
    """The characters seen at a place, and all others of their kinds."""
    if is_hex and seen <= HEX:
        return sorted(HEX)
    return sorted(seen.union(*(kind for kind in KINDS if seen & kind)))

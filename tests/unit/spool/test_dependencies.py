"""Very many changes that come and go at once leave the indexes as they are when each comes and goes by itself."""

from __future__ import annotations

import random

import pytest

from s3mount.refs import ContentRef
from s3mount.spool.journal.changes import ABSENT, Change, Copy, Delete, Put
from s3mount.spool.journal.dependencies import Dependencies

FOLDERS = ("", "a/", "a/b/", "c/")
KEYS = [f"{folder}{name}" for folder in FOLDERS for name in ("x", "y", "z", "m/")]


def bytes_of(change: Change) -> int:
    return change.seq % 5 if isinstance(change, Put) else 0


def some_change(rng: random.Random, key: str, seq: int) -> Change:
    kind = rng.choice(("put", "copy", "delete", "over"))
    former = tuple(rng.sample(KEYS, rng.choice((0, 0, 1, 2))))
    source = ContentRef(rng.choice(KEYS), "e", 1)
    error = rng.choice(("", "", "refused"))
    if kind == "delete":
        return Delete(key=key, seq=seq, expected=ABSENT, error=error)
    if kind == "copy":
        return Copy(key=key, seq=seq, source=source, former=former, error=error)
    base = source if kind == "over" else None
    return Put(key=key, seq=seq, base=base, former=former, error=error)


def told_of(found: Dependencies) -> dict[str, object]:
    """All that it tells of all there may be."""
    return {
        "changes": dict(found.changes),
        "keys": set(found.changes),
        "views": (set(found.changes.keys()), len(list(found.changes.values())), len(found.changes)),
        "there": [key for key in KEYS if key in found.changes],
        "bytes": found.put_bytes,
        "troubled": dict(found.troubled),
        "below": {name: set(found.keys_below(name)) for name in FOLDERS},
        "directories": {name: set(found.directories_in(name)) for name in FOLDERS},
        "implied": {name: (found.implies(name), found.count_below(name)) for name in FOLDERS[1:]},
        "readers": {key: set(found.readers_of(key)) for key in KEYS},
        "moved": {key: set(found.moved_from(key)) for key in KEYS},
    }


@pytest.mark.parametrize("seed", range(200))
def test_an_exchange_is_what_its_parts_are_one_by_one(seed: int) -> None:
    """At once when it is taken, while others come and go above it, in each state of its settling, and after it."""
    rng = random.Random(seed)
    at_once, one_by_one = Dependencies(bytes_of), Dependencies(bytes_of)
    for key in rng.sample(KEYS, rng.randint(0, len(KEYS))):
        replace(some_change(rng, key, rng.randrange(100)), key, at_once, one_by_one)
    for _ in range(3):
        exchange = at_once.exchange()
        planned = {}
        for key in rng.sample(KEYS, rng.randint(0, len(KEYS))):
            there = at_once.changes.get(key)
            come: Change | None = None
            if there is None or rng.random() < 0.7:
                come = some_change(rng, key, rng.randrange(100))
            exchange.add(key, there, come)
            planned[key] = come
            if rng.random() < 0.2:
                exchange.drop(key)
                del planned[key]
        at_once.take(exchange)
        for key, come in planned.items():
            replace(come, key, one_by_one)
        assert told_of(at_once) == told_of(one_by_one)
        for _ in range(rng.randrange(12)):
            key = rng.choice(KEYS)
            if rng.random() < 0.5:
                at_once.settle([key])
            else:
                new = some_change(rng, key, rng.randrange(100)) if rng.random() < 0.7 else None
                replace(new, key, at_once, one_by_one)
            assert told_of(at_once) == told_of(one_by_one)
        if rng.random() < 0.5:
            at_once.settle(KEYS)
            assert told_of(at_once) == told_of(one_by_one)


def test_an_exchange_hears_of_what_is_altered_while_it_is_planned() -> None:
    found = Dependencies(bytes_of)
    first, second = Delete(key="a"), Delete(key="b")
    found.add(first)
    exchange = found.exchange()
    found.add(second)
    assert exchange.altered == {"b"}
    found.altered("a")
    assert exchange.altered == {"a", "b"}
    found.forget()
    found.remove(first)
    exchange.altered.clear()
    found.remove(second)
    assert not exchange.altered


def replace(change: Change | None, key: str, *all_of_them: Dependencies) -> None:
    for each in all_of_them:
        if key in each.changes:
            each.remove(each.changes[key])
        if change is not None:
            each.add(change)

"""Very many changes that come and go at once leave the indexes as they are when each comes and goes by itself."""

from __future__ import annotations

import random

import pytest

from s3mount.refs import ContentRef
from s3mount.spool.journal.changes import ABSENT, Change, Copy, Delete, Put
from s3mount.spool.journal.dependencies import Dependencies

KEYS = [f"{folder}{name}" for folder in ("", "a/", "a/b/", "c/") for name in ("x", "y", "z", "m/")]


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


def state_of(found: Dependencies) -> dict[str, object]:
    return {name: value for name, value in vars(found).items() if name != "_bytes_of"}


@pytest.mark.parametrize("seed", range(200))
def test_an_exchange_is_what_its_parts_are_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    at_once, one_by_one = Dependencies(bytes_of), Dependencies(bytes_of)
    for key in rng.sample(KEYS, rng.randint(0, len(KEYS))):
        change = some_change(rng, key, rng.randrange(100))
        at_once.add(change)
        one_by_one.add(change)
    for _ in range(2):
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
            if key in one_by_one.changes:
                one_by_one.remove(one_by_one.changes[key])
            if come is not None:
                one_by_one.add(come)
        assert state_of(at_once) == state_of(one_by_one)

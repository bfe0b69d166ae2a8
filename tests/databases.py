"""Databases of SQLite that a test leaves open. Python 3.13 warns of them whenever it happens to collect them."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


class LeftOpen(AssertionError):
    """Nobody closed these databases."""


@contextmanager
def all_closed() -> Iterator[None]:
    """Raise LeftOpen at the end if one that was opened meanwhile is still open."""
    is_open: dict[object, str] = {}

    class Noted(sqlite3.Connection):
        def __init__(self, path: Any, *args: Any, **options: Any) -> None:
            super().__init__(path, *args, **options)
            self._note = object()
            is_open[self._note] = str(path)

        def close(self) -> None:
            super().close()
            is_open.pop(self._note, None)

    with mock.patch("sqlite3.connect", functools.partial(sqlite3.connect, factory=Noted)):
        yield
    if is_open:
        raise LeftOpen(", ".join(is_open.values()))

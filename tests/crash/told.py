"""What a program was told, and so what must be there after a kill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

PAGE_BYTES = 4096
"""The kernel hands over a file's pages in any order until it is closed or synced."""

REMEMBERED_BYTES_MAX = 200_000
"""Contents up to this size are known again, for the report."""

Paths: TypeAlias = dict[str, bytes | None]
"""Content by path; ``None`` is a folder."""


@dataclass(frozen=True)
class Doing:
    """An operation that has begun: it leads to ``after``.

    Of the paths in ``states`` each page may be that of any of the states, until the operation has ended.
    """

    what: str
    after: Paths
    states: Mapping[str, Sequence[bytes]] = field(default_factory=dict)


class Told:
    """One program's part of a mount. ``now`` is what operations that returned have made of it."""

    def __init__(self) -> None:
        self.now: Paths = {}
        self.doing: Doing | None = None
        self.log: list[str] = []
        self._began: dict[int, str] = {}
        self._count = 0

    def begin(self, doing: Doing) -> None:
        """An operation begins."""
        self._count += 1
        self.log.append(doing.what)
        del self.log[:-40]
        for data in doing.after.values():
            if data is not None and len(data) <= REMEMBERED_BYTES_MAX:
                self._began.setdefault(hash(data), f"operation {self._count}, {doing.what}")
        self.doing = doing

    def end(self) -> None:
        """It returned."""
        assert self.doing is not None
        self.now, self.doing = self.doing.after, None

    def settle(self, found: Paths) -> list[str]:
        """After a kill there is ``found``: what is wrong with it. Where nothing is, that is how it is now."""
        doing = self.doing
        wrong = _differences(self.now, found, {} if doing is None else doing.states)
        if wrong and doing is not None and not _differences(doing.after, found, doing.states):
            wrong = []
        if not wrong:
            self.now, self.doing = found, None
            return []
        shown = [
            (path, data) for path, data in found.items() if data and self.now.get(path) != data
        ]
        return wrong + [
            f"{path} has what was first there by {self._began[hash(data)]}"
            for path, data in shown
            if hash(data) in self._began
        ]


def _differences(wanted: Paths, found: Paths, states: Mapping[str, Sequence[bytes]]) -> list[str]:
    wrong = [f"{path} is there but must not be" for path in found.keys() - wanted.keys()]
    for path, data in wanted.items():
        if path not in found:
            wrong.append(f"{path} is missing")
        elif found[path] != data and not may_be(found[path], states.get(path)):
            wrong.append(f"{path} {_difference(data, found[path])}")
    return sorted(wrong)


def may_be(data: bytes | None, states: Sequence[bytes] | None) -> bool:
    """Is each page of ``data`` the page of one of the states (zeros behind a state's end)?"""
    if data is None or states is None:
        return False
    sizes = [len(state) for state in states]
    if not min(sizes) <= len(data) <= max(sizes):
        return False
    for at in range(0, len(data), PAGE_BYTES):
        page = data[at : at + PAGE_BYTES]
        pages = (state[at : at + len(page)] for state in states)
        if all(page != each.ljust(len(page), b"\0") for each in pages):
            return False
    return True


def _difference(wanted: bytes | None, found: bytes | None) -> str:
    if wanted is None or found is None:
        return "is a file" if wanted is None else "is a folder"
    if len(wanted) != len(found):
        return f"has {len(found)} bytes, must have {len(wanted)}"
    at = next(n for n in range(len(wanted)) if wanted[n] != found[n])
    return f"differs from byte {at} of {len(wanted)} on: {found[at : at + 8]!r}, not {wanted[at : at + 8]!r}"

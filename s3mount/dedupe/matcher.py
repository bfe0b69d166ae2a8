"""The dedupe matcher: compares a file while it grows with contents that S3 has, so that an equal one is not sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from s3mount.refs import ContentRef


class Candidate(Protocol):
    """A content that a new file may turn out to equal."""

    @property
    def ref(self) -> ContentRef:
        """Where it lies."""
        ...

    def sum_of(self, block: int) -> int | None:
        """The CRC64NVME of a block, ``None`` where it is not known."""
        ...


class DedupeMatcher:
    """One file while it is written. Every block is compared once; what was compared may still change."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = list(candidates)
        self._compared = 0

    def still_matches(self, size: int, sums: Callable[[int], int | None], blocks: int) -> bool:
        """Is it like a known content up to now?

        ``size`` in bytes so far; the first ``blocks`` blocks are whole, or less of them, up to the first
        of which ``sums`` tells ``None``.
        """
        self._candidates = [each for each in self._candidates if each.ref.size >= size]
        while self._candidates and self._compared < blocks:
            found = sums(self._compared)
            if found is None:
                break
            number = self._compared
            self._candidates = [each for each in self._candidates if each.sum_of(number) == found]
            self._compared += 1
        return bool(self._candidates)

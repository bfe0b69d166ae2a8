"""What a checkout did: counts, and what failed and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

FAILURES_SHOWN_MAX = 20


class Failure(msgspec.Struct, frozen=True):
    """One entry that is not there as the manifest says."""

    path: str
    bucket: str
    key: str
    version_id: str | None
    reason: str


class Progress(msgspec.Struct):
    """How far it is. ``is_planned``: whether the totals are those of the whole."""

    files: int = 0
    files_total: int = 0
    size_bytes: int = 0
    size_bytes_total: int = 0
    is_planned: bool = False


class Summary(msgspec.Struct):
    """Counts of files and bytes. ``stopped`` says why the rest was given up, where it was.

    ``is_rehearsal``: ``downloaded``, ``deleted`` and ``adjusted`` are what would have been.
    """

    is_rehearsal: bool = False
    files: int = 0
    size_bytes: int = 0
    right: int = 0
    right_bytes: int = 0
    downloaded: int = 0
    downloaded_bytes: int = 0
    hashed: int = 0
    hashed_bytes: int = 0
    adjusted: int = 0
    deleted: int = 0
    left_out: int = 0
    unverified: int = 0
    leftovers: int = 0
    failures: list[Failure] = []
    stopped: str = ""
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Is every file that was meant there?"""
        return not self.failures and not self.stopped

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        told["failed"] = told.pop("failures")
        return told

    def failure_lines(self) -> list[str]:
        """The first failures, a line each, and how many more there are for each reason."""
        lines = [f"{failure.path}: {failure.reason}" for failure in self.failures]
        if len(lines) <= FAILURES_SHOWN_MAX:
            return lines
        rest = Counter(failure.reason for failure in self.failures[FAILURES_SHOWN_MAX:])
        more = [f"{count:,} more: {reason}" for reason, count in rest.most_common(5)]
        others = len(lines) - FAILURES_SHOWN_MAX - sum(c for _, c in rest.most_common(5))
        return [*lines[:FAILURES_SHOWN_MAX], *more, *([f"{others:,} more"] if others else [])]

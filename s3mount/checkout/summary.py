"""What a checkout did: counts, and what failed and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from s3mount.manifest.model import Entry

FAILURES_SHOWN_MAX = 20
FAILURES_KEPT_MAX = 10_000
"""So many are told by name in the summary for programs; all are counted."""


class Failure(msgspec.Struct, frozen=True):
    """One entry that is not there as the manifest says."""

    path: str
    bucket: str
    key: str
    version_id: str | None
    reason: str


class Failures:
    """What failed: all counted, the first kept. To be added to by one thread."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[Failure] = []

    def add(self, path: str, entry: Entry | None, reason: str) -> None:
        """Note one; ``entry`` is ``None`` for what the manifest does not have."""
        self.count += 1
        if len(self.kept) < FAILURES_KEPT_MAX:
            about = (entry.bucket, entry.key, entry.version_id) if entry else ("", "", None)
            self.kept.append(Failure(path, *about, reason))


class Progress(msgspec.Struct):
    """How far it is. ``is_planned``: whether the totals are those of the whole."""

    files: int = 0
    files_total: int = 0
    size_bytes: int = 0
    size_bytes_total: int = 0
    is_planned: bool = False


class Summary(msgspec.Struct):
    """Counts of files and bytes. ``stopped`` says why the rest was given up, where it was.

    ``unproven``: files that are there as the store sent them, without a digest that could tell whether they
    are right; not among ``right``. ``edited``: files that were edited here and are kept, as they
    are or (``asides``: by their paths, where) beside the version. ``is_rehearsal``: ``downloaded``, ``deleted`` and
    ``adjusted`` are what would have been.
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
    unproven: int = 0
    unproven_paths: list[str] = []
    edited: int = 0
    edited_paths: list[str] = []
    asides: dict[str, str] = {}
    leftovers: int = 0
    failed: int = 0
    failures: list[Failure] = []
    stopped: str = ""
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Is every file that was meant there?"""
        return not self.failed and not self.stopped

    def note_unproven(self, path: str) -> None:
        """Count a file that nothing proves; the first are kept by name."""
        self.unproven += 1
        if len(self.unproven_paths) < FAILURES_KEPT_MAX:
            self.unproven_paths.append(path)

    def note_edited(self, path: str, aside: str | None) -> None:
        """Count a file that was edited here and stays, or that lies at ``aside`` now; the first are kept by name."""
        self.edited += 1
        if len(self.edited_paths) < FAILURES_KEPT_MAX:
            self.edited_paths.append(path)
            if aside is not None:
                self.asides[path] = aside

    def take(self, *found: Failures) -> None:
        """Add what failed, in the order of paths."""
        self.failed += sum(failures.count for failures in found)
        kept = [failure for failures in found for failure in failures.kept]
        self.failures = sorted(kept, key=lambda failure: failure.path)[:FAILURES_KEPT_MAX]

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        return told

    def edited_lines(self) -> list[str]:
        """What became of the first files that were edited here, a line each, and how many more there are."""
        shown = self.edited_paths[:FAILURES_SHOWN_MAX]
        lines = [
            f"{path} was edited here: "
            + (f"kept as {self.asides[path]}" if path in self.asides else "left as it is")
            for path in shown
        ]
        more = self.edited - len(shown)
        return [*lines, *([f"{more:,} more were edited here; --json names them"] if more else [])]

    def failure_lines(self) -> list[str]:
        """The first failures, a line each, and how many more there are for each reason."""
        shown = self.failures[:FAILURES_SHOWN_MAX]
        lines = [f"{failure.path}: {failure.reason}" for failure in shown]
        rest = Counter(failure.reason for failure in self.failures[len(shown) :]).most_common(5)
        others = self.failed - len(shown) - sum(count for _, count in rest)
        more = [f"{count:,} more: {reason}" for reason, count in rest]
        return [*lines, *more, *([f"{others:,} more"] if others else [])]

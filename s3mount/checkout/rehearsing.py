"""What a checkout would do, found out without S3 and without changing anything below the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from s3mount.checkout import comparing
from s3mount.checkout.digests import DigestIndex, Row, row_of
from s3mount.checkout.folders import Folders
from s3mount.checkout.placing import open_file
from s3mount.checkout.planning import Kind, Step
from s3mount.checkout.removing import Remover
from s3mount.checkout.summary import Failures, Summary
from s3mount.checkout.target import Target
from s3mount.errors import LocalDiskError
from s3mount.patterns import PathFilter


class Rehearsal:
    """Counts into a summary and tells each step. Files are read where only that tells; the index remembers it."""

    def __init__(
        self,
        target: Target,
        index: DigestIndex | None,
        selection: PathFilter,
        summary: Summary,
        failures: Failures,
        tell: Callable[[str, str, int], None],
    ) -> None:
        self._folders = Folders(target.root) if target.root is not None else None
        self._index = index
        self._summary = summary
        self._failures = failures
        self._tell = tell
        self._remover = (
            Remover(self._folders, selection, is_rehearsal=True, tell=tell)
            if self._folders is not None
            else None
        )

    def close(self) -> None:
        """Close the folders. Repeatable."""
        if self._folders is not None:
            self._folders.close()

    def run(self, steps: Iterator[Step]) -> None:
        """Go through all steps."""
        summary = self._summary
        for step in steps:
            try:
                if step.obstacle is not None and self._remover is not None:
                    before = self._remover.removed
                    self._remover.remove(step.obstacle)
                    summary.deleted += self._remover.removed - before
                if step.kind is Kind.FOLDER:
                    continue
                if step.kind is Kind.UNPROVEN:
                    summary.note_unproven(step.path)
                    continue
                if step.kind is Kind.ADJUST or (step.kind is Kind.CHECK and self._is_right(step)):
                    summary.right += 1
                    summary.right_bytes += step.entry.size or 0
                    summary.adjusted += step.kind is Kind.ADJUST
                    continue
            except (LocalDiskError, OSError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                self._failures.add(step.path, step.entry, str(why))
                continue
            summary.downloaded += 1
            summary.downloaded_bytes += step.entry.size or 0
            self._tell("download", step.path, step.entry.size or 0)

    def _is_right(self, step: Step) -> bool:
        assert self._folders is not None
        entry = step.entry
        descriptor = open_file(self._folders, step.path)
        try:
            verdict = comparing.compare(descriptor, entry, step.row)
        finally:
            os.close(descriptor)
        if not verdict.digest:
            return False
        found = verdict.found
        self._summary.hashed += 1
        self._summary.hashed_bytes += found.st_size
        if self._index is None:
            return bool(verdict.is_right)
        if verdict.is_right:
            self._index.put(row_of(step.path, entry, found, verdict.digest))
        elif entry.etag:
            stat = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
            self._index.put(Row(step.path, "", None, "", *stat, verdict.digest, entry.etag))
        return bool(verdict.is_right)

"""The dry run of a checkout: what it would do, without S3 and without changing anything below the folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from s3mount.checkout import comparing
from s3mount.checkout.atomic_write import open_file
from s3mount.checkout.digests import DigestIndex, Row, row_of
from s3mount.checkout.folders import Folders
from s3mount.checkout.options import Changed
from s3mount.checkout.planning import Kind, Step
from s3mount.checkout.removing import Remover
from s3mount.checkout.summary import Failures, Summary
from s3mount.checkout.target_folder import Target
from s3mount.errors import LocalDiskError
from s3mount.manifest.model import Entry
from s3mount.patterns import PathFilter
from s3mount.transfer import proving


class DryRun:
    """Counts into a summary and tells each step. Files are read where only that tells; the index remembers it."""

    def __init__(
        self,
        target: Target,
        index: DigestIndex | None,
        selection: PathFilter,
        summary: Summary,
        failures: Failures,
        tell: Callable[[str, str, int], None],
        changed: Changed,
    ) -> None:
        self._changed = changed
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
                is_right, digest = self._look_at(step) if step.kind is Kind.CHECK else (False, b"")
                if step.kind is Kind.ADJUST or is_right:
                    summary.right += 1
                    summary.right_bytes += step.entry.size or 0
                    summary.adjusted += step.kind is Kind.ADJUST
                    continue
                if self._changed is not Changed.OVERWRITE and self._is_edited(step, digest):
                    is_left = self._changed is Changed.KEEP
                    summary.note_edited(step.path, None)
                    self._tell("leave" if is_left else "keep aside", step.path, 0)
                    if is_left:
                        continue
            except (LocalDiskError, OSError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                self._failures.add(step.path, step.entry, str(why))
                continue
            summary.downloaded += 1
            summary.downloaded_bytes += step.entry.size or 0
            self._tell("download", step.path, step.entry.size or 0)

    def _is_edited(self, step: Step, digest: bytes) -> bool:
        if step.is_edited is not None or step.edited is None or step.seen is None:
            return bool(step.is_edited)
        if not digest:
            assert self._folders is not None
            descriptor = open_file(self._folders, step.path)
            try:
                digest = proving.hash_file(descriptor, step.seen.st_size, "").digest
            finally:
                os.close(descriptor)
        return digest != step.edited.digest

    def _look_at(self, step: Step) -> tuple[bool, bytes]:
        """Is the file that is there right, and what is its digest? What was found is remembered."""
        assert self._folders is not None
        entry = step.entry
        descriptor = open_file(self._folders, step.path)
        try:
            verdict = comparing.compare(descriptor, entry, step.row)
        finally:
            os.close(descriptor)
        if verdict.digest:
            self._summary.hashed += 1
            self._summary.hashed_bytes += verdict.found.st_size
            if self._index is not None:
                self._remember(step, entry, verdict, self._index)
        return bool(verdict.is_right), verdict.digest

    def _remember(
        self, step: Step, entry: Entry, verdict: comparing.Verdict, index: DigestIndex
    ) -> None:
        """What was found; but what a checkout put there is not forgotten, as it tells what was edited since."""
        found, row = verdict.found, step.row
        if verdict.is_right:
            index.put(row_of(step.path, entry, found, verdict.digest))
        elif row is not None and row.is_checkouts:
            if row.is_of(found):
                index.put(row._replace(unlike=entry.etag))
        elif entry.etag:
            stat = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
            index.put(Row(step.path, "", None, "", *stat, verdict.digest, entry.etag))

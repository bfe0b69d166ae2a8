"""One checkout from the look at the folder to the summary."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from s3mount import tasks
from s3mount.checkout.digests import DigestIndex
from s3mount.checkout.folder_state import FolderState, Notes
from s3mount.checkout.folders import Folders
from s3mount.checkout.options import Options, Tell
from s3mount.checkout.ordering import Ordered
from s3mount.checkout.paths import Folding
from s3mount.checkout.planning import Planner, Step
from s3mount.checkout.removing import Remover
from s3mount.checkout.summary import Failures, Progress, Summary
from s3mount.checkout.target_folder import Target
from s3mount.errors import S3MountError
from s3mount.patterns import PathFilter

if TYPE_CHECKING:
    from s3mount.checkout.fetching import StoredIn
    from s3mount.manifest.location import OpenStore

AHEAD_MAX = 100_000
"""So many files that need work are planned before the first is fetched, so that progress knows the whole."""


class Run:
    """Of one open target; ``run`` once."""

    def __init__(
        self,
        target: Target,
        index: DigestIndex | None,
        ordered: Ordered,
        selection: PathFilter,
        options: Options,
        watch: Callable[[Progress], None],
        tell: Tell,
        warn: Callable[[str], None],
    ) -> None:
        self._target = target
        self._index = index
        self._selection = selection
        self._options = options
        self._watch = watch
        self._tell = tell
        self._warn = warn
        self._summary = Summary(is_rehearsal=options.is_rehearsal)
        self._failures = Failures()
        self._notes = Notes()
        self._planner = Planner(
            target,
            index,
            selection,
            with_buckets=ordered.buckets > 1,
            delete=options.delete,
            accept_unproven=options.accept_unproven,
            folding=self._folding,
            notes=self._notes,
        )
        self._steps = self._planner.steps(ordered.entries)

    def _folding(self) -> Folding:
        """How the file system takes names; a rehearsal, which may not try, believes that they differ."""
        if self._options.is_rehearsal:
            return Folding(case=False, form=False)
        return self._target.folding()

    def picture(self, key: str) -> FolderState | None:
        """How the folder looks afterwards, where it holds the whole manifest."""
        summary = self._summary
        if not summary.is_complete or summary.is_rehearsal:
            return None
        return self._notes.picture(key, summary.files, summary.size_bytes, summary.left_out)

    def run(self, open_store: OpenStore, stored_in: StoredIn) -> Summary:
        """Do it. Raises LocalDiskError, and what the entries raise."""
        summary, planner = self._summary, self._planner
        try:
            ahead = list(itertools.islice(self._steps, AHEAD_MAX))
            is_whole = len(ahead) < AHEAD_MAX
            self._tell_unmatched("" if is_whole else f" so far ({planner.seen.files:,} files)")
            if self._options.is_rehearsal:
                self._rehearse(itertools.chain(ahead, self._steps))
            elif ahead:
                self._work(ahead, open_store, stored_in)
            if not summary.stopped:
                if not is_whole:
                    self._tell_unmatched("")
                self._remove_extras()
        finally:
            planner.close()
            if self._target.root is not None:
                self._target.clear_up()
        seen = planner.seen
        summary.files, summary.size_bytes = seen.files, seen.size_bytes
        summary.left_out = seen.left_out
        summary.right += seen.right_files
        summary.right_bytes += seen.right_bytes
        summary.take(planner.refused, self._failures)
        return summary

    def _tell_unmatched(self, so_far: str) -> None:
        """Tell which patterns mean nothing here: before anything is deleted, as a slip of the pen would leave
        what it was to keep without its protection."""
        if self._options.delete and self._selection.unmatched() and self._target.root is not None:
            # What lies in folders that are to go has not been looked at yet.
            folders = Folders(self._target.root)
            looking = Remover(folders, self._selection, is_rehearsal=True)
            try:
                for doomed in self._planner.extras:
                    with contextlib.suppress(OSError):
                        looking.remove(doomed)
            finally:
                folders.close()
        for option in self._selection.unmatched():
            self._warn(f"{option} matches nothing in the manifest or in the folder{so_far}")

    def _work(self, ahead: list[Step], open_store: OpenStore, stored_in: StoredIn) -> None:
        """Do what is to be done; ``stopped`` in the summary tells why the rest was given up."""

        from s3mount.checkout.atomic_write import AtomicWriter
        from s3mount.checkout.executor import Work

        placer = AtomicWriter(self._target)
        try:
            work = Work(
                ahead=ahead,
                is_whole=len(ahead) < AHEAD_MAX,
                steps=self._steps,
                placer=placer,
                index=self._index,
                remover=Remover(placer.folders, self._selection, is_rehearsal=False),
                open_store=open_store,
                stored_in=stored_in,
                summary=self._summary,
                failures=self._failures,
                notes=self._notes,
                watch=self._watch,
                accept_unproven=self._options.accept_unproven,
                changed=self._options.changed,
            )
            try:
                tasks.run(work.run)
            except S3MountError as error:
                self._summary.stopped = " ".join(str(error).split())
        finally:
            placer.close()

    def _rehearse(self, steps: Iterator[Step]) -> None:
        from s3mount.checkout.dry_run import DryRun

        rehearsal = DryRun(
            self._target,
            self._index,
            self._selection,
            self._summary,
            self._failures,
            self._tell,
            self._options.changed,
        )
        try:
            rehearsal.run(steps)
        finally:
            rehearsal.close()

    def _remove_extras(self) -> None:
        if not self._planner.extras or self._target.root is None:
            return
        folders = Folders(self._target.root)
        remover = Remover(
            folders, self._selection, is_rehearsal=self._options.is_rehearsal, tell=self._tell
        )
        try:
            for doomed in self._planner.extras:
                try:
                    remover.remove(doomed)
                except OSError as error:
                    why = f"it cannot be removed: {error.strerror}"
                    self._failures.add(doomed.path, None, why)
        finally:
            folders.close()
        self._summary.deleted += remover.removed

"""A manifest into a folder: exactly its versions as files, with as little work as that takes.

What is there already is found out first, without S3 and without trio: where nothing is to be done, neither
is loaded.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from s3mount.checkout import target as targets
from s3mount.checkout.digests import DigestIndex
from s3mount.checkout.ordering import Ordered
from s3mount.checkout.paths import Folding
from s3mount.checkout.planning import Planner, Step
from s3mount.checkout.removing import Remover
from s3mount.checkout.selection import Selection
from s3mount.checkout.summary import Failures, Progress, Summary
from s3mount.checkout.target import Target
from s3mount.errors import LocalDiskError, S3MountError, UsageError
from s3mount.manifest.model import Entry

if TYPE_CHECKING:
    from s3mount.checkout.fetching import StoredIn
    from s3mount.checkout.working import OpenStore

AHEAD_MAX = 100_000
"""So many files that need work are planned before the first is fetched, so that progress knows the whole."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    ``delete``: remove what the manifest does not have. ``is_rehearsal``: change nothing below the folder,
    ask S3 for nothing. ``cache_dir`` holds the table of digests.
    """

    cache_dir: Path
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    delete: bool = False
    is_rehearsal: bool = False


Tell = Callable[[str, str, int], None]
"""Told what a rehearsal would do: ``download`` or ``delete``, the path, and bytes."""


def check_out(
    entries: Iterable[Entry],
    folder: Path,
    options: Options,
    *,
    open_store: OpenStore,
    stored_in: StoredIn,
    watch: Callable[[Progress], None],
    tell: Tell,
) -> Summary:
    """Make ``folder`` hold ``entries``. Blocks; runs a trio loop of its own where there is something to do.

    Files appear whole, one by one; killed or interrupted, it leaves those that it has made, and the next
    run does the rest. What fails for one file is in the summary, and so is why the rest was given up.
    Raises UsageError for a folder or pattern that is refused, StateInUseError, LocalDiskError, and what
    ``entries`` raise; nothing was touched then.
    """
    began_s = time.monotonic()
    selection = Selection(options.include, options.exclude)
    path = targets.resolve(folder, options.cache_dir)
    ordered = Ordered(entries)
    try:
        if options.delete and not ordered.count:
            raise UsageError(
                "the manifest names nothing: with --delete that would empty the folder"
            )
        with Target.open(path, is_rehearsal=options.is_rehearsal) as target:
            index = _open_index(options.cache_dir, path)
            try:
                run = _Run(target, index, ordered, selection, options, watch, tell)
                summary = run.run(open_store, stored_in)
            finally:
                if index is not None:
                    index.close()
    finally:
        ordered.close()
    summary.seconds = round(time.monotonic() - began_s, 3)
    return summary


def _open_index(cache_dir: Path, path: Path) -> DigestIndex | None:
    """The table of digests; without one, all that is there is hashed each time."""
    try:
        return DigestIndex.open(cache_dir, path)
    except LocalDiskError:
        return None


class _Run:
    def __init__(
        self,
        target: Target,
        index: DigestIndex | None,
        ordered: Ordered,
        selection: Selection,
        options: Options,
        watch: Callable[[Progress], None],
        tell: Tell,
    ) -> None:
        self._target = target
        self._index = index
        self._selection = selection
        self._options = options
        self._watch = watch
        self._tell = tell
        self._summary = Summary(is_rehearsal=options.is_rehearsal)
        self._failures = Failures()
        self._planner = Planner(
            target,
            index,
            selection,
            with_buckets=ordered.buckets > 1,
            delete=options.delete,
            folding=self._folding,
        )
        self._steps = self._planner.steps(ordered.entries)

    def _folding(self) -> Folding:
        """How the file system takes names; a rehearsal, which may not try, believes that they differ."""
        if self._options.is_rehearsal:
            return Folding(case=False, form=False)
        return self._target.folding()

    def run(self, open_store: OpenStore, stored_in: StoredIn) -> Summary:
        summary, planner = self._summary, self._planner
        try:
            if not self._options.is_rehearsal:
                summary.leftovers = self._target.sweep()
            ahead = list(itertools.islice(self._steps, AHEAD_MAX))
            if self._options.is_rehearsal:
                self._rehearse(itertools.chain(ahead, self._steps))
            elif ahead:
                self._work(ahead, open_store, stored_in)
            if not summary.stopped:
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

    def _work(self, ahead: list[Step], open_store: OpenStore, stored_in: StoredIn) -> None:
        """Do what is to be done; ``stopped`` in the summary tells why the rest was given up."""
        import trio

        from s3mount.checkout.placing import Placer
        from s3mount.checkout.working import Work

        placer = Placer(self._target)
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
                watch=self._watch,
            )
            try:
                trio.run(work.run, strict_exception_groups=True)
            except S3MountError as error:
                self._summary.stopped = " ".join(str(error).split())
            except BaseExceptionGroup as group:
                if group.subgroup(KeyboardInterrupt) is None:
                    raise
                raise KeyboardInterrupt from None
        finally:
            placer.close()

    def _rehearse(self, steps: Iterator[Step]) -> None:
        from s3mount.checkout.rehearsing import Rehearsal

        rehearsal = Rehearsal(
            self._target, self._index, self._selection, self._summary, self._failures, self._tell
        )
        try:
            rehearsal.run(steps)
        finally:
            rehearsal.close()

    def _remove_extras(self) -> None:
        if not self._planner.extras or self._target.root is None:
            return
        from s3mount.checkout.folders import Folders

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

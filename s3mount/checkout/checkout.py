"""A manifest into a folder: exactly its versions as files, with as little work as that takes.

Where the folder looks as it did when it last held this manifest, nothing but the files' stats is read; else what
is there is found out first, without S3 and without trio. What is not needed is not loaded either.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from s3mount.checkout import folder_state as pictures
from s3mount.checkout import target_folder as targets
from s3mount.checkout.folder_state import FolderState
from s3mount.checkout.options import Options, Tell
from s3mount.checkout.summary import Progress, Summary
from s3mount.checkout.target_folder import Target
from s3mount.errors import LocalDiskError, UsageError

if TYPE_CHECKING:
    from s3mount.checkout.digests import DigestIndex
    from s3mount.checkout.fetching import StoredIn
    from s3mount.manifest.location import OpenStore
    from s3mount.manifest.model import Entry


RULES = 2
"""Counted up when patterns, or what counts as proven, come to mean something else: no picture of before is believed."""


def check_out(
    entries: Callable[[], Iterable[Entry]],
    identity: str | None,
    folder: Path,
    options: Options,
    *,
    open_store: OpenStore,
    stored_in: StoredIn,
    watch: Callable[[Progress], None],
    tell: Tell,
    warn: Callable[[str], None],
) -> Summary:
    """Make ``folder`` hold ``entries``. Blocks; runs a trio loop of its own where there is something to do.

    ``identity`` is equal for equal entries; with ``None`` they are always read. Files appear whole, one by
    one; killed or interrupted, it leaves those that it has made, and the next run does the rest. What fails
    for one file is in the summary, and so is why the rest was given up. ``warn`` is told, a line each, what a
    person should know before anything is deleted. Raises UsageError for a folder or
    pattern that is refused, StateInUseError, LocalDiskError, and what ``entries`` raise; nothing was touched
    then.
    """
    began_s = time.monotonic()
    path = targets.resolve(folder, options.cache_dir)
    place = pictures.place_of(options.cache_dir, path, "picture")
    key = _key(identity, options)
    known = pictures.load(place, key) if key and not options.delete else None
    summary = _look(path, known, options) if known is not None and path.is_dir() else None
    if summary is None:
        summary = _do(entries, path, options, open_store, stored_in, watch, tell, warn, place, key)
    summary.seconds = round(time.monotonic() - began_s, 3)
    return summary


def _key(identity: str | None, options: Options) -> str:
    """What a picture stands for; empty where none can be believed."""
    if identity is None:
        return ""
    return hashlib.sha256(
        repr((RULES, identity, options.include, options.exclude)).encode()
    ).hexdigest()


def _look(path: Path, known: FolderState, options: Options) -> Summary | None:
    """The summary where all is still as it was."""
    with Target.open(path, is_rehearsal=options.is_rehearsal) as target:
        leftovers = 0 if options.is_rehearsal else target.sweep()
        if target.root is None or not known.is_true_of(target.root):
            return None
    return Summary(
        is_rehearsal=options.is_rehearsal,
        files=known.files,
        size_bytes=known.size_bytes,
        right=known.files,
        right_bytes=known.size_bytes,
        left_out=known.left_out,
        leftovers=leftovers,
    )


def _do(
    entries: Callable[[], Iterable[Entry]],
    path: Path,
    options: Options,
    open_store: OpenStore,
    stored_in: StoredIn,
    watch: Callable[[Progress], None],
    tell: Tell,
    warn: Callable[[str], None],
    place: Path,
    key: str,
) -> Summary:
    """Read the manifest, look at every file, and do what is to be done."""
    from s3mount.checkout.ordering import Ordered
    from s3mount.checkout.running import Run
    from s3mount.patterns import PathFilter

    selection = PathFilter(options.include, options.exclude)
    ordered = Ordered(entries())
    try:
        if options.delete and not ordered.count:
            raise UsageError(
                "the manifest names nothing: with --delete that would empty the folder"
            )
        with Target.open(path, is_rehearsal=options.is_rehearsal) as target:
            leftovers = 0 if options.is_rehearsal else target.sweep()
            index = _open_index(options.cache_dir, path)
            try:
                run = Run(target, index, ordered, selection, options, watch, tell, warn)
                summary = run.run(open_store, stored_in)
            finally:
                if index is not None:
                    index.close()
            summary.leftovers = leftovers
            if key and not options.is_rehearsal:
                pictures.save(place, run.picture(key))
    finally:
        ordered.close()
    return summary


def _open_index(cache_dir: Path, path: Path) -> DigestIndex | None:
    """The table of digests; without one, all that is there is hashed each time."""
    from s3mount.checkout.digests import DigestIndex

    try:
        return DigestIndex.open(cache_dir, path)
    except LocalDiskError:
        return None

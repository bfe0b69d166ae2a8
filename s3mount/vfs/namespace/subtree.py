"""The move of a directory: what every key below it needs, most of it planned in slices."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping

import trio

from s3mount.refs import ContentRef, Key, ObjectInfo
from s3mount.slices import Pace, in_order, sliced
from s3mount.spool.journal.changes import (
    ABSENT,
    Change,
    Copy,
    Delete,
    Put,
    PutOrCopy,
    parent_of,
    renamed,
)
from s3mount.spool.journal.states import State
from s3mount.spool.spool import Spool
from s3mount.spool.step import Step, may_be_planned
from s3mount.spool.upload.uploader import Uploader
from s3mount.tree.names import check_key
from s3mount.tree.node import Node
from s3mount.vfs.finished import Watch
from s3mount.vfs.namespace.naming import Batch, deletion
from s3mount.vfs.open_files import OpenFile
from s3mount.vfs.state import MountState

AHEAD_MIN = 256
"""A directory of fewer keys is planned and recorded in one turn of the loop, in about 5 ms."""
LOOKED_THROUGH_MAX = 50_000
"""So many pending changes are looked through for those below a directory in one turn, in about 5 ms."""
PLANNED_AT_ONCE = 32
LATE_MAX = 256
ROUNDS_MAX = 8
"""While more than LATE_MAX of what was planned is outdated, that is planned once more, but no more often than this."""


class SubtreeMove:
    """What is below ``old_prefix``, the key of the directory ``node``, in S3 or pending, goes to ``new_prefix``.

    ``watch`` began before S3 listed ``stored``. Others go on while it is planned: what is said of each key is so
    when ``rest`` returns.
    """

    def __init__(
        self,
        state: MountState,
        uploader: Uploader,
        node: Node,
        old_prefix: Key,
        new_prefix: Key,
        stored: list[ObjectInfo],
        watch: Watch,
    ) -> None:
        self._state = state
        self._uploader = uploader
        self.node = node
        self.old_prefix = old_prefix
        self.new_prefix = new_prefix
        self._stored = {info.key: info for info in stored}
        self._watch = watch
        self._as_finished: dict[Key, ContentRef | None] = {}
        self._going: set[Key] = set()
        self._hidden: list[Key] = []
        self._left_out: set[Key] = set()

    def is_large(self) -> bool:
        """Is it too much for one turn of the loop?"""
        spool = self._state.spool
        pending = spool.dependencies.count_below(self.old_prefix)
        return pending + len(self._stored) >= AHEAD_MIN or len(spool.changes) >= LOOKED_THROUGH_MAX

    # ---------------------------------------------------------------- in slices

    async def plan_ahead(self, step: Step) -> None:
        """Let ``step`` have most of it. Raises OSError and LocalDiskError."""
        changes = self._state.spool.changes
        pending: list[tuple[int, str]] = []
        async for keys in sliced(list(changes)):
            pending += [
                (changes[key].seq, key)
                for key in keys
                if key in changes and key.startswith(self.old_prefix)
            ]
        below = [key for _, key in await in_order(pending)]
        finished = [key for key in self._watch.keys if key.startswith(self.old_prefix)]
        todo = list(dict.fromkeys([*self._stored, *finished, *below]))
        for _ in range(ROUNDS_MAX):
            await self._plan_some(step, todo)
            todo = list(self._outdated(step))
            if len(todo) <= LATE_MAX:
                break
            self._drop(step, todo)
            await trio.lowlevel.checkpoint()
        await self._plan_hidden(step)
        await trio.lowlevel.checkpoint()

    async def _plan_some(self, step: Step, todo: list[Key]) -> None:
        spool = self._state.spool
        pace = Pace()
        for start in range(0, len(todo), PLANNED_AT_ONCE):
            batch = Batch()
            for key in todo[start : start + PLANNED_AT_ONCE]:
                change = spool.changes.get(key)
                is_late = change is not None and not may_be_planned(spool, change)
                if is_late or key == self.old_prefix:
                    self._left_out.add(key)
                    continue
                if change is not None:
                    step.note(key)
                self._plan(key, batch)
            unwind(spool, batch)
            self._going |= parents(batch.changes)
            self._hidden += [key for key in batch.removed if key.endswith("/")]
            step.plan(batch.changes, [key for key in batch.removed if not key.endswith("/")])
            await pace.rest()

    async def _plan_hidden(self, step: Step) -> None:
        """What was a directory here alone, from the deepest on."""
        keys = {key for key in self._hidden if step.knows(key) and not step.brings(key)}
        by_depth = await in_order([(-key.count("/"), key) for key in keys])
        pace = Pace()
        for start in range(0, len(by_depth), PLANNED_AT_ONCE):
            batch = Batch(removed=[key for _, key in by_depth[start : start + PLANNED_AT_ONCE]])
            keep_hidden(batch, self._going)
            step.plan(batch.changes, batch.removed)
            await pace.rest()

    def _outdated(self, step: Step) -> set[Key]:
        """The keys below the old prefix that have to be planned anew."""
        start = len(self.new_prefix)
        keys = {
            key if key.startswith(self.old_prefix) else self.old_prefix + key[start:]
            for key in step.outdated()
        }
        for key in self._watch.keys:
            if key.startswith(self.old_prefix) and key not in keys:
                child = self._state.find(key)
                content = None if child is None else child.content
                if key not in self._as_finished or self._as_finished[key] != content:
                    keys.add(key)
        return keys

    def _drop(self, step: Step, keys: Iterable[Key]) -> None:
        start = len(self.old_prefix)
        for key in keys:
            step.drop((key, self.new_prefix + key[start:]))

    # ------------------------------------------------------------------ at once

    def rest(self, step: Step | None = None, *, replaces: bool) -> Batch:
        """What ``step`` does not have of it, to be recorded before anything else is done.

        ``replaces``: an empty directory is at the new place, which may have a marker in S3. Raises OSError.
        """
        spool, batch = self._state.spool, Batch()
        late = dict.fromkeys(self._stored) if step is None else self._late(step)
        keys = spool.changes if step is None else step.unknown()
        below = [key for key in keys if key.startswith(self.old_prefix)]
        unknown = [spool.changes[key] for key in below if key in spool.changes]
        unknown.sort(key=lambda change: change.seq)
        finished = [key for key in self._watch.keys if step is None or not step.knows(key)]
        late |= dict.fromkeys(key for key in finished if key.startswith(self.old_prefix))
        late |= dict.fromkeys(change.key for change in unknown)
        for key in late:
            self._plan(key, batch)
        if all(change.key != self.new_prefix for change in batch.changes):
            batch.changes.append(_fresh_marker(self.node, self.new_prefix))
        going = parents([*batch.changes, *unknown])
        keep_hidden(batch, going | self._going)
        if step is not None:
            self._show_hidden(step, batch, going)
        mentioned = {*batch.removed, *(change.key for change in batch.changes)}
        if self.old_prefix not in mentioned:
            batch.changes.append(deletion(self.old_prefix, None))
        for change in batch.changes:
            if replaces and change.key == self.new_prefix:
                change.expected = None
        unwind(spool, batch)
        return batch

    def _late(self, step: Step) -> dict[Key, None]:
        late = {*self._outdated(step), *self._left_out}
        self._drop(step, late)
        return dict.fromkeys(late)

    def _show_hidden(self, step: Step, batch: Batch, going: set[Key]) -> None:
        """A directory above what is late to be deleted shows in S3 till then: its deletion is noted too."""
        for key in going:
            above = key
            while above.startswith(self.old_prefix) and step.takes_away(above):
                step.drop([above])
                batch.changes.append(deletion(above, None))
                above = parent_of(above)

    # ------------------------------------------------------------------ each key

    def _plan(self, key: Key, batch: Batch) -> None:
        """Plan the move of one key, by what is pending of it, was finished, or is listed."""
        change = self._state.spool.changes.get(key)
        new_key = check_key(self.new_prefix + key[len(self.old_prefix) :])
        if key in self._watch.keys:
            child = self._state.find(key)
            self._as_finished[key] = None if child is None else child.content
        if change is not None:
            self._plan_pending(change, new_key, batch)
        elif key in self._watch.keys:
            self._plan_finished(key, new_key, batch)
        elif key in self._stored:
            self._plan_stored(self._stored[key], new_key, batch)

    def _plan_stored(self, info: ObjectInfo, new_key: Key, batch: Batch) -> None:
        child = self._state.find(info.key)
        content = info.ref
        if child is not None and child.content is not None and not child.is_directory:
            content = child.content
        moved = self._moved_copy(content, child, info, new_key)
        note_former(self._state.spool.changes, moved, info.key)
        # Not what is listed: that may be somebody else's already.
        batch.changes += [moved, deletion(info.key, content.etag)]

    def _plan_finished(self, key: Key, new_key: Key, batch: Batch) -> None:
        child = self._state.find(key)
        if child is None:
            return
        if child.is_directory:
            batch.changes.append(_fresh_marker(child, new_key))
        elif child.content is not None:
            moved = copy_of(child.content, child, new_key, ABSENT)
            note_former(self._state.spool.changes, moved, key)
            batch.changes.append(moved)
        batch.changes.append(deletion(key, None))

    def _moved_copy(
        self, content: ContentRef, child: Node | None, info: ObjectInfo, new_key: Key
    ) -> Copy:
        if child is not None and not child.is_directory:
            return copy_of(content, child, new_key, ABSENT)
        kind = stat.S_IFDIR if info.key.endswith("/") else stat.S_IFREG
        return Copy(
            key=new_key,
            source=content,
            attributes=child.attributes
            if child is not None
            else self._state.file_attributes(info.last_modified_ns, kind),
            replace_headers=False,
            expected=ABSENT,
        )

    def _plan_pending(self, change: Change, new_key: Key, batch: Batch) -> None:
        """Plan the move of a pending change, whether or not its file is loaded."""
        key = change.key
        in_store = (
            change.expected != ABSENT or bool(change.tried) or self._uploader.queue.is_sending(key)
        )
        if isinstance(change, Delete):
            self._going.add(parent_of(key))
            return
        child = self._state.find(key)
        file = self._state.files.of(child) if child is not None else None
        moved = moved_change(change, new_key, ABSENT, file)
        batch.changes.append(moved)
        if in_store:
            note_former(self._state.spool.changes, moved, key)
            batch.changes.append(deletion(key, change.expected))
        else:
            batch.removed.append(key)


def parents(changes: Iterable[Change]) -> set[Key]:
    """The directories of the deletions among ``changes``."""
    return {parent_of(change.key) for change in changes if isinstance(change, Delete)}


def keep_hidden(batch: Batch, going: set[Key]) -> None:
    """A directory that S3 never had shows there by what is still to be deleted below: its deletion is noted too.

    ``going`` are the directories of such deletions; it grows.
    """
    removed = []
    # What lies deeper first.
    for key in sorted(batch.removed, key=len, reverse=True):
        if key in going:
            batch.changes.append(deletion(key, None))
            going.add(parent_of(key))
        else:
            removed.append(key)
    batch.removed = removed


def unwind(spool: Spool, batch: Batch) -> None:
    """Before it is recorded: a change that would wait for itself first gets its content fetched. Raises OSError."""
    for index, change in enumerate(batch.changes):
        there = spool.changes.get(change.key)
        if change.expected == ABSENT and there is not None:
            change.expected = there.expected
        if isinstance(change, Copy) and spool.dependencies.waits_in_circle(change):
            batch.changes[index] = spool.as_fetched(change)


def note_former(changes: Mapping[Key, Change], moved: PutOrCopy, old_key: Key) -> None:
    """The deletion of ``old_key`` waits until S3 has ``moved``, whatever is written to it till then."""
    earlier = (
        key for key in moved.former if key != moved.key and isinstance(changes.get(key), Delete)
    )
    moved.former = (*earlier, old_key)


def copy_of(content: ContentRef, node: Node, new_key: Key, expected: str | None) -> Copy:
    """A copy inside S3 of what ``node`` is."""
    return Copy(
        key=new_key,
        source=content,
        attributes=node.attributes,
        headers=node.headers,
        replace_headers=False,
        expected=expected,
    )


def _fresh_marker(node: Node, key: Key) -> Put:
    return Put(key=key, attributes=node.attributes, headers=node.headers, expected=ABSENT)


def moved_change(
    change: PutOrCopy, new_key: Key, expected: str | None, file: OpenFile | None
) -> PutOrCopy:
    """The pending ``change`` under another key, of which nothing was sent yet.

    A file that somebody may still write waits for its last close under its new name too.
    """
    is_written = file is not None and file.writers and isinstance(change, Put)
    state = State.OPEN if is_written else State.QUEUED
    moved = renamed(change, new_key, expected=expected, state=state)
    moved.expected_size = -1
    if isinstance(moved, Put):
        moved.content_seq = 0
    return moved

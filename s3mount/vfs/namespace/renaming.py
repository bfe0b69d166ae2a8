"""Renames: every key that moves becomes a copy inside S3 and a deletion, journalled as one step."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable

from s3mount.crashpoints import crashpoint
from s3mount.refs import ContentRef, Key, ObjectInfo
from s3mount.s3.store import Store
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
from s3mount.spool.upload.uploader import Uploader
from s3mount.tree.listing import list_subtree
from s3mount.tree.names import check_key
from s3mount.tree.node import Node
from s3mount.vfs.contents import Contents
from s3mount.vfs.listing.directories import Directories
from s3mount.vfs.namespace.directory_times import DirectoryTimes
from s3mount.vfs.namespace.naming import Batch, Naming, deletion
from s3mount.vfs.open_files import OpenFile, must_be_in_place
from s3mount.vfs.state import MountState, changed

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Renaming:
    """Moves of directory entries. Each raises OSError, or S3MountError from below."""

    def __init__(
        self,
        state: MountState,
        directories: Directories,
        contents: Contents,
        naming: Naming,
        uploader: Uploader,
        times: DirectoryTimes,
        store: Store,
    ) -> None:
        self._state = state
        self._uploader = uploader
        self._times = times
        self._store = store
        self._directories = directories
        self._contents = contents
        self._naming = naming

    async def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, flags: int
    ) -> tuple[Node, Node | None]:
        """Move an entry; the node that moved, and the one that it replaced."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "unknown rename flag")
        node = await self._naming.existing(parent, name)
        if self._state.is_hidden(new_parent, new_name):
            raise OSError(errno.EPERM, f"the name {new_name} is s3mount's own here")
        target = await self._directories.lookup(new_parent, new_name)
        if flags & RENAME_EXCHANGE:
            return await self._exchange(node, target)
        if target is not None and flags & RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, "exists")
        if target is node:
            return node, None
        must_be_in_place(new_parent)
        if not new_parent.linked:
            raise OSError(errno.ENOENT, "the directory is gone")
        if node.is_directory:
            await self._move_directory(node, new_parent, new_name, target)
        else:
            await self._move_file(node, new_parent, new_name, target)
        self._times.touch(parent)
        if new_parent is not parent:
            self._times.touch(new_parent)
        return node, target

    async def _move_file(
        self, node: Node, new_parent: Node, new_name: str, target: Node | None
    ) -> None:
        if target is not None and target.is_directory:
            raise OSError(errno.EISDIR, "target is a directory")
        new_key = check_key(self._state.nodes.key_of(new_parent) + new_name)
        old_key = self._state.nodes.key_of(node)
        expected = self._expected_at(new_key, target)
        batch = Batch()
        replaced_blob = self._naming.blob_of(target) if target is not None else None
        self._plan_move(node, old_key, new_key, expected, batch)
        if target is not None and target.content is not None:
            for change in batch.changes:
                if change.key == new_key:
                    change.expected_size = target.content.size
        self._unwind(batch)
        crashpoint("rename: file recorded")
        if target is not None:
            self._naming.drop_blob(target, replaced_blob)
            self._state.nodes.unlink(target)
        self._state.nodes.move(node, new_parent, new_name)
        self._contents.follow_pending()
        node.attributes = changed(node.attributes, ctime_ns=self._state.now_ns())

    def _expected_at(self, key: Key, target: Node | None) -> str | None:
        change = self._state.spool.changes.get(key)
        if target is not None:
            return self._contents.writing.expected_of(target, change)
        return change.expected if change is not None else ABSENT

    def _plan_move(
        self, node: Node, old_key: Key, new_key: Key, expected: str | None, batch: Batch
    ) -> None:
        """Plan what a loaded file at ``old_key`` needs to be at ``new_key``."""
        change = self._state.change_of(node)
        file = self._state.files.of(node)
        moved: PutOrCopy
        if change is not None:
            moved = _moved(change, new_key, expected, file)
        elif node.content is not None:
            moved = self._copy_of(node.content, node, new_key, expected)
        else:
            raise OSError(errno.EIO, "a file without content cannot be moved")
        self._naming.plan_removal(node, batch)
        if any(each.key == old_key for each in batch.changes):
            self._note_former(moved, old_key)
        if self._is_way_back(moved, new_key):
            batch.removed.append(new_key)
        else:
            batch.changes.append(moved)

    def _note_former(self, moved: PutOrCopy, old_key: Key) -> None:
        """The deletion of ``old_key`` waits until S3 has ``moved``, whatever is written to it till then."""
        going = self._state.spool.changes
        earlier = (
            key for key in moved.former if key != moved.key and isinstance(going.get(key), Delete)
        )
        moved.former = (*earlier, old_key)

    def _copy_of(self, content: ContentRef, node: Node, new_key: Key, expected: str | None) -> Copy:
        return Copy(
            key=new_key,
            source=content,
            attributes=node.attributes,
            headers=node.headers,
            replace_headers=False,
            expected=expected,
        )

    def _is_way_back(self, moved: Change, new_key: Key) -> bool:
        """Does a file return to the key where S3 still has it as it is?"""
        there = self._state.spool.changes.get(new_key)
        return (
            isinstance(moved, Copy)
            and moved.source.key == new_key
            and not moved.replace_headers
            and isinstance(there, Delete)
            and not self._uploader.queue.is_sending(new_key)
            and not self._uploader.sender.moves.may_take(new_key, self._uploader.queue)
        )

    def _unwind(self, batch: Batch) -> None:
        """Record ``batch``; a change that would wait for itself first gets its content fetched."""
        spool = self._state.spool
        for index, change in enumerate(batch.changes):
            there = spool.changes.get(change.key)
            if change.expected == ABSENT and there is not None:
                change.expected = there.expected
            if isinstance(change, Copy) and spool.dependencies.waits_in_circle(change):
                batch.changes[index] = self._state.spool.as_fetched(change)
        spool.record(batch.changes, batch.removed)

    async def _exchange(self, node: Node, target: Node | None) -> tuple[Node, Node | None]:
        if target is None:
            raise OSError(errno.ENOENT, "nothing to exchange with")
        if node.is_directory or target.is_directory:
            raise OSError(errno.EINVAL, "directories cannot be exchanged")
        if node is target:
            return node, None
        assert node.parent is not None
        assert target.parent is not None
        for each in (node, target):
            await self._directories.know_headers(each)
        first_key = self._state.nodes.key_of(node)
        second_key = self._state.nodes.key_of(target)
        forth, back = Batch(), Batch()
        self._plan_move(node, first_key, second_key, self._expected_at(second_key, target), forth)
        self._plan_move(target, second_key, first_key, self._expected_at(first_key, node), back)
        # Both keys get new content, so neither is removed; one of them is fetched, or both would wait.
        batch = Batch(
            [each for each in forth.changes + back.changes if not isinstance(each, Delete)]
        )
        for index, change in enumerate(batch.changes):
            is_fetched = any(isinstance(each, Put) and each.detach for each in batch.changes)
            if isinstance(change, Copy) and not is_fetched:
                batch.changes[index] = self._state.spool.as_fetched(change)
        self._state.spool.record(batch.changes)
        crashpoint("rename: exchange recorded")
        first_parent, first_name = node.parent, node.name
        self._state.nodes.move(node, target.parent, target.name)
        self._state.nodes.move(target, first_parent, first_name)
        self._contents.follow_pending()
        self._times.touch(node.parent)
        self._times.touch(target.parent)
        return node, target

    async def _move_directory(
        self, node: Node, new_parent: Node, new_name: str, target: Node | None
    ) -> None:
        if new_parent.is_inside(node):
            raise OSError(errno.EINVAL, "a directory cannot be moved into itself")
        if target is not None:
            if not target.is_directory:
                raise OSError(errno.ENOTDIR, "target is not a directory")
            await self._naming.must_be_empty(target)
        old_prefix = self._state.nodes.key_of(node)
        new_prefix = check_key(f"{self._state.nodes.key_of(new_parent)}{new_name}/")
        watch = self._directories.watch_finished()
        stored = await list_subtree(self._store, old_prefix)
        batch = self._plan_subtree(node, old_prefix, new_prefix, stored, set(watch.keys))
        if target is not None:
            # The empty directory that is replaced may have a marker in S3.
            for change in batch.changes:
                change.expected = None if change.key == new_prefix else change.expected
        self._unwind(batch)
        crashpoint("rename: directory recorded")
        if target is not None:
            self._state.nodes.unlink(target)
        self._state.nodes.move(node, new_parent, new_name)
        self._contents.follow_pending()
        node.attributes = changed(node.attributes, ctime_ns=self._state.now_ns())

    def _plan_subtree(
        self,
        node: Node,
        old_prefix: Key,
        new_prefix: Key,
        stored: list[ObjectInfo],
        finished: set[Key],
    ) -> Batch:
        """Plan the move of every key below ``old_prefix``: what S3 lists, and what is pending."""
        batch = Batch()
        pending = {
            change.key: change for change in self._state.spool.dependencies.under(old_prefix)
        }
        for info in stored:
            if info.key in pending or info.key in finished:
                continue
            new_key = check_key(new_prefix + info.key[len(old_prefix) :])
            child = self._state.find(info.key)
            content = info.ref
            if child is not None and child.content is not None and not child.is_directory:
                content = child.content
            moved = self._moved_copy(content, child, info, new_key)
            self._note_former(moved, info.key)
            batch.changes.append(moved)
            # Not what is listed: that may be somebody else's already.
            batch.changes.append(deletion(info.key, content.etag))
        for key in finished:
            child = self._state.find(key) if key.startswith(old_prefix) else None
            if child is None or key in pending:
                continue
            new_key = check_key(new_prefix + key[len(old_prefix) :])
            if child.is_directory:
                batch.changes.append(self._fresh_marker(child, new_key))
            elif child.content is not None:
                moved = self._copy_of(child.content, child, new_key, ABSENT)
                self._note_former(moved, key)
                batch.changes.append(moved)
            batch.changes.append(deletion(key, None))
        for key, change in pending.items():
            self._plan_pending_move(change, new_prefix + key[len(old_prefix) :], batch)
        if all(change.key != new_prefix for change in batch.changes):
            batch.changes.append(self._fresh_marker(node, new_prefix))
        _keep_hidden(batch, pending.values())
        if old_prefix not in batch.removed and all(
            change.key != old_prefix for change in batch.changes
        ):
            batch.changes.append(deletion(old_prefix, None))
        return batch

    def _moved_copy(
        self, content: ContentRef, child: Node | None, info: ObjectInfo, new_key: Key
    ) -> Copy:
        if child is not None and not child.is_directory:
            return self._copy_of(content, child, new_key, ABSENT)
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

    def _fresh_marker(self, node: Node, key: Key) -> Put:
        return Put(key=key, attributes=node.attributes, headers=node.headers, expected=ABSENT)

    def _plan_pending_move(self, change: Change, new_key: Key, batch: Batch) -> None:
        """Plan the move of a pending change, whether or not its file is loaded."""
        key = change.key
        in_store = (
            change.expected != ABSENT or bool(change.tried) or self._uploader.queue.is_sending(key)
        )
        if not isinstance(change, Delete):
            child = self._state.find(key)
            file = self._state.files.of(child) if child is not None else None
            moved = _moved(change, check_key(new_key), ABSENT, file)
            batch.changes.append(moved)
            if in_store:
                self._note_former(moved, key)
                batch.changes.append(deletion(key, change.expected))
            else:
                batch.removed.append(key)


def _keep_hidden(batch: Batch, pending: Iterable[Change]) -> None:
    """A directory that S3 never had shows there by what is still to be deleted below: its deletion is noted too."""
    going = {
        parent_of(change.key) for change in [*batch.changes, *pending] if isinstance(change, Delete)
    }
    removed = []
    # What lies deeper first.
    for key in sorted(batch.removed, key=len, reverse=True):
        if key in going:
            batch.changes.append(deletion(key, None))
            going.add(parent_of(key))
        else:
            removed.append(key)
    batch.removed = removed


def _moved(
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

"""Renames: every key that moves becomes a copy inside S3 and a deletion, journalled as one step."""

from __future__ import annotations

import errno
from typing import NamedTuple

from s3mount.crashpoints import crashpoint
from s3mount.refs import Key
from s3mount.s3.store import Store
from s3mount.spool.journal.changes import (
    ABSENT,
    Change,
    Copy,
    Delete,
    Put,
    PutOrCopy,
)
from s3mount.spool.step import Step
from s3mount.spool.upload.uploader import Uploader
from s3mount.tree.listing import list_subtree
from s3mount.tree.names import check_key
from s3mount.tree.node import Node
from s3mount.vfs.contents import Contents
from s3mount.vfs.listing.directories import Directories
from s3mount.vfs.namespace.directory_times import DirectoryTimes
from s3mount.vfs.namespace.naming import Batch, Naming
from s3mount.vfs.namespace.subtree import SubtreeMove, copy_of, moved_change, note_former, unwind
from s3mount.vfs.open_files import must_be_in_place
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
        replaced_blob = self._naming.before_removal(target) if target is not None else None
        self._plan_move(node, old_key, new_key, expected, batch)
        if target is not None and target.content is not None:
            for change in batch.changes:
                if change.key == new_key:
                    change.expected_size = target.content.size
        unwind(self._state.spool, batch)
        self._state.spool.record(batch.changes, batch.removed)
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
            moved = moved_change(change, new_key, expected, file)
        elif node.content is not None:
            moved = copy_of(node.content, node, new_key, expected)
        else:
            raise OSError(errno.EIO, "a file without content cannot be moved")
        self._naming.plan_removal(node, batch)
        if any(each.key == old_key for each in batch.changes):
            note_former(self._state.spool.changes, moved, old_key)
        if self._is_way_back(moved, new_key):
            batch.removed.append(new_key)
        else:
            batch.changes.append(moved)

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
        move = SubtreeMove(self._state, self._uploader, node, old_prefix, new_prefix, stored, watch)
        place = _Place(new_parent, new_name, target)
        if not move.is_large():
            self._must_fit(move, place)
            batch = move.rest(replaces=target is not None)
            self._state.spool.record(batch.changes, batch.removed)
            self._moved_to(node, place)
            return
        spool = self._state.spool
        async with spool.steps:
            step = Step(spool)
            try:
                await self._state.nodes.unpack_most_below(node)
                await move.plan_ahead(step)
                self._must_fit(move, place)
                batch = move.rest(step, replaces=target is not None)
                step.take(batch.changes, batch.removed)
                self._moved_to(node, place)
            except BaseException:
                if not step.is_taken:
                    step.abandon()
                raise
            await step.finish()

    def _must_fit(self, move: SubtreeMove, place: _Place) -> None:
        """Raise OSError where a directory cannot be moved any more, as what it meets changed meanwhile."""
        nodes, parent, target = self._state.nodes, place.parent, place.target
        assert parent.directory is not None
        if not move.node.linked or nodes.key_of(move.node) != move.old_prefix:
            raise OSError(errno.ENOENT, "the directory went elsewhere meanwhile")
        if not parent.linked or f"{nodes.key_of(parent)}{place.name}/" != move.new_prefix:
            raise OSError(errno.ENOENT, "the directory that it goes to is gone")
        if parent.directory.children.get(place.name) is not target:
            raise OSError(errno.EBUSY, "the name that it goes to was taken or left meanwhile")
        if target is not None and target.directory is not None and target.directory.children:
            raise OSError(errno.ENOTEMPTY, "directory is not empty")

    def _moved_to(self, node: Node, place: _Place) -> None:
        crashpoint("rename: directory recorded")
        if place.target is not None:
            self._state.nodes.unlink(place.target)
        self._state.nodes.move(node, place.parent, place.name)
        self._contents.follow_pending()
        node.attributes = changed(node.attributes, ctime_ns=self._state.now_ns())


class _Place(NamedTuple):
    """Where a directory goes: ``target`` is the empty one that it replaces."""

    parent: Node
    name: str
    target: Node | None

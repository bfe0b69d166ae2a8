"""Names: creating, removing and moving files and directories, as changes in the journal."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field

import msgspec

from s3mount.errors import LocalDiskError
from s3mount.refs import Attributes, ContentRef, Key, ObjectInfo
from s3mount.spool.blobs import Blob
from s3mount.spool.changes import ABSENT, Change
from s3mount.spool.states import State
from s3mount.steps import reach
from s3mount.tree.listing import list_subtree
from s3mount.tree.names import check_key
from s3mount.tree.nodes import Node
from s3mount.vfs.contents import Contents, OpenFile
from s3mount.vfs.directories import Directories
from s3mount.vfs.state import MountState, changed

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


@dataclass(slots=True)
class Creator:
    """Who makes a file: the ids its owner and group begin with."""

    uid: int
    gid: int


@dataclass(slots=True)
class Batch:
    """Journal rows that belong together: recorded all or not at all."""

    changes: list[Change] = field(default_factory=list)
    removed: list[Key] = field(default_factory=list)


class Naming:
    """Operations on directory entries. Every one raises OSError, or S3MountError from below."""

    def __init__(self, state: MountState, directories: Directories, contents: Contents) -> None:
        self._state = state
        self._directories = directories
        self._contents = contents
        self._touched: dict[int, Node] = {}

    # ----------------------------------------------------------------- creating

    async def create(self, parent: Node, name: str, mode: int, creator: Creator) -> Node:
        """A new, empty regular file (state OPEN until somebody closes it)."""
        await self._must_be_free(parent, name)
        node = self._new_node(parent, name, stat.S_IFREG | stat.S_IMODE(mode), creator)
        blob: Blob | None = None
        try:
            blob = self._state.spool.new_blob()
            change = self._put(node, State.OPEN)
            change.blob_id = blob.id
            self._state.spool.record([change])
        except (OSError, LocalDiskError):
            self._forget_new(node, blob)
            raise
        self.touch(parent)
        return node

    async def make_node(
        self, parent: Node, name: str, mode: int, rdev: int, creator: Creator
    ) -> Node:
        """A file that carries only attributes: a regular empty one, a fifo, a socket or a device."""
        await self._must_be_free(parent, name)
        if stat.S_IFMT(mode) == 0:
            mode |= stat.S_IFREG
        node = self._new_node(parent, name, mode, creator)
        node.attributes = changed(node.attributes, rdev=rdev)
        self._record_new(node)
        return node

    async def make_directory(self, parent: Node, name: str, mode: int, creator: Creator) -> Node:
        """A new directory: its marker object."""
        await self._must_be_free(parent, name)
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        if parent.attributes.mode & stat.S_ISGID:
            mode |= stat.S_ISGID
        node = self._new_node(parent, name, mode, creator)
        assert node.directory is not None
        node.directory.listed_at = self._directories.now()
        node.directory.stores_attributes = True
        self._record_new(node)
        return node

    async def make_symlink(self, parent: Node, name: str, target: bytes, creator: Creator) -> Node:
        """A symbolic link: an object whose bytes are the target."""
        if len(target) >= 4096:
            raise OSError(errno.ENAMETOOLONG, "link target is too long")
        await self._must_be_free(parent, name)
        node = self._new_node(parent, name, stat.S_IFLNK | 0o777, creator)
        blob: Blob | None = None
        try:
            blob = self._state.spool.new_blob()
            self._state.spool.grew(blob.write(0, target))
            blob.release()
        except OSError:
            self._forget_new(node, blob)
            raise
        node.size = len(target)
        self._record_new(node, blob)
        return node

    async def _must_be_free(self, parent: Node, name: str) -> None:
        if not parent.linked:
            raise OSError(errno.ENOENT, "the directory is gone")
        if self._state.is_hidden(parent, name):
            raise OSError(errno.EPERM, f"the name {name} is s3mount's own here")
        if await self._directories.lookup(parent, name) is not None:
            raise OSError(errno.EEXIST, "exists")
        # Checked again by nobody: from here to the journal there is no await.
        if not parent.linked:
            raise OSError(errno.ENOENT, "the directory is gone")

    def _new_node(self, parent: Node, name: str, mode: int, creator: Creator) -> Node:
        key = self._state.nodes.key_of(parent) + name
        check_key(key + "/" if stat.S_ISDIR(mode) else key)
        now_ns = self._state.now_ns()
        gid = parent.attributes.gid if parent.attributes.mode & stat.S_ISGID else creator.gid
        attributes = Attributes(
            mode=mode, uid=creator.uid, gid=gid, mtime_ns=now_ns, ctime_ns=now_ns, atime_ns=now_ns
        )
        return self._state.nodes.add(parent, name, attributes)

    def _record_new(self, node: Node, blob: Blob | None = None) -> None:
        try:
            change = self._put(node, State.QUEUED)
            change.blob_id = "" if blob is None else blob.id
            self._state.spool.record([change])
        except LocalDiskError:
            self._forget_new(node, blob)
            raise
        assert node.parent is not None
        self.touch(node.parent)

    def _forget_new(self, node: Node, blob: Blob | None) -> None:
        """The disk has no room for a new entry: as if it had never been tried."""
        self._state.nodes.unlink(node)
        if blob is not None:
            blob.release()
            self._state.spool.drop_blob(blob)

    def _put(self, node: Node, state: State) -> Change:
        key = self._state.change_key(node)
        earlier = self._state.spool.changes.get(key)
        return Change(
            key=key,
            op="put",
            state=state,
            attributes=node.attributes,
            size=node.size,
            headers=node.headers,
            storage_class=node.storage_class,
            expected=earlier.expected if earlier is not None else ABSENT,
        )

    # ----------------------------------------------------------------- removing

    async def unlink(self, parent: Node, name: str) -> Node:
        """Remove a file; who has it open keeps reading. The node that lost its place."""
        node = await self._existing(parent, name)
        if node.is_directory:
            raise OSError(errno.EISDIR, "is a directory")
        batch = Batch()
        blob = self._blob_of(node)
        self._plan_removal(node, batch)
        self._state.spool.record(batch.changes, batch.removed)
        reach("unlink: recorded")
        self._drop_blob(node, blob)
        self._state.nodes.unlink(node)
        self.touch(parent)
        return node

    async def remove_directory(self, parent: Node, name: str) -> Node:
        """Remove an empty directory. The node that lost its place."""
        node = await self._existing(parent, name)
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        await self._must_be_empty(node)
        batch = Batch()
        self._plan_removal(node, batch)
        self._state.spool.record(batch.changes, batch.removed)
        self._state.nodes.unlink(node)
        self._touched.pop(node.inode, None)
        self.touch(parent)
        return node

    async def _existing(self, parent: Node, name: str) -> Node:
        node = await self._directories.lookup(parent, name)
        if node is None:
            raise OSError(errno.ENOENT, "no such file")
        return node

    async def _must_be_empty(self, node: Node) -> None:
        assert node.directory is not None
        await self._directories.refresh(node)
        if node.directory.children or node.directory.unshown:
            raise OSError(errno.ENOTEMPTY, "directory is not empty")

    def _plan_removal(self, node: Node, batch: Batch) -> None:
        """Plan that the key of ``node`` goes away: by a DELETE, or by nothing where S3 has nothing."""
        key = self._state.change_key(node)
        change = self._state.spool.changes.get(key)
        if change is not None and change.held:
            # What S3 has there is somebody else's, and was never shown: it stays.
            batch.removed.append(key)
        elif self._is_in_store(node, key, change):
            batch.changes.append(self._delete(key, self._contents.expected_of(node, change)))
        else:
            batch.removed.append(key)

    def _is_in_store(self, node: Node, key: Key, change: Change | None) -> bool:
        """May S3 hold something under ``key``, now or once what is on its way arrives?"""
        uploader = self._contents.uploader
        if uploader is not None and uploader.queue.is_sending(key):
            return True
        if change is not None and (change.expected != ABSENT or change.tried):
            return True
        if node.is_directory:
            below = self._state.spool.below(key)
            return change is None or any(each.op == "delete" for each in below)
        return change is None and node.content is not None and node.content.key == key

    @staticmethod
    def _delete(key: Key, expected: str | None) -> Change:
        return Change(key=key, op="delete", expected=expected)

    def _blob_of(self, node: Node) -> Blob | None:
        """The blob that holds what is pending, or open, of a file. To be asked before it is unlinked."""
        file = self._contents.open_file(node)
        if file is not None and file.blob is not None:
            return file.blob
        change = self._state.change_of(node)
        return self._state.spool.live_blobs.get(change.blob_id) if change is not None else None

    def _drop_blob(self, node: Node, blob: Blob | None) -> None:
        """The file is gone from the tree: its blob lives only as long as somebody has it open."""
        if blob is None:
            return
        if blob.upload is not None and self._contents.uploader is not None:
            self._contents.uploader.multipart.abandon(blob.upload)
            blob.upload = None
        file = self._contents.open_file(node)
        if file is None or file.blob is not blob:
            self._state.spool.drop_blob(blob)
        else:
            # Keep the descriptor: the bytes stay readable though the file has no name.
            os.fstat(blob.fd)
            self._state.spool.blobs.remove(blob)

    # ------------------------------------------------------------------- moving

    async def rename(
        self, parent: Node, name: str, new_parent: Node, new_name: str, flags: int
    ) -> tuple[Node, Node | None]:
        """Move an entry; the node that moved, and the one that it replaced."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "unknown rename flag")
        node = await self._existing(parent, name)
        if self._state.is_hidden(new_parent, new_name):
            raise OSError(errno.EPERM, f"the name {new_name} is s3mount's own here")
        target = await self._directories.lookup(new_parent, new_name)
        if flags & RENAME_EXCHANGE:
            return await self._exchange(node, target)
        if target is not None and flags & RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, "exists")
        if target is node:
            return node, None
        if not new_parent.linked:
            raise OSError(errno.ENOENT, "the directory is gone")
        if node.is_directory:
            await self._move_directory(node, new_parent, new_name, target)
        else:
            await self._move_file(node, new_parent, new_name, target)
        self.touch(parent)
        if new_parent is not parent:
            self.touch(new_parent)
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
        replaced_blob = self._blob_of(target) if target is not None else None
        self._plan_move(node, old_key, new_key, expected, batch)
        if target is not None and target.content is not None:
            for change in batch.changes:
                if change.key == new_key:
                    change.expected_size = target.content.size
        self._unwind(batch)
        reach("rename: file recorded")
        if target is not None:
            self._drop_blob(target, replaced_blob)
            self._state.nodes.unlink(target)
        self._state.nodes.move(node, new_parent, new_name)
        self._contents.follow_pending()
        node.attributes = changed(node.attributes, ctime_ns=self._state.now_ns())

    def _expected_at(self, key: Key, target: Node | None) -> str | None:
        change = self._state.spool.changes.get(key)
        if target is not None:
            return self._contents.expected_of(target, change)
        return change.expected if change is not None else ABSENT

    def _plan_move(
        self, node: Node, old_key: Key, new_key: Key, expected: str | None, batch: Batch
    ) -> None:
        """Plan what a loaded file at ``old_key`` needs to be at ``new_key``."""
        change = self._state.spool.changes.get(old_key)
        file = self._contents.open_file(node)
        if change is not None:
            moved = msgspec.structs.replace(
                change,
                key=new_key,
                expected=expected,
                expected_size=-1,
                upload_id="",
                tried=[],
                content_seq=0,
                attempts=0,
                refusals=0,
                error="",
                error_kind="",
                held=False,
                on_conflict=None,
                extents=list(change.extents),
                state=_state_after_move(change, file),
            )
        elif node.content is not None:
            moved = self._copy_of(node.content, node, new_key, expected)
        else:
            raise OSError(errno.EIO, "a file without content cannot be moved")
        self._plan_removal(node, batch)
        if self._is_way_back(moved, new_key):
            batch.removed.append(new_key)
        else:
            batch.changes.append(moved)

    def _copy_of(
        self, content: ContentRef, node: Node, new_key: Key, expected: str | None
    ) -> Change:
        return Change(
            key=new_key,
            op="copy",
            source=content,
            attributes=node.attributes,
            size=node.size,
            headers=node.headers,
            replace_headers=False,
            storage_class=node.storage_class,
            expected=expected,
        )

    def _is_way_back(self, moved: Change, new_key: Key) -> bool:
        """Does a file return to the key where S3 still has it as it is?"""
        there = self._state.spool.changes.get(new_key)
        uploader = self._contents.uploader
        return (
            moved.op == "copy"
            and moved.source is not None
            and moved.source.key == new_key
            and not moved.replace_headers
            and there is not None
            and there.op == "delete"
            and uploader is not None
            and not uploader.queue.is_sending(new_key)
        )

    def _unwind(self, batch: Batch) -> None:
        """Record ``batch``; a change that would wait for itself first gets its content fetched."""
        spool = self._state.spool
        for index, change in enumerate(batch.changes):
            there = spool.changes.get(change.key)
            if change.expected == ABSENT and there is not None:
                change.expected = there.expected
            if change.op == "copy" and spool.waits_in_circle(change):
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
        batch = Batch([each for each in forth.changes + back.changes if each.op != "delete"])
        for index, change in enumerate(batch.changes):
            if change.op == "copy" and not any(each.detach for each in batch.changes):
                batch.changes[index] = self._state.spool.as_fetched(change)
        self._state.spool.record(batch.changes)
        reach("rename: exchange recorded")
        first_parent, first_name = node.parent, node.name
        self._state.nodes.move(node, target.parent, target.name)
        self._state.nodes.move(target, first_parent, first_name)
        self._contents.follow_pending()
        self.touch(node.parent)
        self.touch(target.parent)
        return node, target

    async def _move_directory(
        self, node: Node, new_parent: Node, new_name: str, target: Node | None
    ) -> None:
        if new_parent.is_inside(node):
            raise OSError(errno.EINVAL, "a directory cannot be moved into itself")
        if target is not None:
            if not target.is_directory:
                raise OSError(errno.ENOTDIR, "target is not a directory")
            await self._must_be_empty(target)
        old_prefix = self._state.nodes.key_of(node)
        new_prefix = check_key(f"{self._state.nodes.key_of(new_parent)}{new_name}/")
        finished, end = self._directories.watch_finished()
        try:
            stored = await list_subtree(self._state.store, old_prefix)
        finally:
            end()
        batch = self._plan_subtree(node, old_prefix, new_prefix, stored, finished)
        if target is not None:
            # The empty directory that is replaced may have a marker in S3.
            for change in batch.changes:
                change.expected = None if change.key == new_prefix else change.expected
        self._unwind(batch)
        reach("rename: directory recorded")
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
        pending = {change.key: change for change in self._state.spool.under(old_prefix)}
        for info in stored:
            if info.key in pending or info.key in finished:
                continue
            new_key = check_key(new_prefix + info.key[len(old_prefix) :])
            child = self._state.find(info.key)
            content = info.ref
            if child is not None and child.content is not None and not child.is_directory:
                content = child.content
            moved = self._moved_copy(content, child, info, new_key)
            batch.changes.append(moved)
            batch.changes.append(self._delete(info.key, info.etag))
        for key in finished:
            child = self._state.find(key) if key.startswith(old_prefix) else None
            if child is None or key in pending:
                continue
            new_key = check_key(new_prefix + key[len(old_prefix) :])
            if child.is_directory:
                batch.changes.append(self._fresh_marker(child, new_key))
            elif child.content is not None:
                batch.changes.append(self._copy_of(child.content, child, new_key, ABSENT))
            batch.changes.append(self._delete(key, None))
        for key, change in pending.items():
            self._plan_pending_move(change, new_prefix + key[len(old_prefix) :], batch)
        if all(change.key != new_prefix for change in batch.changes):
            batch.changes.append(self._fresh_marker(node, new_prefix))
        if old_prefix not in batch.removed and all(
            change.key != old_prefix for change in batch.changes
        ):
            batch.changes.append(self._delete(old_prefix, None))
        return batch

    def _moved_copy(
        self, content: ContentRef, child: Node | None, info: ObjectInfo, new_key: Key
    ) -> Change:
        if child is not None and not child.is_directory:
            return self._copy_of(content, child, new_key, ABSENT)
        kind = stat.S_IFDIR if info.key.endswith("/") else stat.S_IFREG
        return Change(
            key=new_key,
            op="copy",
            source=content,
            attributes=child.attributes
            if child is not None
            else self._state.file_attributes(info.last_modified_ns, kind),
            size=info.size,
            replace_headers=False,
            storage_class=info.storage_class,
            expected=ABSENT,
        )

    def _fresh_marker(self, node: Node, key: Key) -> Change:
        return Change(
            key=key, op="put", attributes=node.attributes, headers=node.headers, expected=ABSENT
        )

    def _plan_pending_move(self, change: Change, new_key: Key, batch: Batch) -> None:
        """Plan the move of a pending change, whether or not its file is loaded."""
        key = change.key
        uploader = self._contents.uploader
        in_store = (
            change.expected != ABSENT
            or bool(change.tried)
            or (uploader is not None and uploader.queue.is_sending(key))
        )
        if change.op != "delete":
            child = self._state.find(key)
            file = self._contents.open_file(child) if child is not None else None
            batch.changes.append(
                msgspec.structs.replace(
                    change,
                    key=check_key(new_key),
                    expected=ABSENT,
                    upload_id="",
                    tried=[],
                    content_seq=0,
                    attempts=0,
                    refusals=0,
                    error="",
                    error_kind="",
                    held=False,
                    on_conflict=None,
                    extents=list(change.extents),
                    state=_state_after_move(change, file),
                )
            )
            if in_store:
                batch.changes.append(self._delete(key, change.expected))
            else:
                batch.removed.append(key)

    # ------------------------------------------------------------------ touching

    def forget_touch(self, directory: Node) -> None:
        """What changed in ``directory`` was given up: its times are not to be stored. Repeatable."""
        self._touched.pop(directory.inode, None)

    def touch(self, directory: Node) -> None:
        """An entry came or went: the directory's times are now, and attributes are stored below it."""
        known = directory.directory
        assert known is not None
        now_ns = self._state.now_ns()
        directory.attributes = changed(directory.attributes, mtime_ns=now_ns, ctime_ns=now_ns)
        if known.stores_attributes:
            self._touched[directory.inode] = directory
            return
        known.stores_attributes = True
        try:
            self.store_attributes(directory)
        except LocalDiskError:
            # What was to be done is done; the directory's times wait until the disk has room.
            self._touched[directory.inode] = directory

    def store_attributes(self, directory: Node) -> None:
        """Let the marker of ``directory`` carry its attributes. Raises LocalDiskError."""
        self._touched.pop(directory.inode, None)
        if not directory.linked:
            return
        directory.attributes_known = True
        key = self._state.change_key(directory)
        change = self._state.spool.changes.get(key)
        if change is not None and change.op == "put" and change.state is State.QUEUED:
            change.attributes = directory.attributes
            self._state.spool.record([change])
            return
        expected = change.expected if change is not None else None
        self._state.spool.record(
            [
                Change(
                    key=key,
                    op="put",
                    attributes=directory.attributes,
                    headers=directory.headers,
                    expected=expected,
                )
            ]
        )

    def store_touched(self) -> None:
        """Bring the times of directories that changed since the last call into their markers.

        Raises LocalDiskError; what could not be journalled is tried again by the next call.
        """
        for inode, directory in list(self._touched.items()):
            try:
                self.store_attributes(directory)
            except LocalDiskError:
                self._touched[inode] = directory
                raise
        self._touched.clear()


def _state_after_move(change: Change, file: OpenFile | None) -> State:
    """A file that somebody may still write waits for its last close under its new name too."""
    is_written = file is not None and file.writers and change.op == "put"
    return State.OPEN if is_written else State.QUEUED

"""Names: creating and removing files and directories, as changes in the journal."""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import dataclass, field

from s3mount.crashpoints import crashpoint
from s3mount.errors import LocalDiskError
from s3mount.refs import Attributes, Key
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import ABSENT, Change, Delete, Put
from s3mount.spool.journal.states import State
from s3mount.spool.upload.uploader import Uploader
from s3mount.tree.names import check_key
from s3mount.tree.node import Node
from s3mount.vfs.contents import Contents
from s3mount.vfs.listing.directories import Directories
from s3mount.vfs.namespace.directory_times import DirectoryTimes
from s3mount.vfs.open_files import must_be_in_place
from s3mount.vfs.state import MountState, changed

log = logging.getLogger(__name__)


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

    def __init__(
        self,
        state: MountState,
        directories: Directories,
        contents: Contents,
        uploader: Uploader,
        times: DirectoryTimes,
    ) -> None:
        self._state = state
        self._uploader = uploader
        self._times = times
        self._directories = directories
        self._contents = contents

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
        self._times.touch(parent)
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
        must_be_in_place(parent)
        if not parent.linked:
            raise OSError(errno.ENOENT, "the directory is gone")
        if self._state.is_hidden(parent, name):
            raise OSError(errno.EPERM, f"the name {name} is s3mount's own here")
        if await self._directories.lookup(parent, name) is not None:
            raise OSError(errno.EEXIST, "exists")
        # Checked again by nobody: from here to the journal there is no await.
        must_be_in_place(parent)
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
        self._times.touch(node.parent)

    def _forget_new(self, node: Node, blob: Blob | None) -> None:
        """The disk has no room for a new entry: as if it had never been tried."""
        self._state.nodes.unlink(node)
        if blob is not None:
            blob.release()
            self._state.spool.drop_blob(blob)

    def _put(self, node: Node, state: State) -> Put:
        key = self._state.change_key(node)
        earlier = self._state.spool.changes.get(key)
        return Put(
            key=key,
            state=state,
            attributes=node.attributes,
            size=node.size,
            headers=node.headers,
            expected=earlier.expected if earlier is not None else ABSENT,
        )

    # ----------------------------------------------------------------- removing

    async def unlink(self, parent: Node, name: str) -> Node:
        """Remove a file; who has it open keeps reading. The node that lost its place."""
        node = await self.existing(parent, name)
        if node.is_directory:
            raise OSError(errno.EISDIR, "is a directory")
        batch = Batch()
        blob = self.before_removal(node)
        self.plan_removal(node, batch)
        self._state.spool.record(batch.changes, batch.removed)
        crashpoint("unlink: recorded")
        self.drop_blob(node, blob)
        self._state.nodes.unlink(node)
        self._times.touch(parent)
        return node

    async def remove_directory(self, parent: Node, name: str) -> Node:
        """Remove an empty directory. The node that lost its place."""
        node = await self.existing(parent, name)
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        await self.must_be_empty(node)
        batch = Batch()
        self.plan_removal(node, batch)
        self._state.spool.record(batch.changes, batch.removed)
        self._state.nodes.unlink(node)
        self._times.forget(node)
        self._times.touch(parent)
        return node

    async def existing(self, parent: Node, name: str) -> Node:
        """The entry ``name``. Raises OSError (ENOENT)."""
        node = await self._directories.lookup(parent, name)
        if node is None:
            raise OSError(errno.ENOENT, "no such file")
        return node

    async def must_be_empty(self, node: Node) -> None:
        """Raise OSError (ENOTEMPTY) unless the directory has no entries, shown or not, and its marker no content."""
        assert node.directory is not None
        await self._directories.refresh(node)
        if node.directory.marker_bytes:
            path = self._state.nodes.path_of(node)
            log.warning(
                "%s stays: its object %r has %d bytes that another program stored there",
                path,
                self._state.change_key(node),
                node.directory.marker_bytes,
            )
            raise OSError(errno.ENOTEMPTY, "the directory's own object has content")
        if node.directory.children or node.directory.unshown:
            raise OSError(errno.ENOTEMPTY, "directory is not empty")

    def plan_removal(self, node: Node, batch: Batch) -> None:
        """Plan that the key of ``node`` goes away: by a DELETE, or by nothing where S3 has nothing."""
        key = self._state.change_key(node)
        change = self._state.spool.changes.get(key)
        if change is not None and change.held:
            # What S3 has there is somebody else's, and was never shown: it stays.
            batch.removed.append(key)
        elif self._is_in_store(node, key, change):
            batch.changes.append(deletion(key, self._contents.writing.expected_of(node, change)))
        else:
            batch.removed.append(key)

    def _is_in_store(self, node: Node, key: Key, change: Change | None) -> bool:
        """May S3 hold something under ``key``, now or once what is on its way arrives?"""
        if self._uploader.queue.is_sending(key):
            return True
        if change is not None and (change.expected != ABSENT or change.tried):
            return True
        if node.is_directory:
            below = self._state.spool.dependencies.below(key)
            return change is None or any(isinstance(each, Delete) for each in below)
        return change is None and node.content is not None and node.content.key == key

    def before_removal(self, node: Node) -> Blob | None:
        """A file is about to lose its name: the blob that holds what is pending, or open, of it.

        Who has it open remembers where S3 may have it by then, as its pending change does not any more.
        """
        change = self._state.change_of(node)
        file = self._state.files.of(node)
        if file is not None and change is not None:
            file.places = (change.key, *reversed(change.former))
        if file is not None and file.blob is not None:
            return file.blob
        return self._state.spool.blob_of(change)

    def drop_blob(self, node: Node, blob: Blob | None) -> None:
        """The file is gone from the tree: its blob lives only as long as somebody has it open."""
        if blob is None:
            return
        if blob.upload is not None:
            self._uploader.multipart.abandon(blob.upload)
            blob.upload = None
        file = self._state.files.of(node)
        if file is None or file.blob is not blob:
            self._state.spool.drop_blob(blob)
        else:
            # Keep the descriptor: the bytes stay readable though the file has no name.
            os.fstat(blob.fd)
            self._state.spool.durability.remove_later(blob.path)


def deletion(key: Key, expected: str | None) -> Delete:
    """The change that takes ``key`` away, where S3 holds ``expected``."""
    return Delete(key=key, expected=expected)

"""What a file is written to: a blob of its own, and the change that tells of it."""

from __future__ import annotations

from s3mount.refs import ContentRef
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import ABSENT, Change, Copy, Put, PutOrCopy, blob_id_of
from s3mount.spool.journal.states import State
from s3mount.tree.node import Node
from s3mount.vfs.listing.directories import Directories
from s3mount.vfs.open_files import OpenFile, must_be_in_place
from s3mount.vfs.state import MountState, changed


class Writing:
    """Gives open files a blob that may be written. One for each mount."""

    def __init__(self, state: MountState, directories: Directories) -> None:
        self._state = state
        self._directories = directories

    def pending_blob(self, node: Node) -> Blob | None:
        """The blob of what is pending of a file, if there is one."""
        return self._state.spool.blob_of(self._state.change_of(node))

    async def make_writable(self, file: OpenFile) -> Blob:
        """A blob that may be written now, and a change that says so. Raises OSError, S3MountError."""
        async with file.lock:
            node = file.node
            if file.blob is None:
                await self._make_blob(file)
            while self._is_being_sent(file):
                await self._go_on_in_a_copy(file)
            assert file.blob is not None
            change = self._state.change_of(node)
            if isinstance(change, Put) and change.blob_id == file.blob.id:
                self._state.spool.touch(change)
            elif node.linked:
                self._begin_change(file, change)
            else:
                must_be_in_place(node)
            return file.blob

    def _is_being_sent(self, file: OpenFile) -> bool:
        blob = file.blob
        if blob is None or not blob.is_being_sent:
            return False
        return blob_id_of(self._state.change_of(file.node)) == blob.id

    async def _go_on_in_a_copy(self, file: OpenFile) -> None:
        """S3 must not get a mixture of two states. Does nothing where the sending ended meanwhile. Raises OSError."""
        spool, original = self._state.spool, file.blob
        assert original is not None
        copy = spool.clone_blob(original)
        try:
            if copy.was_synced:
                # Before a row tells of it in place of the one that was synced.
                await spool.durability.file(copy.fd, copy.path.parent)
            change = self._state.change_of(file.node)
            if not isinstance(change, Put) or not self._is_being_sent(file):
                return
            if copy.base != original.base:
                return
            original.is_replaced = True
            file.blob, change.blob_id = copy, copy.id
            spool.touch(change)
            # The other blob goes as soon as it is sent, or S3 refused it.
            spool.save(change)
        finally:
            if file.blob is not copy:
                spool.drop_blob(copy)

    async def _make_blob(self, file: OpenFile) -> None:
        node = file.node
        if node.content is not None:
            await self._directories.know_headers_or_inherit(node)
        file.blob = self.pending_blob(node)
        if file.blob is not None:
            return
        blob = self._state.spool.new_blob()
        if node.content is not None and node.size:
            blob.base = node.content
            blob.base_limit = node.size
            blob.truncate(node.size)
        file.blob = blob
        file.stream_at = 0

    def _begin_change(self, file: OpenFile, earlier: PutOrCopy | None) -> None:
        node = file.node
        assert file.blob is not None
        self._state.spool.add_open(
            Put(
                key=self._state.nodes.key_of(node),
                state=State.OPEN,
                # Should a kill come before the kernel tells the mtime, this one is nearest.
                attributes=changed(node.attributes, mtime_ns=self._state.now_ns())
                if self._state.kernel_keeps_mtime
                else node.attributes,
                size=file.blob.size,
                blob_id=file.blob.id,
                base=file.blob.base,
                former=earlier.former if earlier else (),
                headers=node.headers or (earlier.headers if earlier else None),
                inherits=_inherited(node, earlier),
                expected=self.expected_of(node, earlier),
                expected_size=self._expected_size(node, earlier),
                first_seq=earlier.first_seq if earlier else 0,
            )
        )

    def _expected_size(self, node: Node, change: Change | None) -> int:
        if change is not None:
            return change.expected_size
        return node.content.size if node.content is not None else -1

    def expected_of(self, node: Node, change: Change | None) -> str | None:
        """What S3 is believed to hold under the key of ``node``."""
        if change is not None:
            return change.expected
        if node.is_directory:
            # Its marker may be there or not, where no listing told.
            known = node.directory
            return known.marker_etag or None if known is not None else None
        if node.content is not None and node.content.key == self._state.nodes.key_of(node):
            return node.content.etag
        return ABSENT


def _inherited(node: Node, earlier: PutOrCopy | None) -> ContentRef | None:
    """The object whose headers a change of ``node`` carries on, where they are not known yet."""
    if node.headers is not None or (earlier is not None and _has_own_attributes(earlier)):
        return None
    return earlier.inherits if earlier is not None and earlier.inherits else node.content


def _has_own_attributes(change: PutOrCopy) -> bool:
    """Are the attributes of a pending change those that the file has, and its headers all that is known?"""
    keeps_all = isinstance(change, Copy) and not change.replace_headers
    return change.inherits is None and not keeps_all

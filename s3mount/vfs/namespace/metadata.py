"""Attributes and extended attributes: changing them, and what is stored of them."""

from __future__ import annotations

import errno
import stat

from s3mount.clock import clamped_ns
from s3mount.refs import Attributes
from s3mount.s3.store import Store
from s3mount.spool.journal.changes import Copy, Put, PutOrCopy
from s3mount.spool.journal.states import Event, State
from s3mount.tree import attributes as codec
from s3mount.tree.node import Node
from s3mount.vfs.contents import Contents
from s3mount.vfs.listing.directories import Directories
from s3mount.vfs.namespace.directory_times import DirectoryTimes
from s3mount.vfs.open_files import must_be_in_place
from s3mount.vfs.state import MountState, changed

OWN_XATTR_PREFIX = "s3mount."
XATTR_NAME_PREFIX = "user."


class Metadata:
    """Changes of attributes. Every method raises OSError, or S3MountError from below."""

    def __init__(
        self,
        state: MountState,
        directories: Directories,
        contents: Contents,
        times: DirectoryTimes,
        store: Store,
    ) -> None:
        self._state = state
        self._directories = directories
        self._contents = contents
        self._times = times
        self._store = store

    async def set(self, node: Node, **fields: int) -> None:
        """Set some of mode (permission bits), uid, gid, mtime_ns, atime_ns; ctime becomes now.

        A time that cannot be kept becomes the nearest one that can.
        """
        if fields.keys() <= {"mtime_ns", "atime_ns"} and self._contents.was_refused(node):
            # The kernel's time of a write that it read for and could not: there is nothing to store.
            return
        self._contents.fold(node)
        await self._directories.know_attributes_of(node)
        if node.linked and node.is_directory:
            await self._directories.know_marker(node)
        elif node.linked and set(fields) - {"atime_ns"}:
            # Also where a listing is the truth: what is stored must survive the change of one field.
            await self._directories.know_headers(node)
        for name in fields.keys() & {"mtime_ns", "atime_ns"}:
            fields[name] = clamped_ns(fields[name])
        if "mode" in fields:
            fields["mode"] = stat.S_IFMT(node.attributes.mode) | stat.S_IMODE(fields["mode"])
        wanted = changed(node.attributes, **fields)
        is_same = wanted == node.attributes
        node.attributes = changed(wanted, ctime_ns=self._state.now_ns())
        node.attributes_known = True
        stored = {name for name in fields if name != "atime_ns"}
        if stored:
            must_be_in_place(node)
        if node.linked and not is_same and stored:
            await self._keep(node, is_of_write=stored == {"mtime_ns"})

    async def _keep(self, node: Node, *, is_of_write: bool = False) -> None:
        """Let S3 get the attributes that ``node`` has now. ``is_of_write``: they come with what was written."""
        if node.is_directory:
            self._times.store(node)
            return
        change = self._state.change_of(node)
        if change is None:
            await self._directories.know_headers(node)
            change = self._state.change_of(node)
        elif isinstance(change, Copy) and not change.replace_headers:
            await self._know_source_headers(node, change)
            change = self._state.change_of(node)
        must_be_in_place(node)
        if not node.linked:
            return
        if change is None:
            self._store_clean(node)
        else:
            self._amend(node, change, is_of_write=is_of_write)

    async def _know_source_headers(self, node: Node, change: Copy) -> None:
        if change.headers is None:
            wanted = node.attributes
            head = await self._store.head(change.source.key)
            if head.headers is not None and head.etag == change.source.etag:
                node.headers = head.headers
            node.attributes = wanted

    def _store_clean(self, node: Node) -> None:
        """Nothing is pending: the object is copied onto itself with new headers."""
        if node.content is None:
            return
        self._mark_parent(node)
        self._state.spool.record(
            [
                Copy(
                    key=self._state.nodes.key_of(node),
                    source=node.content,
                    attributes=node.attributes,
                    headers=node.headers,
                    expected=self._contents.writing.expected_of(node, None),
                )
            ]
        )

    def _amend(self, node: Node, change: PutOrCopy, *, is_of_write: bool) -> None:
        """Something is pending anyway: it takes the new attributes along.

        The time of a write, which the kernel tells before each flush and fsync, is journalled with the bytes.
        """
        change.attributes = node.attributes
        if isinstance(change, Copy):
            change.replace_headers = True
            change.headers = node.headers
        file = self._state.files.of(node)
        if file is not None and file.writers and isinstance(change, Put):
            is_journalled_soon = is_of_write and change.state is State.OPEN
            self._state.spool.touch(change, content=False)
            if not is_journalled_soon:
                self._state.spool.save(change)
        else:
            self._state.spool.apply(change, Event.WRITE)
            self._state.spool.apply(change, Event.CLOSE)
            self._state.spool.record([change])

    def _mark_parent(self, node: Node) -> None:
        """A file whose attributes are stored needs a directory that says so."""
        parent = node.parent
        if parent is not None and parent.directory is not None:
            known = parent.directory
            if not known.stores_attributes:
                known.stores_attributes = True
                self._times.store(parent)

    async def link_target(self, node: Node) -> bytes:
        """Where a symbolic link leads. Raises OSError (EINVAL: it is none)."""
        await self._directories.know_attributes_of(node)
        if not stat.S_ISLNK(node.attributes.mode):
            raise OSError(errno.EINVAL, "not a symbolic link")
        target = codec.symlink_target_of(node.headers)
        return await self._contents.read_whole(node) if target is None else target

    # ------------------------------------------------------- extended attributes

    async def get_xattr(self, node: Node, name: str) -> bytes:
        """One extended attribute. Raises OSError (ENODATA), StoreError of ``s3mount.restore``, which asks S3."""
        if name.startswith(OWN_XATTR_PREFIX):
            own = name[len(OWN_XATTR_PREFIX) :]
            value = (
                await self._archive_of(node) if own == "restore" else self.describe(node).get(own)
            )
            if value is None:
                raise OSError(errno.ENODATA, "no such attribute")
            return str(value).encode()
        await self._directories.know_attributes_of(node)
        try:
            return node.attributes.xattrs[name]
        except KeyError:
            raise OSError(errno.ENODATA, "no such attribute") from None

    async def _archive_of(self, node: Node) -> str | None:
        """What ``ObjectInfo.archive`` tells of a file that has nothing pending."""
        content = node.content
        if node.is_directory or content is None or self._state.change_of(node) is not None:
            return None
        return (await self._store.head(content.key, version_id=content.version_id)).archive

    async def list_xattrs(self, node: Node) -> list[str]:
        """Names of those that can be copied: ours, which cannot be set, make `rsync -X` and `cp -a` fail."""
        await self._directories.know_attributes_of(node)
        return list(node.attributes.xattrs)

    async def set_xattr(self, node: Node, name: str, value: bytes) -> None:
        """Set one. Raises OSError: EOPNOTSUPP (not ``user.*``), EPERM (ours), ENOSPC (2 KiB are full)."""
        self._must_be_user(name)
        await self._directories.know_attributes_of(node)
        xattrs = {**node.attributes.xattrs, name: value}
        self._must_fit(node, changed(node.attributes, xattrs=xattrs))
        await self._set_xattrs(node, xattrs)

    async def remove_xattr(self, node: Node, name: str) -> None:
        """Remove one. Raises OSError: ENODATA, EOPNOTSUPP, EPERM."""
        self._must_be_user(name)
        await self._directories.know_attributes_of(node)
        if name not in node.attributes.xattrs:
            raise OSError(errno.ENODATA, "no such attribute")
        await self._set_xattrs(node, {n: v for n, v in node.attributes.xattrs.items() if n != name})

    async def _set_xattrs(self, node: Node, xattrs: dict[str, bytes]) -> None:
        must_be_in_place(node)
        node.attributes = changed(node.attributes, xattrs=xattrs, ctime_ns=self._state.now_ns())
        if node.linked:
            await self._keep(node)

    @staticmethod
    def _must_be_user(name: str) -> None:
        if name.startswith(OWN_XATTR_PREFIX):
            raise OSError(errno.EPERM, "s3mount.* attributes are read-only")
        if not name.startswith(XATTR_NAME_PREFIX):
            raise OSError(errno.EOPNOTSUPP, "only user.* attributes are kept")

    @staticmethod
    def _must_fit(node: Node, attributes: Attributes) -> None:
        if not codec.does_fit(attributes, node.headers):
            raise OSError(errno.ENOSPC, "S3 keeps at most 2 KiB of metadata with an object")

    def describe(self, node: Node) -> dict[str, str | None]:
        """Where a node stands: key, etag, version_id, state and error, as text or ``None``."""
        change = self._state.change_of(node)
        content = node.content
        return {
            "key": self._state.change_key(node) if node.linked else None,
            "etag": content.etag if content is not None else None,
            "version_id": content.version_id if content is not None else None,
            "state": "stored" if change is None else str(change.state),
            "error": change.error or None if change is not None else None,
        }

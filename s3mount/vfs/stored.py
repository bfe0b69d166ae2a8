"""Attributes that are stored with objects: learnt by memory or by HEADs in parallel, where there are some."""

from __future__ import annotations

import logging
import stat

import trio

from s3mount.errors import NoSuchKeyError, S3MountError, StoreError
from s3mount.refs import Key, ObjectHeaders, ObjectInfo
from s3mount.s3.store import Store
from s3mount.slices import sliced
from s3mount.spool.journal.changes import PutOrCopy
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.tasks import first_error
from s3mount.tree import attributes as codec
from s3mount.tree.listing import Listing
from s3mount.tree.memory import HeadMemory
from s3mount.tree.node import Node, names_in
from s3mount.vfs.prefetches import Prefetches
from s3mount.vfs.state import OWN_DATE_SLACK_NS, MountState, changed

log = logging.getLogger(__name__)

HEADS_MAX = 128
"""HEAD requests on their way at once for one directory, if the store's window allows: 128 at 20 ms are 6,400/s."""
HEADED_ONE_BY_ONE_MAX = 2
"""After so many single HEADs in a directory the rest of it comes in one batch."""


class StoredAttributes:
    """What objects and markers carry, asked for only where something is stored."""

    def __init__(
        self,
        state: MountState,
        prefetches: Prefetches,
        store: Store,
        memory: HeadMemory,
        capabilities: KnownCapabilities,
    ) -> None:
        self._state = state
        self._store = store
        self._memory = memory
        self._capabilities = capabilities
        self._prefetches = prefetches
        self._said: set[type[StoreError]] = set()

    async def read_marker(self, directory: Node, listing: Listing, finished: set[Key]) -> None:
        """Learn from the directory's marker whether attributes are stored below it."""
        known = directory.directory
        assert known is not None
        marker = listing.marker
        key = self._state.change_key(directory)
        is_ours = key in finished or self._state.change_of(directory) is not None
        if directory.parent is None and not self._state.nodes.prefix:
            if key.rstrip("/") not in listing.directories:
                known.stores_attributes = is_ours or bool(known.stores_attributes)
                return
            if known.stores_attributes:
                return
            marker = ObjectInfo(key, 0, "", 0)
        known.marker_bytes = 0 if marker is None else marker.size
        if marker is None:
            known.stores_attributes = is_ours
            known.marker_etag = ""
            return
        is_known = known.stores_attributes is not None and known.marker_etag == marker.etag
        if is_known and marker.etag:
            return
        headers = None
        try:
            headers = await self._headers_of(marker)
            known.is_marker_closed = False
        except StoreError as error:
            self._do_without(key, error)
            known.is_marker_closed = not isinstance(error, NoSuchKeyError)
        is_changed = self._state.change_of(directory) is not None
        known.marker_etag = marker.etag
        known.stores_attributes = is_changed or (headers is not None and codec.are_stored(headers))
        if headers is not None and not is_changed:
            default = self._state.file_attributes(
                marker.last_modified_ns or self._state.mounted_ns, stat.S_IFDIR
            )
            directory.attributes = codec.decode(headers, default)
            directory.headers = headers
            directory.attributes_known = True

    async def know_marker(self, directory: Node) -> None:
        """Learn what a directory's marker carries, unless that is known or replaced here.

        A change would replace it, so what may not be read may not be changed either. Raises StoreError.
        """
        if directory.headers is not None or self._state.change_of(directory) is not None:
            return
        try:
            head = await self._store.head(self._state.change_key(directory))
        except NoSuchKeyError:
            return
        if head.headers is not None and self._state.change_of(directory) is None:
            self._apply(directory, head.headers)

    async def _headers_of(self, info: ObjectInfo) -> ObjectHeaders | None:
        """Headers by memory or HEAD. Raises StoreError, also when the object is gone or may not be read."""
        if info.etag:
            remembered = self._memory.recall(info.key, info.etag, info.last_modified_ns)
            if remembered is not None:
                return remembered
        head = await self._store.head(info.key)
        self._remember([head])
        return head.headers

    def _remember(self, heads: list[ObjectInfo]) -> None:
        """Keep headers for later mounts, unless they may change again within the same LastModified."""
        settled_ns = self._state.now_ns() - OWN_DATE_SLACK_NS
        self._memory.remember([each for each in heads if each.last_modified_ns < settled_ns])

    def wants_attributes(self, node: Node) -> bool:
        """Is there more to know of ``node`` than a listing told?"""
        if node.attributes_known or node.parent is None or not node.linked:
            return False
        policy = self._state.config.attributes
        if policy != "auto":
            return policy == "always"
        if not self._capabilities.markers_tell:
            # No marker can tell whether anything is stored below it.
            return True
        parent = node.parent.directory
        if parent is None:
            return False
        if not self._capabilities.decided.is_set() and parent.marker_etag:
            # A marker that tells nothing may have lost what was stored with it.
            return True
        # Not told yet counts as stored: a guess would show a link as a file.
        return parent.stores_attributes is not False

    async def know_attributes_of(self, node: Node) -> None:
        """Learn what is stored with ``node``; after a few in one directory, with all of it at once."""
        if not self.wants_attributes(node) or node.parent is None:
            return
        parent = node.parent.directory
        assert parent is not None
        parent.headed_one_by_one += 1
        if parent.headed_one_by_one <= HEADED_ONE_BY_ONE_MAX:
            await self.know_attributes([node])
        else:
            await self.know_all(node.parent)

    async def know_all(self, directory: Node) -> None:
        """Learn what is stored with every entry of ``directory``. Raises StoreError."""
        known = directory.directory
        assert known is not None
        policy = self._state.config.attributes
        is_unknown = not self._capabilities.decided.is_set()
        may_be_lost = is_unknown and bool(known.marker_etag)
        is_told_not = (
            known.stores_attributes is False and self._capabilities.markers_tell and not may_be_lost
        )
        if policy == "never" or (policy == "auto" and is_told_not):
            # What has no node yet has nothing stored; to look at all of them would give them one.
            await self.know_attributes(list(known.children.nodes.values()))
        else:
            nodes: list[Node] = []
            async for names in sliced(await names_in(known.children), 64):
                found = (known.children.get(name) for name in names)
                nodes += [node for node in found if node is not None]
            await self.know_attributes(nodes)

    async def know_attributes(self, nodes: list[Node]) -> None:
        """Learn what is stored with each of ``nodes``, by memory or by HEADs in parallel. Raises StoreError."""
        unknown: list[Node] = []
        async for part in sliced(nodes, 64):
            wanted = [node for node in part if self.wants_attributes(node)]
            unknown += [node for node in wanted if not self._recall(node)]
        if not unknown or self._store.outage:
            # Without S3 they are shown as the listing told; what is stored is asked for when it is back.
            return
        found: list[ObjectInfo] = []
        todo = iter(unknown)

        async def learn() -> None:
            for node in todo:
                head = await self._look_at(node, is_alone=len(unknown) == 1)
                if head is not None:
                    found.append(head)
                if len(found) >= HEADS_MAX:
                    self._remember(found)
                    found.clear()

        try:
            with first_error():
                async with trio.open_nursery() as nursery:
                    for _ in range(min(HEADS_MAX, len(unknown))):
                        nursery.start_soon(learn)
        finally:
            self._remember(found)

    def _recall(self, node: Node) -> bool:
        if node.content is None:
            return False
        headers = self._memory.recall(node.content.key, node.content.etag, node.last_modified_ns)
        if headers is None:
            return False
        self._apply(node, headers)
        return True

    def _apply(self, node: Node, headers: ObjectHeaders) -> None:
        node.headers = headers
        if node.attributes_known:
            # What it has now is newer than what is stored.
            return
        change = self._state.change_of(node)
        if change is not None and change.attributes is not None:
            node.attributes = change.attributes
            node.attributes_known = True
            return
        kind = stat.S_IFMT(node.attributes.mode)
        default = self._state.file_attributes(node.last_modified_ns or self._state.mounted_ns, kind)
        node.attributes = codec.decode(headers, default)
        node.attributes_known = True

    def learned(self, node: Node, info: ObjectInfo) -> None:
        """A GET of the file's bytes told its headers as well, which answers what HEAD would be asked for."""
        if info.headers is None or node.content is None or node.content.etag != info.etag:
            return
        if node.headers is None or not node.attributes_known:
            if self.wants_attributes(node):
                self._remember([info])
            self._apply(node, info.headers)

    async def glance(self, node: Node, *, is_alone: bool) -> ObjectInfo | None:
        """See ``Prefetches.glance``; what that tells is learned."""
        return await self._prefetches.glance(node, self._glanced, is_alone=is_alone)

    def _glanced(self, node: Node, info: ObjectInfo | None) -> None:
        if info is not None:
            self.learned(node, info)

    async def head(self, node: Node, *, is_alone: bool = False) -> ObjectInfo | None:
        """HEAD the object of ``node`` and learn from it; ``None`` when there is none. Raises StoreError.

        Where its bytes are fetched ahead, or it is small and asked for alone, their GET tells the same.
        """
        glanced = await self.glance(node, is_alone=is_alone)
        if glanced is not None and glanced.headers is not None and node.headers is not None:
            return glanced
        content = node.content
        try:
            head = await self._store.head(self._key_of(node))
        except NoSuchKeyError:
            node.attributes_known |= node.content == content
            return None
        if head.headers is not None and (node.content is None or node.content.etag == head.etag):
            self._apply(node, head.headers)
        return head

    async def _look_at(self, node: Node, *, is_alone: bool) -> ObjectInfo | None:
        """As ``head``; where an object that is listed may not be looked at, what the listing told has to do."""
        content = node.content
        try:
            return await self.head(node, is_alone=is_alone)
        except StoreError as error:
            self._do_without(self._key_of(node), error)
            node.attributes_known |= node.content == content
            return None

    def _do_without(self, key: Key, error: StoreError) -> None:
        """Nothing but the log tells of what is gone or may not be read. Raises ``error`` when it may pass."""
        if error.retryable:
            raise error
        if isinstance(error, NoSuchKeyError):
            return
        level = logging.DEBUG if type(error) in self._said else logging.WARNING
        self._said.add(type(error))
        log.log(level, "attributes of %r and others cannot be read: %s", key, error.describe())

    def _key_of(self, node: Node) -> Key:
        return node.content.key if node.content is not None else self._state.nodes.key_of(node)

    async def know_headers_or_inherit(self, node: Node) -> None:
        """As ``know_headers``; while S3 cannot be asked, the change of the file is to inherit them.

        Raises StoreError that trying again does not help against.
        """
        if self._store.outage:
            return
        try:
            await self.know_headers(node)
        except S3MountError as error:
            if not error.retryable:
                raise
            log.info("what is stored with %r is asked for later: %s", node.name, error)

    async def inherit(self, change: PutOrCopy) -> None:
        """Fetch what ``change`` inherits, unless that is done. Raises StoreError: also where it may not be read.

        Where somebody else replaced that object meanwhile, there is nothing to inherit: the upload meets theirs.
        """
        inherited = change.inherits
        if inherited is None:
            return
        try:
            there = await self._store.head(inherited.key, version_id=inherited.version_id)
        except NoSuchKeyError:
            there = None
        if change.inherits != inherited:
            return
        change.inherits = None
        node = self._state.find(change.key)
        if there is None or there.headers is None or there.etag != inherited.etag:
            return
        change.headers = there.headers
        own = change.attributes
        if own is not None:
            stored = codec.decode(there.headers, own)
            if stat.S_IFMT(stored.mode) == stat.S_IFMT(own.mode):
                change.attributes = changed(
                    stored, mtime_ns=own.mtime_ns, ctime_ns=own.ctime_ns, atime_ns=own.atime_ns
                )
        if node is not None and self._state.change_of(node) is change:
            node.headers = change.headers
            if change.attributes is not None:
                node.attributes = change.attributes
                node.attributes_known = True

    async def know_headers(self, node: Node) -> None:
        """Learn the headers of the object of a file, so that foreign metadata survive a change of it.

        Raises StoreError: what may not be read may not be replaced either.
        """
        change = self._state.change_of(node)
        if change is not None and change.inherits is not None:
            await self.inherit(change)
            return
        if node.headers is None and node.content is not None and not self._recall(node):
            head = await self.head(node)
            if head is not None:
                self._remember([head])

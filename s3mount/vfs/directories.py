"""Directories: what S3 lists, laid over by what is pending, kept fresh and given attributes.

A listing that was under way while something was uploaded shows either state; so every key that was
finished meanwhile keeps its local state, and is looked at again by the next listing.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Callable, Iterable

import trio

from s3mount.errors import NetworkError, NoSuchKeyError, S3MountError, StoreError
from s3mount.refs import Key, ObjectHeaders, ObjectInfo
from s3mount.spool.changes import Change
from s3mount.tree import attributes as codec
from s3mount.tree.listing import Listing, list_directory
from s3mount.tree.names import NAME_BYTES_MAX, check_key, is_name
from s3mount.tree.nodes import Node
from s3mount.vfs.state import MountState

log = logging.getLogger(__name__)

LISTING_SHARE = 4.0
"""A listing that took t seconds is believed for at least 4 t, so that a large directory in use does
not spend more than a fifth of its time being listed."""
LISTING_PATIENCE_S = 1.0
"""A lookup in a directory that takes longer than this to list asks for its one name instead."""
ASK_PATIENCE_S = 2.0
OFFLINE_BELIEF_S = 5.0
"""While S3 cannot be reached, a directory that was listed before is shown as it was for this long
before it is asked for again."""
REFRESH_AHEAD = 2.0
"""A directory in use is listed again when its entries are good for less than this many listings' time."""
HEADS_MAX = 64
"""HEAD requests on their way at once for one directory: 64 at 20 ms are 3,200/s."""
HEADED_ONE_BY_ONE_MAX = 2
"""After so many single HEADs in a directory the rest of it comes in one batch."""
OWN_DATE_SLACK_NS = 2_000_000_000
"""LastModified may differ from the Date of the PUT's answer by this much and still be ours."""


class Directories:
    """Lookups and listings of one mount."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self._running: dict[int, trio.Event] = {}
        self._finished_during: list[set[Key]] = []
        self._warned: set[Key] = set()
        self.ignored_keys = 0
        state.on_finished.append(self._note_finished)

    def _note_finished(self, key: Key) -> None:
        for keys in self._finished_during:
            keys.add(key)

    def watch_finished(self) -> tuple[set[Key], Callable[[], None]]:
        """A set that collects the keys finished from now on, and how to end that."""
        keys: set[Key] = set()
        self._finished_during.append(keys)

        def end() -> None:
            self._finished_during[:] = [each for each in self._finished_during if each is not keys]

        return keys, end

    # --------------------------------------------------------------- freshness

    @staticmethod
    def now() -> float:
        """The time that ``listed_at`` is measured in."""
        return trio.current_time()

    def fresh_for_s(self, directory: Node) -> float:
        """How long the entries of ``directory`` are still believed, in seconds; negative: too old."""
        known = directory.directory
        assert known is not None
        ttl_s = max(self._state.config.metadata_ttl_s, LISTING_SHARE * known.listing_s)
        return max(known.listed_at + ttl_s, known.believed_until) - trio.current_time()

    async def refresh(self, directory: Node) -> None:
        """Make the entries of ``directory`` no older than the metadata TTL. Raises StoreError, OSError."""
        while self.fresh_for_s(directory) < 0:
            running = self._running.get(directory.inode)
            if running is not None:
                await running.wait()
                continue
            done = self._running[directory.inode] = trio.Event()
            try:
                await self._list(directory)
            finally:
                del self._running[directory.inode]
                done.set()

    async def _list(self, directory: Node) -> None:
        known = directory.directory
        assert known is not None
        if not directory.linked:
            known.listed_at = float("inf")
            return
        started = trio.current_time()
        finished, end = self.watch_finished()
        try:
            key = self._state.nodes.key_of(directory)
            # What is finished while S3 lists must have a node by then, or it would be missed.
            self._show_pending(directory, key)
            listing = await list_directory(self._state.store, key)
            await self._read_marker(directory, listing, finished)
            if directory.linked and self._state.nodes.key_of(directory) == key:
                self._merge(directory, key, listing, finished)
                known.listed_at = started
                known.listing_s = trio.current_time() - started
        finally:
            end()

    async def _read_marker(self, directory: Node, listing: Listing, finished: set[Key]) -> None:
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
        if marker is None:
            known.stores_attributes = is_ours
            known.marker_etag = ""
            return
        is_known = known.stores_attributes is not None and known.marker_etag == marker.etag
        if is_known and marker.etag:
            return
        headers = await self._headers_of(marker)
        known.marker_etag = marker.etag
        known.stores_attributes = headers is not None and codec.are_stored(headers)
        if headers is not None and self._state.change_of(directory) is None:
            default = self._state.file_attributes(
                marker.last_modified_ns or self._state.mounted_ns, stat.S_IFDIR
            )
            directory.attributes = codec.decode(headers, default)
            directory.headers = headers
            directory.attributes_known = True

    async def _headers_of(self, info: ObjectInfo) -> ObjectHeaders | None:
        """Headers by memory or HEAD; ``None`` when the object is gone or may not be read."""
        if info.etag:
            remembered = self._state.memory.recall(info.key, info.etag, info.last_modified_ns)
            if remembered is not None:
                return remembered
        try:
            head = await self._state.store.head(info.key)
        except NoSuchKeyError:
            return None
        self._remember([head])
        return head.headers

    def _remember(self, heads: list[ObjectInfo]) -> None:
        """Keep headers for later mounts, unless they may change again within the same LastModified."""
        settled_ns = self._state.now_ns() - OWN_DATE_SLACK_NS
        self._state.memory.remember([each for each in heads if each.last_modified_ns < settled_ns])

    # ------------------------------------------------------------------ merging

    def _merge(self, directory: Node, prefix: Key, listing: Listing, finished: set[Key]) -> None:
        """Bring the entries of ``directory`` to what S3 lists and what is pending."""
        known = directory.directory
        assert known is not None
        seen: set[str] = set()
        for name, info in listing.files.items():
            if info.key in self._state.spool.changes or info.key in finished:
                continue
            self._show_file(directory, name, info)
            seen.add(name)
        for name in sorted(listing.directories):
            key = f"{prefix}{name}/"
            change = self._state.spool.changes.get(key)
            if self._state.is_hidden(directory, name) or key in finished:
                continue
            if change is not None and change.op == "delete":
                continue
            node = known.children.get(name)
            if (node is None or not node.is_directory) and change is not None:
                self._add_pending(directory, name, change)
            else:
                self._show_directory(directory, name)
            seen.add(name)
        seen |= self._show_pending(directory, prefix)
        for name, node in list(known.children.items()):
            if name in seen or self._is_kept(node, prefix, name, finished):
                continue
            self._state.nodes.replace(node)
        known.unshown = len(listing.ignored)
        self._report_ignored(listing.ignored)

    def _show_file(self, directory: Node, name: str, info: ObjectInfo) -> None:
        assert directory.directory is not None
        node = directory.directory.children.get(name)
        if node is not None:
            content = node.content
            is_same = content is not None and content.key == info.key and content.etag == info.etag
            if content is not None and is_same and content.size == info.size:
                self._note_date(node, info)
                return
            if self._state.is_written(node):
                # What the writer closes must not get lost: its upload will meet theirs.
                return
            self._state.nodes.replace(node)
        node = self._state.nodes.add(
            directory, name, self._state.file_attributes(info.last_modified_ns)
        )
        node.attributes_known = False
        node.content = info.ref
        node.size = info.size
        node.last_modified_ns = info.last_modified_ns
        node.storage_class = info.storage_class

    def _note_date(self, node: Node, info: ObjectInfo) -> None:
        """The same bytes with another date: either our own upload, or somebody changed its metadata."""
        node.storage_class = info.storage_class
        if node.last_modified_ns == info.last_modified_ns:
            return
        if abs(node.last_modified_ns - info.last_modified_ns) > OWN_DATE_SLACK_NS:
            node.attributes_known = False
            node.headers = None
        elif node.headers is not None:
            remembered = ObjectInfo(
                info.key, info.size, info.etag, info.last_modified_ns, headers=node.headers
            )
            self._state.memory.remember([remembered])
        node.last_modified_ns = info.last_modified_ns

    def _show_directory(self, parent: Node, name: str) -> None:
        assert parent.directory is not None
        node = parent.directory.children.get(name)
        if node is None:
            self._add_directory(parent, name)
        elif not node.is_directory and not self._state.is_written(node):
            self._state.nodes.replace(node)
            self._add_directory(parent, name)

    def _add_directory(self, parent: Node, name: str) -> None:
        attributes = self._state.file_attributes(self._state.mounted_ns, stat.S_IFDIR)
        self._state.nodes.add(parent, name, attributes).attributes_known = False

    def _show_pending(self, directory: Node, prefix: Key) -> set[str]:
        """Add a node for every pending file or directory below that has none; all their names."""
        assert directory.directory is not None
        names = set()
        for change in list(self._state.spool.below(prefix)):
            name = change.key[len(prefix) :].rstrip("/")
            if change.op == "delete" or self._state.is_hidden(directory, name) or not name:
                continue
            names.add(name)
            if name not in directory.directory.children:
                self._add_pending(directory, name, change)
        for key in self._state.spool.directories_in(prefix):
            name = key[len(prefix) : -1]
            if not self._state.is_hidden(directory, name):
                names.add(name)
                if name not in directory.directory.children:
                    self._add_directory(directory, name)
        return names

    def _add_pending(self, directory: Node, name: str, change: Change) -> None:
        assert change.attributes is not None
        node = self._state.nodes.add(directory, name, change.attributes)
        node.size = change.size
        node.content = change.source if change.op == "copy" else None
        node.headers = change.headers
        node.storage_class = change.storage_class

    def _is_kept(self, node: Node, prefix: Key, name: str, finished: set[Key]) -> bool:
        if not node.is_directory:
            return f"{prefix}{name}" in finished or self._state.is_written(node)
        key = f"{prefix}{name}/"
        return self._state.spool.implies(key) or any(each.startswith(key) for each in finished)

    def _report_ignored(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if key not in self._warned and len(self._warned) < 10_000:
                self._warned.add(key)
                self.ignored_keys += 1
                log.warning("the key %r is no path that can be shown; it is left alone", key)

    # ----------------------------------------------------------------- lookups

    async def lookup(self, directory: Node, name: str) -> Node | None:
        """The entry ``name``, or ``None``. Raises OSError (ENOTDIR, ENAMETOOLONG), StoreError."""
        known = directory.directory
        if known is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        if len(name.encode()) > NAME_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, "name is longer than 255 bytes")
        if not is_name(name) or self._state.is_hidden(directory, name):
            return None
        left_s = self.fresh_for_s(directory)
        if left_s < 0:
            await self._refresh_or_ask(directory, name)
        elif left_s < REFRESH_AHEAD * known.listing_s:
            self._refresh_ahead(directory)
        return known.children.get(name)

    def _refresh_ahead(self, directory: Node) -> None:
        """List a directory in use again before its entries are too old, so that no lookup waits for it."""
        if self._state.nursery is None or directory.inode in self._running:
            return
        self._running[directory.inode] = trio.Event()

        async def ahead() -> None:
            try:
                await self._list(directory)
            except (S3MountError, OSError) as error:
                # Nobody waits for it; whoever needs it next asks again and is told.
                log.info("listing ahead failed: %s", error)
            finally:
                self._running.pop(directory.inode).set()

        self._state.nursery.start_soon(ahead)

    async def _refresh_or_ask(self, directory: Node, name: str) -> None:
        """Refresh the directory, or, when that takes long, just this entry of it."""
        nursery = self._state.nursery
        if nursery is None:
            await self.refresh(directory)
            return
        failed: list[Exception] = []
        done = trio.Event()

        async def refresh() -> None:
            try:
                await self.refresh(directory)
            except (S3MountError, OSError) as error:
                failed.append(error)
            finally:
                done.set()

        nursery.start_soon(refresh)
        with trio.move_on_after(LISTING_PATIENCE_S):
            await done.wait()
        if failed:
            self._believe_on(directory, failed[0])
        elif not done.is_set():
            await self._ask_in_time(directory, name)

    async def _ask_in_time(self, directory: Node, name: str) -> None:
        """Ask for one entry; a directory that was listed before is believed when S3 does not answer."""
        assert directory.directory is not None
        patience_s = (
            ASK_PATIENCE_S if directory.directory.listed_at > float("-inf") else float("inf")
        )
        try:
            with trio.move_on_after(patience_s) as waited:
                await self._ask_for(directory, name)
        except S3MountError as error:
            self._believe_on(directory, error)
            return
        if waited.cancelled_caught:
            self._believe_on(directory, NetworkError("S3 does not answer in time"))

    def _believe_on(self, directory: Node, error: Exception) -> None:
        """Without S3, what was listed before is believed a while longer: local work goes on."""
        known = directory.directory
        assert known is not None
        was_listed = known.listed_at > float("-inf")
        if not was_listed or not isinstance(error, S3MountError) or not error.retryable:
            raise error
        path = self._state.nodes.path_of(directory)
        log.warning("%s is shown as it was last listed: %s", path, error)
        known.believed_until = trio.current_time() + OFFLINE_BELIEF_S

    async def _ask_for(self, directory: Node, name: str) -> None:
        """Learn about one entry by two small listings: its key, and the keys below it."""
        assert directory.directory is not None
        prefix = self._state.nodes.key_of(directory)
        key = check_key(prefix + name)
        finished, end = self.watch_finished()
        self._show_pending(directory, prefix)
        listing = Listing()
        try:

            async def as_file() -> None:
                page = await self._state.store.list_page(key, max_keys=1)
                if page.objects and page.objects[0].key == key:
                    listing.files[name] = page.objects[0]

            async def as_directory() -> None:
                page = await self._state.store.list_page(f"{key}/", max_keys=1)
                if page.objects:
                    listing.directories.add(name)

            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(as_file)
                    nursery.start_soon(as_directory)
            except* S3MountError as errors:
                raise errors.exceptions[0] from None
        finally:
            end()
        pending = self._state.spool.changes
        if key in pending or f"{key}/" in pending or {key, f"{key}/"} & finished:
            self._show_pending(directory, prefix)
            return
        # A listing that began before this answer knows less.
        self._note_finished(key)
        self._note_finished(f"{key}/")
        node = directory.directory.children.get(name)
        if name in listing.directories:
            self._show_directory(directory, name)
        elif name in listing.files:
            self._show_file(directory, name, listing.files[name])
        elif node is not None and not self._is_kept(node, prefix, name, finished):
            self._state.nodes.replace(node)

    async def names(self, directory: Node) -> list[str]:
        """The names in a fresh ``directory``, with attributes known. Raises StoreError, OSError."""
        if directory.directory is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        try:
            await self.refresh(directory)
        except S3MountError as error:
            self._believe_on(directory, error)
        children = directory.directory.children
        await self.know_attributes(list(children.values()))
        return sorted(children)

    # -------------------------------------------------------------- attributes

    def wants_attributes(self, node: Node) -> bool:
        """Is there more to know of ``node`` than a listing told?"""
        if node.attributes_known or node.parent is None or not node.linked:
            return False
        policy = self._state.config.attributes
        if policy != "auto":
            return policy == "always"
        parent = node.parent.directory
        # Not told yet counts as stored: a guess would show a link as a file.
        return parent is not None and parent.stores_attributes is not False

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
            await self.know_attributes(list(parent.children.values()))

    async def know_attributes(self, nodes: list[Node]) -> None:
        """Learn what is stored with each of ``nodes``, by memory or by HEADs in parallel. Raises StoreError."""
        wanted = [node for node in nodes if self.wants_attributes(node)]
        unknown = [node for node in wanted if not self._recall(node)]
        if not unknown:
            return
        slots = trio.CapacityLimiter(HEADS_MAX)
        found: list[ObjectInfo] = []

        async def learn(node: Node) -> None:
            async with slots:
                head = await self.head(node, is_alone=len(unknown) == 1)
                if head is not None:
                    found.append(head)

        try:
            async with trio.open_nursery() as nursery:
                for node in unknown:
                    nursery.start_soon(learn, node)
        except* S3MountError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._remember(found)

    def _recall(self, node: Node) -> bool:
        if node.content is None:
            return False
        headers = self._state.memory.recall(
            node.content.key, node.content.etag, node.last_modified_ns
        )
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

    async def head(self, node: Node, *, is_alone: bool = False) -> ObjectInfo | None:
        """HEAD the object of ``node`` and learn from it; ``None`` when there is none. Raises StoreError.

        Where its bytes are fetched ahead, or it is small and asked for alone, their GET tells the same.
        """
        if self._state.glance is not None:
            glanced = await self._state.glance(node, is_alone)
            if glanced is not None and glanced.headers is not None and node.headers is not None:
                return glanced
        key = node.content.key if node.content is not None else self._state.nodes.key_of(node)
        try:
            head = await self._state.store.head(key)
        except NoSuchKeyError:
            node.attributes_known = True
            return None
        except StoreError as error:
            if error.retryable:
                raise
            # Listed but not to be looked at: what the listing told has to do.
            log.warning("attributes of %r cannot be read: %s", key, error.describe())
            node.attributes_known = True
            return None
        if head.headers is not None and (node.content is None or node.content.etag == head.etag):
            self._apply(node, head.headers)
        return head

    async def know_headers(self, node: Node) -> None:
        """Learn the headers of the object of a file, so that foreign metadata survive a change of it."""
        if node.headers is None and node.content is not None and not self._recall(node):
            head = await self.head(node)
            if head is not None:
                self._remember([head])

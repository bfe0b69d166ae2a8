"""Directories: what S3 lists, laid over by what is pending, kept fresh and given attributes.

A listing that was under way while something was uploaded shows either state; so every key that was
finished meanwhile keeps its local state, and is looked at again by the next listing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections import OrderedDict

import trio

from s3mount.errors import NetworkError, NoSuchKeyError, S3MountError
from s3mount.refs import Key
from s3mount.s3.store import Store
from s3mount.slices import in_order
from s3mount.tasks import first_error
from s3mount.tree.listing import Listing, list_directory
from s3mount.tree.names import NAME_BYTES_MAX, check_key, is_name
from s3mount.tree.node import Block, Node, names_in
from s3mount.vfs.finished import Watch
from s3mount.vfs.listing.list_readahead import ListReadahead
from s3mount.vfs.listing.merging import Merger
from s3mount.vfs.open_files import must_be_in_place
from s3mount.vfs.state import MountState
from s3mount.vfs.stored import StoredAttributes

log = logging.getLogger(__name__)

LISTING_PATIENCE_S = 1.0
"""A lookup in a directory that takes longer than this to list asks for its one name instead."""
ASK_PATIENCE_S = 2.0
OFFLINE_BELIEF_S = 5.0
"""While S3 cannot be reached, a directory that was listed before is shown as it was for this long
before it is asked for again."""
LOOKS_MAX = 3
"""What somebody else replaces at every look is given up after so many: who opens it is told ESTALE."""
ASKED_MAX = 4096
"""Of so many files it is remembered when they were asked for before an open."""
REFRESH_AHEAD = 2.0
"""A directory in use is listed again when its entries are good for less than this many listings' time."""


class Directories:
    """Lookups and listings of one mount."""

    def __init__(
        self,
        state: MountState,
        store: Store,
        attributes: StoredAttributes,
        merger: Merger,
        list_readahead: ListReadahead,
    ) -> None:
        self._state = state
        self._store = store
        self._running: dict[int, trio.Event] = {}
        self._finished = state.finished
        self._merger = merger
        self._walks = list_readahead
        self._forgotten = 0
        self._asked_for: OrderedDict[int, float] = OrderedDict()
        self.attributes = attributes
        self.know_attributes_of = self.attributes.know_attributes_of
        self.know_headers = self.attributes.know_headers
        self.know_headers_or_inherit = self.attributes.know_headers_or_inherit
        self.know_marker = self.attributes.know_marker
        self.head = self.attributes.head
        self.learned = self.attributes.learned

    def watch_finished(self) -> Watch:
        """Collects the keys finished from now on, as long as it is held."""
        return self._finished.watch()

    @property
    def ignored_keys(self) -> int:
        """How many keys were seen that are no path."""
        return self._merger.ignored_keys

    # --------------------------------------------------------------- freshness

    @staticmethod
    def now() -> float:
        """The time that ``listed_at`` is measured in."""
        return trio.current_time()

    def fresh_for_s(self, directory: Node) -> float:
        """How long the entries of ``directory`` are still believed, in seconds; negative: too old."""
        known = directory.directory
        assert known is not None
        until = known.listed_at + self._state.believed_s(known.listing_s)
        return max(until, known.believed_until) - trio.current_time()

    async def refresh(self, directory: Node) -> None:
        """Make the entries of ``directory`` no older than the metadata TTL. Raises StoreError, OSError."""
        known = directory.directory
        assert known is not None
        asked_at = trio.current_time()
        is_strict = not self._state.config.metadata_ttl_s
        while is_strict or (self.fresh_for_s(directory) < 0 and known.listed_at < asked_at):
            running = self._running.get(directory.inode)
            if running is not None:
                await running.wait()
                continue
            done = self._running[directory.inode] = trio.Event()
            try:
                if await self._list(directory) and is_strict:
                    return
            finally:
                del self._running[directory.inode]
                done.set()

    async def _list(self, directory: Node) -> bool:
        """Bring a directory up to date; was it? False where it moved, or what was listed ahead was of no use."""
        known = directory.directory
        assert known is not None
        if not directory.linked:
            known.listed_at = float("inf")
            return True
        key = self._state.nodes.key_of(directory)
        forgotten = self._forgotten
        ahead = await self._walks.take(directory, key)
        if ahead is None:
            await self._merger.show_pending_ahead(directory, key)
            if not directory.linked or self._state.nodes.key_of(directory) != key:
                return False
            started = trio.current_time()
            watch = self._finished.watch()
            # What is finished while S3 lists must have a node by then, or it would be missed.
            self._merger.show_pending(directory, key)
            listing = await list_directory(self._store, key)
        else:
            started, watch, listing = ahead.origin.started, ahead.origin.watch, ahead.listing
        await self.attributes.read_marker(directory, listing, watch.keys)
        if not directory.linked or self._state.nodes.key_of(directory) != key:
            return False
        if ahead is not None and watch.saw_below(key):
            # It may have come and gone without a node: only a listing from now on tells.
            return False
        if not await self._merger.merge(directory, key, listing, watch):
            return False
        known.listed_at = started if forgotten == self._forgotten else float("-inf")
        known.listing_s = trio.current_time() - started if ahead is None else ahead.origin.took_s
        self._state.nodes.use(directory)
        self._state.nodes.trim()
        return True

    def forget_ahead(self) -> None:
        """What is being listed just now is not to be believed: it may be older than what happens next."""
        self._forgotten += 1
        self._walks.end()

    def statistics(self) -> dict[str, float]:
        """How much was listed ahead, and what became of it."""
        return self._walks.statistics()

    # ----------------------------------------------------------------- lookups

    async def lookup(self, directory: Node, name: str) -> Node | None:
        """The entry ``name``, or ``None``. Raises OSError (ENOTDIR, ENAMETOOLONG), StoreError."""
        await self.look(directory, name)
        assert directory.directory is not None
        return directory.directory.children.get(name) if self.is_shown(directory, name) else None

    async def lookup_known(self, directory: Node, name: str) -> Node | None:
        """The entry ``name``, for which ``look`` was called just now, with what is stored of it.

        One that somebody else replaces meanwhile is looked for again. Raises as ``lookup`` does.
        """
        assert directory.directory is not None
        children = directory.directory.children
        node: Node | None = None
        for _ in range(LOOKS_MAX):
            node = children.get(name) if self.is_shown(directory, name) else None
            if node is None:
                return None
            await self.know_attributes_of(node)
            if not node.is_replaced:
                return node
            await self.look(directory, name)
        return node

    def is_shown(self, directory: Node, name: str) -> bool:
        """May there be an entry ``name`` in ``directory``?"""
        return is_name(name) and not self._state.is_hidden(directory, name)

    def is_enough(self, found: tuple[Block, int]) -> bool:
        """Does what a listing told of an entry that has no node say all of it?"""
        block, index = found
        if block.is_directory(index):
            return False
        policy = self._state.config.attributes
        known = block.directory.directory
        return policy == "never" or (
            policy == "auto" and known is not None and known.stores_attributes is False
        )

    async def look(self, directory: Node, name: str) -> None:
        """Make what is known of the entry ``name`` fresh. Raises OSError (ENOTDIR, ENAMETOOLONG), StoreError."""
        known = directory.directory
        if known is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        if len(name.encode()) > NAME_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, "name is longer than 255 bytes")
        if not self.is_shown(directory, name):
            return
        self._state.nodes.use(directory)
        left_s = self.fresh_for_s(directory)
        if left_s < 0 and self._is_shown_offline(directory):
            return
        if not self._state.config.metadata_ttl_s:
            await self._ask_in_time(directory, name)
        elif left_s < 0:
            await self._refresh_or_ask(directory, name)
        elif left_s < REFRESH_AHEAD * known.listing_s:
            self._refresh_ahead(directory)

    def _is_shown_offline(self, directory: Node) -> bool:
        """While S3 is known to be away, show a directory as it was last listed; ask again in the background."""
        outage = self._store.outage
        if not outage or not self._is_listed(directory):
            return False
        self._believe_on(directory, NetworkError(outage))
        self._refresh_ahead(directory)
        return True

    def _is_listed(self, directory: Node) -> bool:
        """Was it listed before, so that it may be shown without S3?"""
        assert directory.directory is not None
        was_listed = directory.directory.listed_at > float("-inf")
        return was_listed and bool(self._state.config.metadata_ttl_s)

    def _refresh_ahead(self, directory: Node) -> None:
        """List a directory in use again before its entries are too old, so that no lookup waits for it."""
        if self._state.background is None or directory.inode in self._running:
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

        self._state.background.start(ahead)

    async def _refresh_or_ask(self, directory: Node, name: str) -> None:
        """Refresh the directory, or, when that takes long, just this entry of it."""
        background = self._state.background
        if background is None:
            await self.refresh(directory)
            return
        failed: list[Exception] = []
        done = trio.Event()

        async def refresh() -> None:
            try:
                await self.refresh(directory)
            except Exception as error:
                failed.append(error)
                if not isinstance(error, (S3MountError, OSError)):
                    raise
            finally:
                done.set()

        background.start(refresh)
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
        is_passing = isinstance(error, S3MountError) and error.retryable
        if not is_passing or not self._is_listed(directory):
            raise error
        path = self._state.nodes.path_of(directory)
        log.warning("%s is shown as it was last listed: %s", path, error)
        known.believed_until = trio.current_time() + OFFLINE_BELIEF_S

    async def must_be_current(self, node: Node) -> None:
        """Before a file is opened for reading: ask for its object, if its listing is older than the metadata TTL.

        A listing that took long is believed for longer than that. Raises OSError (ESTALE) when another object is
        there now, upon which Linux looks the name up anew, and StoreError; nothing while S3 cannot be reached.
        """
        parent = node.parent
        if parent is None or not node.linked or node.content is None or not self._is_old(node):
            return
        try:
            # A small file's GET tells the same, and its bytes are wanted next.
            head = await self.attributes.glance(node, is_alone=True)
            head = head or await self.attributes.head(node)
            content = node.content
            if head is not None and content is not None and head.etag == content.etag:
                self._asked_for[node.inode] = trio.current_time()
                if len(self._asked_for) > ASKED_MAX:
                    self._asked_for.popitem(last=False)
                return
            await self._ask_for(parent, node.name)
        except S3MountError as error:
            self._believe_on(parent, error)
            return
        must_be_in_place(node)

    async def ask_anew(self, node: Node) -> None:
        """Ask for the object of a file whose version S3 no longer has. Raises OSError (ESTALE), StoreError."""
        if node.parent is not None and node.linked:
            await self._ask_for(node.parent, node.name)
        must_be_in_place(node)

    def _is_old(self, node: Node) -> bool:
        """Was a clean file last asked for, or listed, longer ago than the metadata TTL?"""
        assert node.parent is not None
        known = node.parent.directory
        ttl_s = self._state.config.metadata_ttl_s
        if known is None or not ttl_s or self._store.outage:
            return False
        if self._state.change_of(node) is not None or self._state.is_written(node):
            return False
        last = max(known.listed_at, self._asked_for.get(node.inode, float("-inf")))
        return trio.current_time() - last > ttl_s

    async def _ask_for(self, directory: Node, name: str) -> None:
        """Learn about one entry by two small listings: its key, and the keys below it."""
        while directory.linked:
            prefix = self._state.nodes.key_of(directory)
            await self._ask_below(directory, prefix, name)
            if self._state.nodes.key_of(directory) == prefix:
                return

    async def _ask_below(self, directory: Node, prefix: Key, name: str) -> None:
        """The same while the directory's key is ``prefix``; nothing is learnt where it moved meanwhile."""
        assert directory.directory is not None
        key = check_key(prefix + name)
        await self._merger.show_pending_ahead(directory, prefix)
        if not directory.linked or self._state.nodes.key_of(directory) != prefix:
            return
        watch = self._finished.watch()
        self._merger.show_pending(directory, prefix)
        listing = Listing()

        async def as_file() -> None:
            if not self._store.lists_in_order:
                with contextlib.suppress(NoSuchKeyError):
                    listing.files[name] = await self._store.head(key)
                return
            page = await self._store.list_page(key, max_keys=1)
            if page.objects and page.objects[0].key == key:
                listing.files[name] = page.objects[0]

        async def as_directory() -> None:
            page = await self._store.list_page(f"{key}/", max_keys=1)
            if page.objects:
                listing.directories.add(name)

        with first_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(as_file)
                nursery.start_soon(as_directory)
        if not directory.linked or self._state.nodes.key_of(directory) != prefix:
            return
        finished = frozenset(watch.keys)
        pending = self._state.spool.changes
        if key in pending or f"{key}/" in pending or {key, f"{key}/"} & finished:
            self._merger.show_pending(directory, prefix)
            return
        # A listing that began before this answer knows less.
        self._finished.note(key)
        self._finished.note(f"{key}/")
        node = directory.directory.children.get(name)
        if name in listing.directories:
            self._merger.show_directory(directory, name)
        elif name in listing.files:
            self._merger.show_file(directory, name, listing.files[name])
        elif node is not None and not self._merger.is_kept(node, prefix, name, finished):
            self._state.nodes.replace(node)

    async def names(self, directory: Node) -> list[str]:
        """The names in a fresh ``directory``, with attributes known. Raises StoreError, OSError."""
        if directory.directory is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        if self.fresh_for_s(directory) >= 0 or not self._is_shown_offline(directory):
            try:
                await self.refresh(directory)
            except S3MountError as error:
                self._believe_on(directory, error)
        self._state.nodes.use(directory)
        await self.attributes.know_all(directory)
        self._walks.names_read(directory)
        return await in_order(await names_in(directory.directory.children))

"""What a person has a mount do while it runs: pause uploads, evict, prefetch, and pin what stays in the cache."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio

from s3mount.cache.reader import CacheReader
from s3mount.errors import LocalDiskError, NoSuchKeyError, S3MountError
from s3mount.events import Events
from s3mount.refs import ContentRef, Evicted, Key, ObjectInfo, Pinned, TreeWork
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.spool.journal.changes import Delete, parent_of
from s3mount.spool.journal.path_filter import at_or_below
from s3mount.spool.journal.states import State
from s3mount.spool.upload.events import Conflicted, Failed, GivenUp, Uploaded, UploadEvent
from s3mount.spool.upload.uploader import Uploader
from s3mount.tasks import in_parallel
from s3mount.vfs.state import MountState

log = logging.getLogger(__name__)

PINS = "pins.json"
"""The paths that are pinned, in the state folder."""
SMALL_AT_ONCE = 16
LARGE_AT_ONCE = 2
"""So many files are fetched at once: large ones take several requests each."""
LOOK_S = 300.0
"""How often what others changed of pinned trees is looked for."""
SETTLE_S = 1.0
"""So long after a change of ours below a pinned path its content is pinned."""


class Steering:
    """The controls of one mount. Paths are relative to it; ``""`` is all of it."""

    def __init__(
        self,
        state: MountState,
        store: Store,
        reader: CacheReader,
        uploader: Uploader,
        events: Events,
    ) -> None:
        self._state = state
        self._store = store
        self._reader = reader
        self._uploader = uploader
        self.events = events
        self._owner = state.config.state_dir
        self._file = Path(state.config.state_dir) / PINS
        self._pins = {path: Pinned(path) for path in _recall(self._file)}
        self._looking = trio.Lock()
        self._wanted = trio.Event()
        self._small = trio.CapacityLimiter(SMALL_AT_ONCE)
        self._large = trio.CapacityLimiter(LARGE_AT_ONCE)

    def pause(self, is_paused: bool) -> None:
        """Send nothing from now on, or go on. Ends with the mount. Repeatable."""
        log.info("asked for: uploads %s", "pause" if is_paused else "go on")
        if is_paused != self._uploader.is_paused:
            self.events.note("paused" if is_paused else "resumed")
        self._uploader.pause(is_paused)

    # --------------------------------------------------------------------- pins

    async def run(self) -> None:
        """Keep in the cache what is pinned, also as it changes, until cancelled."""
        await self._forget_gone_owners()
        while True:
            if self._pins:
                try:
                    await self._look(TreeWork())
                except S3MountError as error:
                    log.warning("what is pinned may not all be in the cache: %s", error)
            else:
                await self._reader.unpin_older(self._owner, self._state.now_ns())
            self._wanted = trio.Event()
            with trio.move_on_after(LOOK_S if self._pins else float("inf")):
                await self._wanted.wait()
                await trio.sleep(SETTLE_S)

    async def _forget_gone_owners(self) -> None:
        """Unpin what mounts pinned whose state folders are gone, or that pin nothing any more."""
        for owner in await self._reader.pin_owners():
            if not (Path(owner) / PINS).exists():
                await self._reader.unpin_older(owner, self._state.now_ns())

    def heard(self, event: UploadEvent) -> None:
        """Note what became of an upload; where its key is pinned, the new content is to be pinned."""
        match event:
            case Uploaded(change, result):
                if result is None:
                    self.events.note("deleted", key=change.key)
                elif not isinstance(change, Delete):
                    self.events.note("uploaded", key=change.key, size=change.size)
                if any(at_or_below(self._key(path), change.key) for path in self._pins):
                    self._wanted.set()
            case Failed(change):
                kind = "parked" if change.state is State.PARKED else "retried"
                self.events.note(kind, key=change.key, error=change.error, attempts=change.attempts)
            case GivenUp(change):
                self.events.note("given-up", key=change.key)
            case Conflicted(key, outcome, kept_as):
                self.events.note("conflict", key=key, outcome=outcome, kept_as=kept_as)

    def pinned(self) -> list[dict[str, Any]]:
        """What is pinned, for ``status``."""
        return [msgspec.to_builtins(each) for each in self._pins.values()]

    async def pin(self, paths: Sequence[str], work: TreeWork) -> None:
        """Bring what is at and below ``paths`` into the cache and keep it there, in later mounts as well.

        Cancelled, the paths stay pinned, and the mount goes on in the background. Raises S3MountError where
        there is nothing, or no room; then nothing is pinned.
        """
        await self._count(dict.fromkeys([*self._pins, *paths]), work)
        self._must_fit(work)
        for path in paths:
            self._pins.setdefault(path, Pinned(path))
            self.events.note("pinned", path=path)
        self._remember()
        log.info("asked for: pinned %s", ", ".join(path or "." for path in paths))
        self._wanted.set()
        await self._look(work)

    async def unpin(self, paths: Sequence[str]) -> list[str]:
        """Keep ``paths``, or all that is pinned, no longer; those of them that were. Raises S3MountError for none."""
        gone = [path for path in paths or self._pins if path in self._pins]
        if not gone:
            what = ", ".join(path or "." for path in paths)
            raise S3MountError(f"{what} is not pinned" if paths else "nothing is pinned")
        for path in gone:
            del self._pins[path]
            self.events.note("unpinned", path=path)
        self._remember()
        log.info("asked for: no longer pinned %s", ", ".join(path or "." for path in gone))
        self._wanted.set()
        await trio.lowlevel.checkpoint()
        return gone

    async def _look(self, work: TreeWork) -> None:
        """Pin and bring all that is at or below the pinned paths now; what was there before is unpinned."""
        async with self._looking:
            began_ns = self._state.now_ns()
            for pinned in list(self._pins.values()):
                before = msgspec.structs.replace(work)
                pinned.error, files, size_bytes = "", 0, 0
                async for refs in self._contents(pinned.path):
                    await self._reader.pin(refs, self._owner, began_ns)
                    files += len(refs)
                    size_bytes += sum(ref.size for ref in refs)
                    await self._bring(refs, work)
                pinned.files, pinned.size_bytes = files, size_bytes
                pinned.error = work.error if work.failed > before.failed else ""
            await self._reader.unpin_older(self._owner, began_ns)

    def _remember(self) -> None:
        """Write the pins down. Raises LocalDiskError."""
        fresh = self._file.with_suffix(".new")
        try:
            if self._pins:
                fresh.write_bytes(msgspec.json.encode(list(self._pins)))
                fresh.replace(self._file)
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            raise LocalDiskError(f"{self._file} cannot be written: {error.strerror}") from error

    # ------------------------------------------------------------------- trees

    async def prefetch(self, paths: Sequence[str], work: TreeWork) -> None:
        """Bring what is at and below ``paths`` into the cache, for readers that come soon.

        ``work`` is kept up to date. Cancelled, what has arrived stays. Raises S3MountError where there is nothing
        at one of them, or more than the cache may hold; files that fail are only counted.
        """
        await self._count(paths, work)
        self._must_fit(work)
        for path in paths:
            before = msgspec.structs.replace(work)
            async for refs in self._contents(path):
                await self._bring(refs, work)
            self.events.note(
                "prefetched",
                path=path,
                files=work.files - before.files,
                bytes=work.size_bytes - before.size_bytes,
                failed=work.failed - before.failed,
            )

    async def evict(self, paths: Sequence[str]) -> Evicted:
        """Drop from the cache what is at and below ``paths``, but for what is open or pinned. Raises S3MountError."""
        found = Evicted()
        for path in paths:
            async for refs in self._contents(path):
                more = await self._reader.evict(refs)
                found = Evicted(
                    *(a + b for a, b in zip(_fields(found), _fields(more), strict=True))
                )
        log.info("asked for: evicted %d files, %d bytes", found.files, found.size_bytes)
        if found.files:
            self.events.note("evicted", bytes=found.size_bytes)
        return found

    async def _count(self, paths: Sequence[str] | dict[str, None], work: TreeWork) -> None:
        """Fill in the totals, and find out whether there is something at each path."""
        for path in paths:
            async for refs in self._contents(path):
                work.files_total += len(refs)
                work.bytes_total += sum(ref.size for ref in refs)

    def _must_fit(self, work: TreeWork) -> None:
        most = self._reader.size_bytes_max
        if work.bytes_total > most:
            raise LocalDiskError(
                f"{work.bytes_total} bytes do not fit into the cache, which may hold {most} (--cache-size)"
            )

    async def _bring(self, refs: Sequence[ContentRef], work: TreeWork) -> None:
        async def bring(ref: ContentRef) -> None:
            try:
                await self._reader.bring(ref)
            except S3MountError as error:
                work.failed += 1
                work.error = work.error or f"{ref.key}: {error}"
                return
            work.files += 1
            work.size_bytes += ref.size

        small = [ref for ref in refs if ref.size <= INLINE_BODY_BYTES_MAX]
        large = [ref for ref in refs if ref.size > INLINE_BODY_BYTES_MAX]
        await in_parallel(self._small, small, bring)
        await in_parallel(self._large, large, bring)

    def _key(self, path: str) -> Key:
        return f"{self._state.config.prefix}{path}".rstrip("/")

    async def _contents(self, path: str) -> AsyncGenerator[list[ContentRef]]:
        """What S3 has at and below ``path``, by one listing, page by page. Raises S3MountError where nothing is.

        What is not in S3 yet is local already, and left out.
        """
        key, changes = self._key(path), self._state.spool.changes
        is_there = not path or any(at_or_below(key, each) for each in changes)
        if path and (found := await self._object(key)) is not None:
            is_there = True
            yield self._wanted_of([found])
        token: str | None = None
        while True:
            below = f"{key}/" if path else self._state.config.prefix
            page = await self._store.list_page(below, token=token)
            is_there = is_there or bool(page.objects)
            yield self._wanted_of(page.objects)
            token = page.next_token
            if token is None:
                break
        if not is_there:
            raise S3MountError(f"{path}: no such file in the mount")

    async def _object(self, key: Key) -> ObjectInfo | None:
        """The object of exactly this key."""
        if not self._store.lists_in_order:
            with contextlib.suppress(NoSuchKeyError):
                return await self._store.head(key)
            return None
        page = await self._store.list_page(key, max_keys=1)
        return page.objects[0] if page.objects and page.objects[0].key == key else None

    def _wanted_of(self, objects: Sequence[ObjectInfo]) -> list[ContentRef]:
        changes = self._state.spool.changes
        return [
            self._content_of(ContentRef(each.key, each.etag, each.size))
            for each in objects
            if each.size and not each.key.endswith("/") and each.key not in changes
        ]

    def _content_of(self, listed: ContentRef) -> ContentRef:
        """As the mount calls it: what it wrote itself has a version."""
        above = self._state.find(parent_of(listed.key)) if "/" in listed.key else None
        above = above or self._state.nodes.root
        if above.directory is None:
            return listed
        node = above.directory.children.nodes.get(listed.key.rpartition("/")[2])
        known = None if node is None else node.content
        is_same = known is not None and (known.key, known.etag) == (listed.key, listed.etag)
        return known if known is not None and is_same else listed


def _recall(file: Path) -> list[str]:
    """The paths that were pinned; none where that cannot be told."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[str])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("what was pinned is not known any more: %s", error)
        return []


def _fields(evicted: Evicted) -> tuple[int, int, int, int]:
    return evicted.files, evicted.size_bytes, evicted.in_use, evicted.pinned

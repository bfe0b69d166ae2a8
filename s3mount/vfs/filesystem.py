"""The file system: the parts of vfs put together, its background work, and what it tells about itself."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import trio

from s3mount import logs
from s3mount.background import Background, contained, reason_of
from s3mount.cache.reader import CacheReader
from s3mount.clock import SystemClock, WallClock
from s3mount.config import MountConfig
from s3mount.dedupe.index import ContentIndex
from s3mount.errors import DiskFullError, LocalDiskError, S3MountError
from s3mount.events import Events
from s3mount.names import trial_key
from s3mount.pack.store import PackedStore
from s3mount.refs import Capabilities
from s3mount.s3.lacks import describe_lacks, lack_of_past
from s3mount.s3.store import Store
from s3mount.slices import sliced
from s3mount.spool.journal.changes import Change, Delete
from s3mount.spool.journal.path_filter import select
from s3mount.spool.journal.put_log import PutLog
from s3mount.spool.journal.states import State
from s3mount.spool.spool import Spool
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.spool.upload.uploader import Uploader
from s3mount.tree.memory import HeadMemory
from s3mount.vfs.barrier import UploadBarrier
from s3mount.vfs.contents import Contents
from s3mount.vfs.file_readahead import FileReadahead
from s3mount.vfs.listing.directories import Directories
from s3mount.vfs.listing.list_readahead import ListReadahead
from s3mount.vfs.listing.merging import Merger
from s3mount.vfs.listing.refreshing import Refreshing, no_kernel
from s3mount.vfs.namespace.decisions import Decisions
from s3mount.vfs.namespace.directory_times import TOUCH_PERIOD_S, DirectoryTimes
from s3mount.vfs.namespace.metadata import Metadata
from s3mount.vfs.namespace.naming import Naming
from s3mount.vfs.namespace.renaming import Renaming
from s3mount.vfs.prefetches import Prefetches
from s3mount.vfs.snapshots.snapshots_dir import SnapshotsDirectory
from s3mount.vfs.state import OWN_DATE_SLACK_NS, MountState
from s3mount.vfs.steering import Steering
from s3mount.vfs.stored import StoredAttributes
from s3mount.vfs.trials import RunningTrial
from s3mount.vfs.uploads.dedupe import Deduplicator
from s3mount.vfs.uploads.filling import BlobFiller
from s3mount.vfs.uploads.upload_provider import UploadProvider
from s3mount.vfs.uploads.uploads import UploadOutcomes
from s3mount.vfs.view import ForgetEntry

log = logging.getLogger(__name__)

PROBE_HEAD_START_S = 1.0
"""Uploads wait this long for what the probe finds: it takes about four round trips."""
PROBE_END_S = 3.0
"""A waiter waits so long for the probe's end, which takes a second where S3 answers."""
WAIT_LOOK_S = 0.5
"""Who waits looks that often though no upload ended: what is pending may be given up, or be parked for too long."""
WAIT_PERIOD_S = 0.02
STUCK_S = 1.0
"""With something refused and nothing on its way for this long, a waiter is told."""
RENEW_S = 10.0
"""How long a retry waits for other credentials."""
LOCAL_KINDS = frozenset(
    ("LocalDiskError", "DiskFullError", "DamagedBlobError", "BlobGoneError", "InternalError")
)
"""Errors that are not S3's."""
SHOWN_MAX = 50
"""At most this many pending files are named by status."""


class Filesystem:
    """One mounted bucket (or prefix). Its parts: ``directories``, ``contents``, ``naming``, ``metadata``.

    What the store honours is tried in the background, and ``capabilities`` learn it. ``kernel_keeps_mtime``: the
    kernel tells the mtime of files that are written, as with its writeback cache.
    """

    def __init__(
        self,
        *,
        config: MountConfig,
        store: Store,
        spool: Spool,
        reader: CacheReader,
        capabilities: KnownCapabilities | None = None,
        snapshots: SnapshotsDirectory | None = None,
        forget_entry: ForgetEntry = no_kernel,
        kernel_keeps_mtime: bool = False,
        clock: WallClock | None = None,
        memory_path: Path | None = None,
    ) -> None:
        clock = clock or SystemClock()
        mounted_ns = clock.now_ns()
        memory_path = memory_path or Path(config.cache_dir) / "attributes.sqlite"
        index = ContentIndex(memory_path.with_name("contents.sqlite")) if config.dedupe else None
        self.capabilities = capabilities or KnownCapabilities()
        self.store = store
        self.reader = reader
        self.memory = memory = HeadMemory(memory_path)
        self.known = known = Deduplicator(spool, reader, index, part_bytes=config.part_bytes)
        state = MountState(
            config=config,
            spool=spool,
            clock=clock,
            mounted_ns=mounted_ns,
            kernel_keeps_mtime=kernel_keeps_mtime,
        )
        if config.read_only:
            # Nothing can be tried.
            self.capabilities.decided.set()
        self.state = state
        self.config = config
        self.prefetches = prefetches = Prefetches(state, reader)
        attributes = StoredAttributes(state, prefetches, store, memory, self.capabilities)
        self.directories = Directories(
            state, store, attributes, Merger(state, memory), ListReadahead(state, store)
        )
        self.refreshing = Refreshing(state, self.directories, memory, forget_entry)
        self.puts = PutLog(Path(config.state_dir))
        filler = BlobFiller(spool, reader, store, config.part_bytes)
        provider = UploadProvider(state, filler, attributes, reader, known)
        self.outcomes = UploadOutcomes(
            state, filler, provider, self.capabilities, reader, known, memory, self.puts
        )
        self.uploader = self._new_uploader(provider)
        self.barrier = UploadBarrier(state, self.uploader)
        readahead = FileReadahead(state, self.directories, prefetches)
        self.contents = Contents(
            state,
            self.directories,
            readahead,
            filler,
            self.uploader,
            self.barrier,
            store,
            reader,
            known,
        )
        if snapshots is not None:
            self.contents.archived = snapshots.missing_versions
        self._times = times = DirectoryTimes(state)
        self.naming = Naming(state, self.directories, self.contents, self.uploader, times)
        self.renaming = Renaming(
            state, self.directories, self.contents, self.naming, self.uploader, times, store
        )
        self.metadata = Metadata(state, self.directories, self.contents, times, store)
        self.decisions = Decisions(state, times, self.uploader)
        self.events = events = Events(clock.now_ns)
        self.steering = Steering(state, store, reader, self.uploader, events)
        self.outcomes.listeners.append(self.steering.heard)
        reader.on_evicted(lambda size_bytes: events.note("evicted", bytes=size_bytes))
        self._snapshots = snapshots
        self._forget_entry = forget_entry

    def _new_uploader(self, provider: UploadProvider) -> Uploader:
        return Uploader(
            self.state.spool,
            self.store,
            provider,
            self.outcomes.take,
            self.capabilities,
            prefix=self.config.prefix,
            part_bytes=self.config.part_bytes,
            uploads_max=self.config.uploads_max,
            delay_s=self.config.upload_delay_s,
            on_conflict=self.config.on_conflict,
            packing=self.store if isinstance(self.store, PackedStore) else None,
        )

    # --------------------------------------------------------------- background

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Upload and keep house until cancelled. ``started`` when it can serve."""
        try:
            async with trio.open_nursery() as nursery:
                self.state.background = background = Background(nursery)
                try:
                    task_status.started()
                    self.events.note("mounted")
                    if self._snapshots is not None:
                        background.keep(self._snapshots.keep_room, self._forget_entry)
                    background.keep(self.steering.run)
                    if not self.config.read_only:
                        self.puts.open()
                        self.store.on_outage = self._outage_changed
                        background.start(self._probe)
                        background.keep(self._upload)
                        background.keep(self._store_touched_directories)
                    await trio.sleep_forever()
                finally:
                    # Before it closes: what is asked for from now on starts nothing in it.
                    self.state.background = None
        finally:
            self.memory.close()
            self.known.close()
            self.puts.close(is_all_sent=not self.state.spool.changes)

    def _outage_changed(self, reason: str) -> None:
        if reason:
            self.events.note("outage-began", error=reason)
        else:
            self.events.note("outage-ended")
            self.uploader.store_is_back()

    async def _upload(self) -> None:
        """Upload for ever; while the store's habits are unknown it looks before each conditional write."""
        with trio.move_on_after(PROBE_HEAD_START_S):
            await self.capabilities.decided.wait()
        await self.uploader.run()

    async def _probe(self) -> None:
        """Learn what conditions the store honours."""
        try:
            found = await self._find_capabilities()
            self.capabilities.learn(found)
            for line in describe_lacks(self.capabilities.told()):
                log.warning("this store %s", line)
        except S3MountError as error:
            self.capabilities.learn(Capabilities(reason=str(error)))
            log.warning("what the store honours is unknown: %s", error)
            return
        except Exception as error:
            self.capabilities.learn(Capabilities(reason=f"internal error: {reason_of(error)}"))
            log.exception("internal error: what the store honours is unknown")
            return
        finally:
            self.capabilities.decided.set()
        await self._try_version_dates(found)

    async def _try_version_dates(self, found: Capabilities) -> None:
        """Learn whether the past of a bucket that keeps versions can be told, unless that is known."""
        is_known = found.version_dates is not None or found.lists_versions is not True
        was_all_tried = found.complete_condition is not None
        if is_known or not was_all_tried or not self.capabilities.keeps_deleted:
            return
        try:
            with RunningTrial(Path(self.config.state_dir), trial_key(self.config.prefix)) as trial:
                are_right = await self.store.try_version_dates(trial.key)
        except S3MountError as error:
            log.info("how this store dates versions is unknown: %s", error)
            return
        found = msgspec.structs.replace(found, version_dates=are_right)
        self.capabilities.learn(found)
        if are_right is False:
            log.warning("this store %s", lack_of_past(self.capabilities.told()))
        self.memory.remember_capabilities(found, self.state.now_ns())

    async def _find_capabilities(self) -> Capabilities:
        """What the store honours, as it was seen by an earlier mount or by trying now. Raises StoreError."""
        remembered = self.memory.recall_capabilities(self.state.now_ns())
        with RunningTrial(Path(self.config.state_dir), trial_key(self.config.prefix)) as trial:
            found = await self.store.probe(trial.key, known=remembered, killed=trial.killed)
        if remembered is None and found.if_absent is not None:
            self.memory.remember_capabilities(found, self.state.now_ns())
        return found

    async def _store_touched_directories(self) -> None:
        while True:
            await trio.sleep(TOUCH_PERIOD_S)
            with contained("the times of folders are not stored yet"):
                try:
                    self._times.store_touched()
                except LocalDiskError as error:
                    log.warning("the times of folders are not stored yet: %s", error)
            with contained("attributes are not remembered"):
                self.memory.flush(self.state.now_ns() - OWN_DATE_SLACK_NS)

    # ------------------------------------------------------------------ waiting

    async def wait_uploaded(self, paths: Sequence[str] = ()) -> None:
        """Return when S3 has every change made so far (below ``paths``, if given; relative to the mount).

        Files still open for writing are not waited for. Raises S3MountError naming what S3 refuses, or
        that the disk has no room for what is still to be journalled. May be cancelled.
        """
        self.uploader.hurry()
        last_moved = trio.current_time()
        mark: int | None = None
        try:
            while True:
                no_room: DiskFullError | None = None
                if mark is None:
                    try:
                        self._times.store_touched()
                        mark = self.state.spool.last_seq
                    except DiskFullError as error:
                        # What is sent meanwhile makes room.
                        no_room = error
                left: list[Change] = []
                async for changes in sliced(list(self.state.spool.changes.values())):
                    left += [
                        change
                        for change in select(changes, self.config.prefix, paths)
                        if (mark is None or change.first_seq <= mark)
                        and change.state is not State.OPEN
                    ]
                if left and self.uploader.is_paused:
                    raise S3MountError(
                        f"uploads are paused: s3mount resume {self.config.mountpoint}"
                    )
                if not left:
                    if no_room is not None:
                        raise no_room
                    # A mount that ends in its first moments leaves nothing that was only tried.
                    with trio.move_on_after(PROBE_END_S):
                        await self.capabilities.decided.wait()
                    return
                parked = [change for change in left if change.state is State.PARKED]
                moving = any(change.state is State.SENDING for change in left)
                last_moved = trio.current_time() if moving else last_moved
                if parked and trio.current_time() - last_moved > STUCK_S:
                    raise S3MountError(_stuck(parked))
                with trio.move_on_after(WAIT_LOOK_S):
                    await self.uploader.wait_for_news()
                await trio.sleep(WAIT_PERIOD_S if len(left) < 1000 else 0.2)
        finally:
            self.uploader.relax()

    def release_waiters(self) -> None:
        """The mount is about to end: programs whose fsync or close waits for S3 are told so. Repeatable."""
        self.barrier.release()

    async def retry(self, paths: Sequence[str], *, overwrite: bool) -> list[str]:
        """See ``Decisions.retry``; with the credentials that are found now, should others have been refused."""
        with trio.move_on_after(RENEW_S) as waited:
            try:
                await self.store.renew_credentials()
            except S3MountError as error:
                log.warning("what was refused is tried again with the old credentials: %s", error)
        if waited.cancelled_caught:
            log.warning("what was refused is tried again; credentials are not told in time")
        return await self.decisions.retry(paths, overwrite=overwrite)

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """See ``Store.set_rates``."""
        await self.store.set_rates(up_bytes_per_s, down_bytes_per_s)
        self.events.note("rates", up_bytes_per_s=up_bytes_per_s, down_bytes_per_s=down_bytes_per_s)

    async def set_log_level(self, level: str) -> None:
        """Log from this level on, in both processes. Raises S3MountError."""
        log.info("asked for: log level %s", level)
        logs.set_level(level)
        await self.store.set_log_level(level)

    async def refresh(self, paths: Sequence[str]) -> None:
        """See ``Refreshing.refresh``."""
        await self.refreshing.refresh(paths)

    async def discard(self, paths: Sequence[str], *, is_rehearsal: bool) -> list[str]:
        """See ``Decisions.discard``."""
        return await self.decisions.discard(paths, is_rehearsal=is_rehearsal)

    def pending(self) -> tuple[int, int]:
        """How many changes S3 does not have, and how many bytes are to be sent for them."""
        dependencies = self.state.spool.dependencies
        return len(dependencies.changes), dependencies.put_bytes

    def trouble(self) -> str:
        """The first change that S3 did not take, and why; empty when there is none."""
        for change in self.state.spool.dependencies.troubled.values():
            if change.error:
                return f"{change.key!r}: {change.error}"
        return ""

    # ------------------------------------------------------------------- status

    async def status(self) -> dict[str, Any]:
        """The whole of it as plain values: pending, counters, limits, what the store honours."""
        dependencies = self.state.spool.dependencies
        counted: Counter[State] = Counter()
        async for changes in sliced(list(dependencies.changes.values())):
            counted.update(change.state for change in changes)
        count, size_bytes = self.pending()
        by_state = {str(s): counted[s] for s in State if s is not State.DONE}
        troubled = dependencies.troubled
        others = (c for c in dependencies.changes.values() if c.key not in troubled)
        shown = list(islice(chain(troubled.values(), others), SHOWN_MAX))
        return {
            "bucket": self.config.store.bucket,
            "prefix": self.config.prefix,
            "mountpoint": self.config.mountpoint,
            "read_only": self.config.read_only,
            "pending": {
                "changes": count,
                "bytes": size_bytes,
                "states": by_state,
                "list": [_describe_change(change) for change in shown],
            },
            "spool": {
                "used_bytes": self.state.spool.used_bytes,
                "max_bytes": self.state.spool.size_bytes_max,
                "disk_free_bytes": _free_bytes(self.config.state_dir),
            },
            "uploads": self.uploader.statistics(),
            "paused": self.uploader.is_paused,
            "pinned": self.steering.pinned(),
            "conflicts": [conflict._asdict() for conflict in self.outcomes.conflicts],
            "missing": self.contents.archived.status(),
            "damaged": [msgspec.to_builtins(damage) for damage in self.state.spool.damages],
            "store_honours": self.capabilities.told(),
            "outage": self.store.outage,
            "cache": self.reader.statistics() | self.prefetches.statistics(),
            "inodes": len(self.state.nodes),
            "listings": self._listings(),
            "open_files": len(self.state.files.all()),
            "ignored_keys": self.directories.ignored_keys,
        }

    def _listings(self) -> dict[str, float]:
        nodes = self.state.nodes
        return {
            "inode_bytes": nodes.size_bytes,
            "inode_bytes_each": round(nodes.size_bytes / len(nodes), 1),
            "inode_bytes_max": nodes.bytes_max,
            "inodes_unpacked": nodes.unpacked,
            "inodes_dropped": nodes.dropped,
            **self.directories.statistics(),
        }

    async def status_of(self, path: str) -> dict[str, Any]:
        """Where one file stands. ``path`` is relative to the mount. Raises S3MountError, OSError."""
        names = [part for part in path.split("/") if part]
        if self._snapshots is not None and names[:1] == [self._snapshots.name]:
            return {**await self._snapshots.status_of(names[1:]), "path": path}
        node = self.state.nodes.root
        for name in names:
            found = await self.directories.lookup(node, name)
            if found is None:
                raise S3MountError(f"{path}: no such file in the mount")
            node = found
        await self.directories.know_attributes_of(node)
        self.contents.fold(node)
        change = self.state.change_of(node)
        return {
            **self.metadata.describe(node),
            "path": path,
            "size": node.size,
            "mode": oct(node.attributes.mode),
            "mtime_ns": node.attributes.mtime_ns,
            "attempts": change.attempts if change is not None else 0,
        }


def _stuck(parked: Sequence[Change]) -> str:
    """What somebody who waits is told of changes that are not sent."""
    first = parked[0]
    told = f"first {first.key!r}: {first.error}"
    if first.error_kind in LOCAL_KINDS:
        return f"{len(parked)} of the pending changes cannot be sent, {told}"
    return f"S3 refuses {len(parked)} of the pending changes, {told}"


def _free_bytes(folder: str) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _describe_change(change: Change) -> dict[str, Any]:
    return {
        "key": change.key,
        "op": change.op,
        "state": str(change.state),
        "size": change.size,
        "attempts": change.attempts,
        "error": change.error or None,
        "error_kind": change.error_kind,
        "conflict": change.held,
        "changed_at_ns": 0
        if isinstance(change, Delete) or change.attributes is None
        else change.attributes.ctime_ns,
    }

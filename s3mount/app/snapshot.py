"""Builds the parts of a snapshot mount: no spool, no journal; engines and caches when they are needed."""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from s3mount import logs
from s3mount.app.lifetime import Parts
from s3mount.app.notes import Notes
from s3mount.background import Background
from s3mount.cache.reader import CacheReader
from s3mount.clock import SystemClock
from s3mount.config import MountConfig, Past
from s3mount.daemon.launch import Reporter
from s3mount.engine.client import EngineClient
from s3mount.engine.pool import EnginePool, PooledStore
from s3mount.errors import MountError, StoreError
from s3mount.fuse.operations import Operations
from s3mount.manifest.buckets import Buckets
from s3mount.manifest.catalog import IMPLIED, ROOT, Catalog, Listed
from s3mount.manifest.library import HeldCatalog, Library
from s3mount.manifest.location import brought_here
from s3mount.manifest.versions.building import nothing_below
from s3mount.s3.lacks import lack_of_past
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.tasks import first_error
from s3mount.tree.snapshot import Defaults, SnapshotTree
from s3mount.tree.snapshot_lister import SnapshotLister
from s3mount.vfs.buckets import Access, OneBucket
from s3mount.vfs.missing_versions import MissingVersions
from s3mount.vfs.snapshots.snapshot import SnapshotView
from s3mount.vfs.snapshots.snapshots_dir import SnapshotsDirectory
from s3mount.vfs.view import View

log = logging.getLogger(__name__)

T = TypeVar("T")

TOP_INODE = 1
CHECK_TIMEOUT_S = 20.0
"""How long the first look at the bucket may take; a person waits for it."""
TELL_EVERY_S = 5.0
LIBRARY = "catalogs"
"""The folder of catalogs in the cache folder."""
SETTLED_NS = 15 * 60 * 1_000_000_000
"""A store's clock may differ from ours by as much as it accepts in a request's date: so long after a time
nothing can be dated before it any more, but by a multipart upload that was begun before."""


class CachedBuckets:
    """Readers of the buckets of a snapshot, each opened when it is read first."""

    def __init__(self, config: MountConfig, pool: EnginePool, nursery: trio.Nursery) -> None:
        self._config = config
        self._pool = pool
        self._buckets = Buckets(self._open, nursery, buckets_max=None)

    @asynccontextmanager
    async def _open(self, bucket: str) -> AsyncIterator[Access]:
        store = self._pool.bucket(bucket)
        reader = CacheReader(
            store,
            Path(self._config.cache_dir),
            namespace=namespace_of(self._config.store.endpoint_url, bucket, "versions"),
            size_bytes_max=self._config.cache_bytes_max,
            prefetch_bytes_max=self._config.prefetch_bytes_max,
        )
        with first_error():
            async with trio.open_nursery() as nursery:
                await nursery.start(reader.run)
                yield Access(store, reader)
                nursery.cancel_scope.cancel()

    async def access(self, bucket: str) -> Access:
        """See ``vfs.buckets.Buckets``."""
        return await self._buckets.of(bucket)

    async def renew_credentials(self) -> None:
        """See ``EnginePool.renew_credentials``."""
        await self._pool.renew_credentials()

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """See ``EnginePool.set_rates``."""
        await self._pool.set_rates(up_bytes_per_s, down_bytes_per_s)

    async def set_log_level(self, level: str) -> None:
        """See ``EnginePool.set_log_level``."""
        await self._pool.set_log_level(level)

    def open_reader(self, bucket: str) -> CacheReader | None:
        """See ``vfs.buckets.Buckets``."""
        found = self._buckets.opened.get(bucket)
        return None if found is None else found.reader

    def statistics(self) -> dict[str, float]:
        """The counters of all caches together."""
        total: dict[str, float] = {}
        for access in self._buckets.opened.values():
            for name, value in access.reader.statistics().items():
                total[name] = total.get(name, 0.0) + value
        return total


class SnapshotMount:
    """What the life of a mount asks of its file system, for one that never has anything to send."""

    def __init__(
        self,
        config: MountConfig,
        files: SnapshotView,
        caches: CachedBuckets,
        about: Callable[[], dict[str, Any]],
    ) -> None:
        self._config = config
        self._files = files
        self._caches = caches
        self._about = about

    @property
    def steering(self) -> None:
        """There is nothing to send, and what was does not change."""
        return None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See ``lifetime.Served``; nothing is done in the background."""
        task_status.started()
        await trio.sleep_forever()

    async def wait_uploaded(self, paths: Sequence[str] = ()) -> None:
        """Nothing is ever pending."""
        await trio.lowlevel.checkpoint()

    async def retry(self, paths: Sequence[str], *, overwrite: bool) -> list[str]:
        """No change is ever refused; but credentials are asked for anew. Raises S3MountError."""
        await self._caches.renew_credentials()
        return []

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        """See ``Store.set_rates``."""
        await self._caches.set_rates(up_bytes_per_s, down_bytes_per_s)

    async def set_log_level(self, level: str) -> None:
        """Log from this level on, in all processes. Raises S3MountError."""
        logs.set_level(level)
        await self._caches.set_log_level(level)

    async def refresh(self, paths: Sequence[str]) -> None:
        """What was cannot change: there is nothing to look at again."""
        await trio.lowlevel.checkpoint()

    async def discard(self, paths: Sequence[str], *, is_rehearsal: bool) -> list[str]:
        """Raise MountError: there is nothing to give up."""
        await trio.lowlevel.checkpoint()
        raise MountError("nothing is pending in a snapshot")

    def release_waiters(self) -> None:
        """Nobody waits."""

    def pending(self) -> tuple[int, int]:
        """Nothing."""
        return 0, 0

    def trouble(self) -> str:
        """None."""
        return ""

    async def status(self) -> dict[str, Any]:
        """Counts and lists for ``status.Snapshot``."""
        return {
            "bucket": self._config.store.bucket,
            "prefix": self._config.prefix,
            "read_only": True,
            "past": self._about(),
            "missing": self._files.missing_versions.status(),
            "open_files": self._files.open_files,
            "cache": self._caches.statistics() | {"files_ahead_asked": self._files.readahead.asked},
        }

    async def status_of(self, path: str) -> dict[str, Any]:
        """One file. Raises S3MountError, OSError."""
        return await self._files.status_of(path)


@asynccontextmanager
async def build_snapshot_parts(config: MountConfig, reporter: Reporter) -> AsyncIterator[Parts]:
    """The parts of one snapshot mount. Raises S3MountError for what is in the way."""
    past = config.past
    assert past is not None
    library = Library(Path(config.cache_dir) / LIBRARY, config.cache_bytes_max)
    async with trio.open_nursery() as nursery:
        pool = EnginePool(config.store, nursery)
        caches = CachedBuckets(config, pool, nursery)
        notes = Notes()
        if past.at_ns is None:
            with _told_on(nursery, reporter, f"reading {past.manifest}"):
                held, about = await _manifest_catalog(config, past, library, reporter)
        else:
            held, about = await _past_catalog(config, past.at_ns, library)
        with held:
            tree = SnapshotTree(
                held.catalog, defaults_of(config, date_of(past, held.catalog)), prefix=config.prefix
            )
            lister = None
            if past.at_ns is not None:
                store = pool.bucket(config.store.bucket)
                suspected = trio.Event()
                lister = SnapshotLister(store, tree, past.at_ns, suspected.set)
                Background(nursery).start(notes.ask_for_rule, store, config.prefix)
                Background(nursery).start(notes.ask_for_dates, store, config.prefix, suspected)
                reporter.step(f"asking S3 for the bucket {config.store.bucket}")
                await _look(store, lister, tree, config)
            files = SnapshotView(tree, caches, top_inode=TOP_INODE, lister=lister)

            def tell() -> dict[str, Any]:
                unshown = held.catalog.meta("unshown") if lister is None else lister.unshown
                return {**about, "catalog": str(held.catalog.path), "unshown": unshown or 0}

            Background(nursery).start(_in_thread, library.prune)
            try:
                yield Parts(
                    SnapshotMount(config, files, caches, tell),
                    Operations({0: files}, xattr=config.xattr),
                    pool.statistics,
                    {"endpoint_url": config.store.endpoint_url, "region": config.store.region},
                    lambda: {"notes": tuple(notes.told)},
                    notes.told,
                )
                await pool.close()
            finally:
                files.close()
                nursery.cancel_scope.cancel()


async def _look(
    store: PooledStore, lister: SnapshotLister, tree: SnapshotTree, config: MountConfig
) -> None:
    """Ask for the first page of the bucket, unless it is known: who mounts wants to hear what is in the way.

    Raises S3MountError, and UsageError where nothing lies or ever lay below the prefix.
    """
    with trio.move_on_after(CHECK_TIMEOUT_S):
        await lister.find(tree.top, "")
        if config.prefix and not tree.catalog.page(tree.top, "", 1):
            page = await store.list_versions_page(config.prefix, max_keys=1)
            if not page.versions and page.next_key_marker is None:
                raise nothing_below(config.store.bucket, config.prefix)
        return
    where = config.store.endpoint_url or "AWS"
    raise MountError(f"S3 at {where} did not answer within {CHECK_TIMEOUT_S:g} s")


@contextmanager
def snapshots_directory(
    config: MountConfig, capabilities: KnownCapabilities, views: dict[int, View], access: Access
) -> Iterator[SnapshotsDirectory]:
    """The folder of snapshots of a live mount, put into the table of its views."""
    library = Library(Path(config.cache_dir) / LIBRARY, config.cache_bytes_max)

    async def open_at(
        at_ns: int, base: int, place: str, missing: MissingVersions
    ) -> tuple[SnapshotView, Callable[[], None]]:
        lack = lack_of_past(capabilities.told())
        if lack:
            log.warning("%s cannot be shown: this store %s", place.rstrip(": "), lack)
            raise OSError(errno.EOPNOTSUPP, f"this store {lack}")
        held = await _in_thread(partial(open_past, library, config, at_ns))
        tree = SnapshotTree(held.catalog, defaults_of(config, at_ns), prefix=config.prefix)
        view = SnapshotView(
            tree,
            OneBucket(access),
            top_inode=base + TOP_INODE,
            base=base,
            lister=SnapshotLister(access.store, tree, at_ns),
            missing=missing,
            place=place,
        )

        def close() -> None:
            view.close()
            held.close()

        return view, close

    directory = SnapshotsDirectory(
        views,
        open_at,
        config.snapshots,
        uid=config.uid,
        gid=config.gid,
        mounted_ns=SystemClock().now_ns(),
    )
    try:
        yield directory
    finally:
        directory.close()


@contextmanager
def _told_on(nursery: trio.Nursery, reporter: Reporter, doing: str) -> Iterator[None]:
    """Let the parent know from time to time that this still goes on: a large manifest takes its time to come."""
    scope = trio.CancelScope()

    async def tell() -> None:
        with scope:
            while True:
                reporter.step(doing)
                await trio.sleep(TELL_EVERY_S)

    nursery.start_soon(tell)
    try:
        yield
    finally:
        scope.cancel()


async def _manifest_catalog(
    config: MountConfig, past: Past, library: Library, reporter: Reporter
) -> tuple[HeldCatalog, dict[str, Any]]:
    tell = _teller(reporter)

    def open_store(bucket: str) -> EngineClient:
        return EngineClient(msgspec.structs.replace(config.store, bucket=bucket))

    try:
        async with brought_here(past.manifest, open_store) as manifest:
            digest = await _in_thread(partial(library.digest_of, manifest, tell))
            held = await _in_thread(
                partial(library.of_manifest, manifest, digest, past.bucket, tell)
            )
    except StoreError as error:
        raise MountError(f"{past.manifest} cannot be read: {error}") from error
    about = {
        "manifest": past.manifest,
        "digest": digest,
        "files": held.catalog.meta("files"),
        "bytes": held.catalog.meta("bytes"),
    }
    return held, about


async def _past_catalog(
    config: MountConfig, at_ns: int, library: Library
) -> tuple[HeldCatalog, dict[str, Any]]:
    held = await _in_thread(partial(open_past, library, config, at_ns))
    assert config.past is not None
    return held, {"at": config.past.said, "at_ns": at_ns}


def open_past(library: Library, config: MountConfig, at_ns: int) -> HeldCatalog:
    """The catalog of the configured bucket at a time. Blocks. Raises LocalDiskError."""
    store = config.store
    identity = "\0".join((store.endpoint_url or "aws", store.bucket, config.prefix))
    held = library.of_past(identity, at_ns, SystemClock().now_ns(), SETTLED_NS)
    held.catalog.add(ROOT, [Listed(store.bucket, IMPLIED)])
    return held


def date_of(past: Past, catalog: Catalog) -> int:
    """The date of what has none of its own: the time itself, or of a manifest's newest entry."""
    if past.at_ns is not None:
        return past.at_ns
    newest_ns = catalog.meta("newest_ns")
    return newest_ns if isinstance(newest_ns, int) else 0


def defaults_of(config: MountConfig, date_ns: int) -> Defaults:
    """The attributes of what carries none."""
    return Defaults(
        config.file_mode, config.dir_mode, config.uid, config.gid, date_ns, config.attributes
    )


def _teller(reporter: Reporter) -> Callable[[str], None]:
    """Tells the waiting parent from a thread, and ends the thread's work when its caller was cancelled."""

    def tell(doing: str) -> None:
        trio.from_thread.check_cancelled()
        reporter.step(doing)

    return tell


async def _in_thread(job: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(job)


def namespace_of(endpoint_url: str | None, bucket: str, *kind: str) -> str:
    """What the cache calls a bucket, or a ``kind`` of what is in it: all mounts of it share what they read."""
    what = "\0".join((endpoint_url or "", bucket, *kind))
    return hashlib.sha256(what.encode()).hexdigest()[:16]

"""Builds the parts of a mount, lowest first, and takes them down in reverse."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from s3mount.app.folders import open_spool
from s3mount.app.lifetime import Parts
from s3mount.app.notes import Notes
from s3mount.app.snapshot import namespace_of, snapshots_directory
from s3mount.background import Background
from s3mount.cache.reader import CacheReader
from s3mount.clock import SystemClock
from s3mount.config import MountConfig
from s3mount.daemon.launch import Reporter
from s3mount.engine.client import EngineClient
from s3mount.errors import EngineError, MountError, S3MountError, StoreError
from s3mount.fuse.operations import Operations, forget_entry
from s3mount.names import trial_key
from s3mount.pack.store import open_packed
from s3mount.refs import BucketInfo
from s3mount.s3.lacks import describe_lacks
from s3mount.s3.store import Store
from s3mount.spool.spool import Spool
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.tasks import first_error
from s3mount.vfs.buckets import Access
from s3mount.vfs.filesystem import Filesystem
from s3mount.vfs.live import LiveView
from s3mount.vfs.snapshots.snapshots_dir import SnapshotsDirectory
from s3mount.vfs.view import View

CHECK_TIMEOUT_S = 20.0
"""How long the first look at the bucket may take; a person waits for it."""
RIGHTS_WAIT_S = 1.0
"""How much longer than the bucket's the answer is waited for whether these keys may write."""


@asynccontextmanager
async def build_parts(config: MountConfig, reporter: Reporter) -> AsyncIterator[Parts]:
    """The parts of one mount, ready to be served. Raises S3MountError for what is in the way."""
    reporter.step("opening the state folder")
    async with (
        open_spool(config) as spool,
        EngineClient(config.store) as engine,
        _with_packs(engine, config) as store,
    ):
        reporter.step(f"asking S3 for the bucket {config.store.bucket}")
        bucket, told = await _look_at_bucket(store, config, spool)
        reporter.step("opening the cache")
        namespace = namespace_of(bucket.endpoint_url or config.store.endpoint_url, bucket.name)
        reader = CacheReader(
            store,
            Path(config.cache_dir),
            namespace=namespace,
            size_bytes_max=config.cache_bytes_max,
            free_bytes_min=config.cache_free_bytes_min,
            prefetch_bytes_max=config.prefetch_bytes_max,
        )
        capabilities = KnownCapabilities(keeps_deleted=bucket.versioning == "enabled")
        views: dict[int, View] = {}
        async with trio.open_nursery() as nursery:
            await nursery.start(reader.run)
            with contextlib.ExitStack() as stack:
                notes = Notes()
                snapshots: SnapshotsDirectory | None = None
                if config.snapshots:
                    Background(nursery).start(notes.ask_for_rule, store, config.prefix)
                    await notes.ask_for_hidden_keys(store, f"{config.prefix}{config.snapshots}/")
                    snapshots = stack.enter_context(
                        snapshots_directory(config, capabilities, views, Access(store, reader))
                    )
                filesystem = Filesystem(
                    config=config,
                    store=store,
                    spool=spool,
                    reader=reader,
                    capabilities=capabilities,
                    snapshots=snapshots,
                    forget_entry=forget_entry,
                    # What can be written is mounted with the writeback cache.
                    kernel_keeps_mtime=not config.read_only,
                    clock=SystemClock(),
                    memory_path=Path(config.cache_dir) / namespace / "attributes.sqlite",
                )
                views[0] = LiveView(filesystem)
                yield Parts(
                    filesystem,
                    Operations(views, xattr=config.xattr, snapshots=config.snapshots),
                    store.statistics,
                    _where(bucket),
                    partial(_of_snapshots, snapshots, notes),
                    [*told, *notes.told],
                )
            nursery.cancel_scope.cancel()


def _with_packs(store: Store, config: MountConfig) -> AbstractAsyncContextManager[Store]:
    """``store``, with members of packs as objects where the mount is to show them."""
    if not config.has_packs:
        return contextlib.nullcontext(store)
    return open_packed(
        store,
        config.store.bucket,
        config.prefix,
        ttl_s=config.metadata_ttl_s,
        below=config.pack_below,
        globs=config.pack_globs,
    )


async def _look_at_bucket(
    store: Store, config: MountConfig, spool: Spool
) -> tuple[BucketInfo, list[str]]:
    """Ask for the bucket, and what is to be said of it when it is mounted.

    Whether it may be written is asked for meanwhile, and waited for RIGHTS_WAIT_S longer at most: the status tells
    it, if that comes later.
    """
    lacks: list[str] = []
    asked = trio.Event()

    async def ask_for_rights() -> None:
        with contextlib.suppress(S3MountError):
            may_write = await store.may_write(trial_key(config.prefix))
            lacks.extend(f"this store {lack}" for lack in describe_lacks({"may_write": may_write}))
        asked.set()

    with first_error():
        async with trio.open_nursery() as nursery:
            if not config.read_only:
                nursery.start_soon(ask_for_rights)
            bucket = await _check_bucket(store, config, spool)
            with trio.move_on_after(0 if config.read_only else RIGHTS_WAIT_S):
                await asked.wait()
            nursery.cancel_scope.cancel()
    return bucket, lacks


async def _check_bucket(store: Store, config: MountConfig, spool: Spool) -> BucketInfo:
    """Ask S3 for the bucket, within bounds. The error tells as well what waits to be sent there."""
    try:
        with trio.move_on_after(CHECK_TIMEOUT_S):
            return await store.check_bucket(config.prefix)
        where = config.store.endpoint_url or "AWS"
        raise MountError(f"S3 at {where} did not answer within {CHECK_TIMEOUT_S:g} s")
    except (StoreError, EngineError, MountError) as error:
        if not spool.changes:
            raise
        kept = f"{len(spool.changes)} changes that are not in S3 yet are kept in {config.state_dir}"
        raise MountError(f"{error}; {kept}") from error


def _of_snapshots(snapshots: SnapshotsDirectory | None, notes: Notes) -> dict[str, Any]:
    return {} if snapshots is None else {**snapshots.status(), "notes": tuple(notes.told)}


def _where(bucket: BucketInfo) -> dict[str, str]:
    return {
        "endpoint_url": bucket.endpoint_url,
        "region": bucket.region,
        "versioning": bucket.versioning,
    }

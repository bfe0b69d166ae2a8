"""A mount of a bucket in memory that holds huge things: to see that nothing on the mount's loop grows with them.

``python -m tests.fuse.huge_mount MOUNTPOINT STATE --names N --moved M`` runs what ``s3mount mount`` runs. The
bucket has ``wide/`` with N files, ``moved/`` with M, and ``big``, which is said to be a TiB. Nothing that is
written arrives: whatever changes the bucket waits for ever, so that all of it stays pending.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from s3mount.app.folders import open_spool
from s3mount.app.lifetime import Parts
from s3mount.app.mount import run_mount
from s3mount.app.snapshot import snapshots_directory
from s3mount.cache.reader import CacheReader
from s3mount.config import GIB, MountConfig, RunConfig, StoreConfig
from s3mount.daemon.launch import Reporter
from s3mount.fuse.operations import Operations
from s3mount.refs import ObjectInfo
from s3mount.testing.memory_bucket import Version
from s3mount.testing.memory_store import MemoryStore
from s3mount.vfs.buckets import Access
from s3mount.vfs.filesystem import Filesystem
from s3mount.vfs.live import LiveView
from s3mount.vfs.view import View

SNAPSHOTS = ".snapshots"
TIB = 1024 * GIB
START_NS = 1_700_000_000_000_000_000


class HugeStore(MemoryStore):
    """Only listed and asked for heads; what would change it never comes to an end."""

    def __init__(self, names: int, moved: int) -> None:
        super().__init__("huge")
        keys = [f"moved/f{number:06}" for number in range(moved)]
        keys += [f"wide/f{number:06}" for number in range(names)]
        infos = [self._info(key, len(key)) for key in keys]
        infos.insert(0, self._info("big", TIB))
        bucket = self._bucket
        bucket.names = [info.key.encode() for info in infos]
        bucket.names_ever = list(bucket.names)
        bucket.versions = {info.key: [Version(info, b"")] for info in infos}

    @staticmethod
    def _info(key: str, size: int) -> ObjectInfo:
        digest = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
        return ObjectInfo(key, size, digest, START_NS)

    async def _never(self, *args: Any, **settings: Any) -> Any:
        await trio.sleep_forever()

    put = copy = delete = delete_many = create_multipart = _never


def main() -> int:
    """Mount as the options say, until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("state")
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--moved", type=int, default=1000)
    options = parser.parse_args()
    config = MountConfig(
        store=StoreConfig(bucket="huge"),
        mountpoint=options.mountpoint,
        state_dir=f"{options.state}/state",
        cache_dir=f"{options.state}/cache",
        spool_bytes_max=4 * TIB,
        xattr=True,
        snapshots=SNAPSHOTS,
    )

    @asynccontextmanager
    async def build(config: MountConfig, reporter: Reporter) -> AsyncIterator[Parts]:
        store = HugeStore(options.names, options.moved)
        async with open_spool(config) as spool, trio.open_nursery() as nursery:
            reader = CacheReader(
                store,
                Path(config.cache_dir),
                namespace="huge",
                size_bytes_max=config.cache_bytes_max,
                prefetch_bytes_max=config.prefetch_bytes_max,
            )
            await nursery.start(reader.run)
            filesystem = Filesystem(
                config=config, store=store, spool=spool, reader=reader, kernel_keeps_mtime=True
            )
            views: dict[int, View] = {0: LiveView(filesystem)}
            operations = Operations(views, xattr=config.xattr, snapshots=config.snapshots)
            access = Access(store, reader)
            with snapshots_directory(config, filesystem.capabilities, views, access):
                yield Parts(filesystem, operations, store.statistics)
            nursery.cancel_scope.cancel()

    run = RunConfig(source="huge", foreground=True, drain_timeout_s=0.0)
    return run_mount(config, run, build)


if __name__ == "__main__":
    sys.exit(main())

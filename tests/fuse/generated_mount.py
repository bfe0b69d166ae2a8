"""A mount of a bucket that exists only as a rule: any number of keys, without a server that has to hold them.

``python -m tests.fuse.generated_mount MOUNTPOINT STATE --folders N --files M [--groups G] ...`` runs what
``s3mount mount`` runs, read-only, over a store that computes its list pages: ``gGGGG/dDDDDD/fFFFFF.bin``.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from s3mount.app.lifetime import Parts
from s3mount.app.mount import run_mount
from s3mount.cache.reader import CacheReader
from s3mount.config import MountConfig, RunConfig, StoreConfig
from s3mount.daemon.launch import Reporter
from s3mount.fuse.operations import Operations
from s3mount.refs import ListPage, ObjectInfo
from s3mount.spool.spool import Spool
from s3mount.testing.memory_store import MemoryStore
from s3mount.vfs.filesystem import Filesystem
from s3mount.vfs.live import LiveView

START_NS = 1_700_000_000_000_000_000


class GeneratedStore(MemoryStore):
    """``groups`` x ``folders`` folders with ``files`` files each; only listed, never read."""

    def __init__(self, groups: int, folders: int, files: int) -> None:
        super().__init__("generated")
        self._folders = [
            (f"g{group:04}/" if groups > 1 else "") + f"d{folder:05}/"
            for group in range(groups)
            for folder in range(folders)
        ]
        self._files = [f"f{number:06}.bin" for number in range(files)]

    async def list_page(
        self,
        prefix: str,
        *,
        delimiter: str | None = None,
        token: str | None = None,
        start_after: str | None = None,
        max_keys: int = 1000,
    ) -> ListPage:
        """See ``Store.list_page``."""
        await trio.lowlevel.checkpoint()
        self.requests["list"] = self.requests.get("list", 0) + 1
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        after = max(token or "", start_after or "")
        folder = max(0, bisect.bisect_right(self._folders, max(after, prefix)) - 1)
        while folder < len(self._folders):
            name = self._folders[folder]
            if not name.startswith(prefix) and not prefix.startswith(name):
                if name > prefix:
                    break
                folder += 1
                continue
            if len(objects) + len(prefixes) >= max_keys:
                last = prefixes[-1] if prefixes else objects[-1].key
                return ListPage(tuple(objects), tuple(prefixes), last)
            cut = name.find("/", len(prefix)) if delimiter and len(name) > len(prefix) else -1
            if cut >= 0:
                common = name[: cut + 1]
                if common > after:
                    prefixes.append(common)
                folder = bisect.bisect_left(self._folders, common[:-1] + "0", folder)
                continue
            first = len(self._files) if after >= name else 0
            if after.startswith(name):
                first = bisect.bisect_right(self._files, after[len(name) :])
            for file in self._files[first : first + max_keys - len(objects)]:
                key = name + file
                if key.startswith(prefix):
                    objects.append(self._info(key))
            if len(objects) >= max_keys:
                return ListPage(tuple(objects), tuple(prefixes), objects[-1].key)
            folder += 1
        return ListPage(tuple(objects), tuple(prefixes), None)

    @staticmethod
    def _info(key: str) -> ObjectInfo:
        digest = hashlib.md5(key.encode(), usedforsecurity=False)
        return ObjectInfo(key, len(key), digest.hexdigest(), START_NS + digest.digest()[0] * 10**9)


def main() -> int:
    """Mount as the options say, until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("state")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--inode-bytes-max", type=int, help="room for what was listed")
    options = parser.parse_args()
    config = MountConfig(
        store=StoreConfig(bucket="generated"),
        mountpoint=options.mountpoint,
        state_dir=f"{options.state}/state",
        cache_dir=f"{options.state}/cache",
        read_only=True,
    )

    @asynccontextmanager
    async def build(config: MountConfig, reporter: Reporter) -> AsyncIterator[Parts]:
        store = GeneratedStore(options.groups, options.folders, options.files)
        spool = Spool.open(Path(config.state_dir), size_bytes_max=config.spool_bytes_max)
        async with trio.open_nursery() as nursery:
            reader = CacheReader(
                store,
                Path(config.cache_dir),
                namespace="generated",
                size_bytes_max=config.cache_bytes_max,
                prefetch_bytes_max=config.prefetch_bytes_max,
            )
            await nursery.start(reader.run)
            filesystem = Filesystem(
                config=config, store=store, spool=spool, reader=reader, kernel_keeps_mtime=True
            )
            if options.inode_bytes_max is not None:
                filesystem.state.nodes.bytes_max = options.inode_bytes_max

            async def statistics() -> dict[str, float]:
                return {"requests_list": store.requests.get("list", 0)}

            try:
                yield Parts(
                    filesystem,
                    Operations({0: LiveView(filesystem)}, xattr=config.xattr),
                    statistics,
                )
            finally:
                spool.close()
                nursery.cancel_scope.cancel()

    return run_mount(config, RunConfig(source="generated", foreground=True), build)


if __name__ == "__main__":
    sys.exit(main())

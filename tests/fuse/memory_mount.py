"""A mount of files in memory, to try the life of a mount's process without any S3.

``python -m tests.fuse.memory_mount MOUNTPOINT STATE [options]`` runs what ``s3mount mount`` runs, with a
file system that pretends: a file that was written is "pending" until it has been "sent", which takes
``--send-s`` seconds, or never ends with ``--stuck``, or is refused with ``--refuse``.
Its loop stands still in an fsync with ``--stalls``.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from s3mount.app.lifetime import Parts
from s3mount.app.mount import run_mount
from s3mount.config import MountConfig, RunConfig, StoreConfig
from s3mount.daemon.launch import Reporter
from s3mount.errors import S3MountError

ROOT = pyfuse3.ROOT_INODE


class MemoryFiles(pyfuse3.Operations):
    """One folder of files in memory."""

    enable_writeback_cache = True

    def __init__(self, filesystem: PretendedUploads) -> None:
        super().__init__()
        self._uploads = filesystem
        self._names: dict[bytes, int] = {}
        self._bodies: dict[int, bytearray] = {}
        self._last = ROOT

    def _attributes(self, inode: int) -> EntryAttributes:
        if inode != ROOT and inode not in self._bodies:
            raise FUSEError(errno.ENOENT)
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == ROOT else stat.S_IFREG | 0o644
        entry.st_size = 0 if inode == ROOT else len(self._bodies[inode])
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.attr_timeout = entry.entry_timeout = 0
        return entry

    async def getattr(self, inode: int, ctx: Any) -> EntryAttributes:
        return self._attributes(inode)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: Any, ctx: Any
    ) -> EntryAttributes:
        if fields.update_size:
            body = self._bodies[inode]
            del body[attr.st_size :]
            body.extend(bytes(attr.st_size - len(body)))
        return self._attributes(inode)

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> EntryAttributes:
        if name not in self._names:
            raise FUSEError(errno.ENOENT)
        return self._attributes(self._names[name])

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[FileInfo, EntryAttributes]:
        self._last += 1
        self._names[name] = self._last
        self._bodies[self._last] = bytearray()
        return FileInfo(fh=self._last), self._attributes(self._last)

    async def open(self, inode: int, flags: int, ctx: Any) -> FileInfo:
        return FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self._bodies[fh][off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        body = self._bodies[fh]
        body.extend(bytes(max(0, off - len(body))))
        body[off : off + len(buf)] = buf
        self._uploads.changed(fh)
        return len(buf)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        self._names.pop(name)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for place, (name, inode) in enumerate(list(self._names.items())):
            if place < start_id:
                continue
            if not pyfuse3.readdir_reply(token, name, self._attributes(inode), place + 1):
                return

    async def flush(self, fh: int) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    async def releasedir(self, fh: int) -> None:
        pass

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()

    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        return True

    async def fsync(self, fh: int, datasync: bool) -> None:
        if self._uploads.breaks:
            raise RuntimeError("broken on purpose")
        if self._uploads.stalls:
            stand_still(self._uploads.stalls)


def stand_still(path: str) -> None:
    """Keep the loop from everything else until there is a file at ``path``."""
    while not os.path.exists(path):
        time.sleep(0.05)


class PretendedUploads:
    """What ``vfs.filesystem.Filesystem`` is to the life of a mount, without any S3."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.breaks = options.breaks
        self.stalls = options.stalls
        self._pending: dict[int, float] = {}
        self._sent = 0.0
        self.steering = None

    def changed(self, inode: int) -> None:
        self._pending[inode] = trio.current_time() + self._options.send_s

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            await trio.sleep(0.01)
            if self._options.stuck or self._options.refuse:
                continue
            for inode, due in list(self._pending.items()):
                if due <= trio.current_time():
                    del self._pending[inode]
                    self._sent += 1

    async def wait_uploaded(self, paths: Sequence[str] = ()) -> None:
        while self._pending:
            if self._options.refuse:
                raise S3MountError("S3 refuses 1 of the pending changes")
            await trio.sleep(0.01)

    async def retry(self, paths: Sequence[str], *, overwrite: bool) -> list[str]:
        return []

    async def set_rates(self, up_bytes_per_s: int, down_bytes_per_s: int) -> None:
        await trio.lowlevel.checkpoint()

    async def set_log_level(self, level: str) -> None:
        await trio.lowlevel.checkpoint()

    async def refresh(self, paths: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()

    async def discard(self, paths: Sequence[str], *, is_rehearsal: bool) -> list[str]:
        return []

    def release_waiters(self) -> None:
        pass

    def pending(self) -> tuple[int, int]:
        return len(self._pending), 1024 * len(self._pending)

    def trouble(self) -> str:
        return ""

    async def status(self) -> dict[str, Any]:
        changes, size = self.pending()
        return {"bucket": "pretended", "pending": {"changes": changes, "bytes": size}}

    async def status_of(self, path: str) -> dict[str, Any]:
        if path == "missing":
            raise FileNotFoundError(errno.ENOENT, "No such file", path)
        return {"path": path, "state": "stored"}

    async def statistics(self) -> dict[str, float]:
        return {"bytes_written": self._sent}


def main() -> int:
    """Mount as the options say, until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("state")
    parser.add_argument("--send-s", type=float, default=0.0)
    parser.add_argument("--stuck", action="store_true")
    parser.add_argument("--refuse", action="store_true")
    parser.add_argument("--breaks", action="store_true")
    parser.add_argument("--stalls", help="fsync stands still until there is a file of this name")
    parser.add_argument("--drain-s", type=float, default=10.0)
    parser.add_argument("--no-fast-loop", action="store_true")
    parser.add_argument("--log-file")
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args()
    config = MountConfig(
        store=StoreConfig(bucket="pretended"),
        mountpoint=options.mountpoint,
        state_dir=f"{options.state}/state",
        cache_dir=f"{options.state}/cache",
        fast_loop=not options.no_fast_loop,
    )
    run = RunConfig(
        source="pretended",
        foreground=options.ready_fd is None,
        drain_timeout_s=options.drain_s,
        log_file=options.log_file,
        ready_fd=options.ready_fd,
    )

    @asynccontextmanager
    async def build(config: MountConfig, reporter: Reporter) -> AsyncIterator[Parts]:
        filesystem = PretendedUploads(options)
        yield Parts(filesystem, MemoryFiles(filesystem), filesystem.statistics)

    return run_mount(config, run, build)


if __name__ == "__main__":
    sys.exit(main())

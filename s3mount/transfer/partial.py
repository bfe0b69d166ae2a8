"""What has arrived of a download that may end at any time: a hidden file beside the one that it becomes.

Behind the bytes lie the checksums of their blocks, which whoever writes the bytes writes there with them, and
behind those which version it is. So what a kill left is known by reading it, and nothing has to be noted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct

import msgspec
import trio

from s3mount.errors import DiskFullError, DownloadExistsError, LocalDiskError
from s3mount.refs import ByteRange
from s3mount.s3.checksums import SUM_BYTES, block_sums
from s3mount.transfer.fetching import OpenFile, Wanted

BLOCK_SHIFT = 17
"""Log2 of the block that counts or does not: 128 KiB are sent again, at most, of each range that a kill cut off."""
BLOCKS_MAX_SHIFT = 20
"""Log2 of the most blocks: of more than 128 GiB they are larger."""
PAGE_BYTES = 4096
NAME_BYTES_MAX = 255
READ_BLOCKS = 64
_FLAGS = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Partial:
    """One partial file, held by one process at a time. ``close`` it; ``place`` and ``discard`` end it.

    ``missing`` are the ranges that have still to be fetched, each at most ``range_bytes`` long.
    """

    def __init__(self, path: str, wanted: Wanted, range_bytes: int, *, resume: bool = True) -> None:
        """Open what is there of this version, or begin anew; without ``resume`` always.

        Raises LocalDiskError, DiskFullError where the rest has no room, and DownloadExistsError where another
        process holds it.
        """
        assert wanted.size is not None
        self._path = path
        self._size = wanted.size
        self._name = partial_name(path)
        self._sums_at = -(-self._size // PAGE_BYTES) * PAGE_BYTES
        self._shift = max(BLOCK_SHIFT, (self._size >> BLOCKS_MAX_SHIFT).bit_length())
        self._blocks = -(-self._size // (1 << self._shift))
        self._range_bytes = max(1, range_bytes >> self._shift) << self._shift
        self._head = msgspec.json.encode(wanted._asdict())
        try:
            self._fd = os.open(self._name, _FLAGS, 0o666)
        except OSError as error:
            raise disk_error(path, error) from error
        try:
            self._hold()
            self.is_resumed = self._begin(resume)
        except BaseException:
            self.close()
            raise
        self.missing = self._everything()

    @property
    def file(self) -> OpenFile:
        """The file to fill, reached through its descriptor whatever becomes of its name."""
        return OpenFile(f"/proc/{os.getpid()}/fd/{self._fd}", self._fd, self._sums_at, self._shift)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadExistsError(
                f"{self._path} is being downloaded by another process just now"
            ) from None

    def _begin(self, resume: bool) -> bool:
        """Make the file what it must be; was something of this version there?"""
        head_at = self._sums_at + SUM_BYTES * self._blocks
        there = os.fstat(self._fd)
        length = head_at + len(self._head)
        if resume and there.st_size == length and os.pread(self._fd, length, head_at) == self._head:
            self._check_room(there.st_blocks * 512)
            return True
        try:
            os.ftruncate(self._fd, 0)
            self._check_room(0)
            os.ftruncate(self._fd, head_at)
            os.pwrite(self._fd, self._head, head_at)
        except OSError as error:
            self.discard()
            raise disk_error(self._path, error) from error
        return False

    def _check_room(self, has_bytes: int) -> None:
        """Fail before the transfer where the disk is too full for it.

        ``posix_fallocate`` would reserve the space, but writes it all where the file system has no such call.
        """
        disk = os.fstatvfs(self._fd)
        if disk.f_bavail * disk.f_frsize < self._size - has_bytes:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not has_bytes:
                raise error
            raise disk_error(self._path, error)

    def _everything(self) -> list[ByteRange]:
        step = self._range_bytes
        return [
            ByteRange(start, min(step, self._size - start)) for start in range(0, self._size, step)
        ]

    async def look(self) -> int:
        """Find out what the file has: how many bytes of it need not be fetched. Raises LocalDiskError."""
        if not self.is_resumed:
            await trio.lowlevel.checkpoint()
            return 0
        try:
            present = await trio.to_thread.run_sync(self._present)
        except OSError as error:
            raise disk_error(self._path, error) from error
        self.missing = [
            piece for span in self._everything() for piece in self._lacks(span, present)
        ]
        return self._size - sum(span.length for span in self.missing)

    def _present(self) -> bytearray:
        """Which blocks hold what they should, a byte each. Blocks (the thread)."""
        found = bytearray(self._blocks)
        for first in range(0, self._blocks, READ_BLOCKS):
            count = min(READ_BLOCKS, self._blocks - first)
            stored = os.pread(self._fd, SUM_BYTES * count, self._sums_at + SUM_BYTES * first)
            if not any(stored):
                continue
            start = first << self._shift
            length = min(count << self._shift, self._size - start)
            sums = block_sums(os.pread(self._fd, length, start), self._shift)
            expected = struct.unpack(f"<{count}Q", stored)
            for number, (one, other) in enumerate(zip(sums, expected, strict=False)):
                found[first + number] = one == other
        return found

    def _lacks(self, span: ByteRange, present: bytearray) -> list[ByteRange]:
        """The pieces of a range whose blocks are missing."""
        pieces = []
        first, last = span.start >> self._shift, (span.stop - 1) >> self._shift
        at = present.find(0, first, last + 1)
        while at >= 0:
            stop = present.find(1, at, last + 1)
            stop = last + 1 if stop < 0 else stop
            start = at << self._shift
            pieces.append(ByteRange(start, min(stop << self._shift, span.stop) - start))
            at = present.find(0, stop, last + 1)
        return pieces

    def place(self, mode: int | None, mtime_ns: int | None, *, replace: bool) -> None:
        """Give the file its attributes and its name. Without ``replace`` FileExistsError where the name is taken.

        Raises LocalDiskError.
        """
        try:
            tail = os.pread(self._fd, SUM_BYTES * self._blocks + len(self._head), self._sums_at)
            os.ftruncate(self._fd, self._size)
            set_attributes(self._fd, mode, mtime_ns)
            rename(self._name, self._path, replace=replace)
        except FileExistsError:
            # It can be gone on with, once the name is free.
            os.pwrite(self._fd, tail, self._sums_at)
            raise
        except OSError as error:
            self.discard()
            raise disk_error(self._path, error) from error

    def discard(self) -> None:
        """Remove the file. Repeatable."""
        with contextlib.suppress(OSError):
            os.unlink(self._name)

    def close(self) -> None:
        """Let the file go; what it has stays. Repeatable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def partial_name(path: str) -> str:
    """The partial file of ``path``: hidden, beside it."""
    folder, name = os.path.split(path)
    hidden = f".{name}.partial"
    if len(os.fsencode(hidden)) > NAME_BYTES_MAX:
        hidden = f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.partial"
    return os.path.join(folder, hidden)


def set_attributes(descriptor: int, mode: int | None, mtime_ns: int | None) -> None:
    """Permissions and time of a file, those that are given. Raises OSError."""
    if mode is not None:
        os.fchmod(descriptor, mode)
    if mtime_ns is not None:
        os.utime(descriptor, ns=(mtime_ns, mtime_ns))


def rename(name: str, path: str, *, replace: bool) -> None:
    """Give a file its final name, atomically. Raises FileExistsError where that is taken and not to be replaced."""
    if replace:
        os.replace(name, path)
        return
    try:
        os.link(name, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
        os.rename(name, path)
        return
    os.unlink(name)


def disk_error(path: str, error: OSError) -> LocalDiskError:
    """The error of a file that cannot be written."""
    kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else LocalDiskError
    return kind(f"{path}: {error.strerror}")

"""The cache's files: one sparse file per content, each under a lock that all mounts respect.

Whoever uses a file holds a shared lock on it; whoever takes bytes away needs the exclusive one.
They are open-file-description locks: they belong to the descriptor, not to the process, and a
refused upgrade leaves the shared lock as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from s3mount.cache.blocks import file_bytes, sums_offset
from s3mount.refs import FileSlice
from s3mount.s3.checksums import CacheBlockSums

_PIECE_BYTES = 1 << 20
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
ORPHAN_AGE_S = 10.0
"""A file without a lock that the catalog does not know for so long was left behind by a kill; small
files are on their way into the catalog for less than a second."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def new_name(digest: bytes) -> str:
    """A file name for content with this digest that was never used before.

    So that a late writer, or a catalog row that outlived its file, never meets a newer file.
    """
    return f"{digest.hex()}-{secrets.token_hex(6)}"


class CacheFolder:
    """``root/blocks/ab/abcdef...``: 256 sub-folders, files of mode 0600.

    All methods are synchronous and raise only ``OSError``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blocks = str(root / "blocks")

    def prepare(self) -> None:
        """Make the folder. Repeatable."""
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        os.makedirs(self._blocks, mode=0o700, exist_ok=True)

    def path_of(self, name: str) -> str:
        """Where the file of this name lies."""
        return f"{self._blocks}/{name[:2]}/{name}"

    def create(self, name: str, size: int) -> int:
        """A new sparse file of ``size`` bytes; its descriptor, with a shared lock."""
        descriptor = self._new_file(name)
        try:
            if not _lock(descriptor, fcntl.F_RDLCK):
                raise OSError(errno.EBUSY, "cache file is locked", self.path_of(name))
            os.ftruncate(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open(self, name: str, size: int) -> int:
        """An existing file; its descriptor, with a shared lock.

        Raises ``OSError`` as well when somebody is about to remove it or it is shorter than ``size``.
        """
        descriptor = os.open(self.path_of(name), os.O_RDWR | os.O_CLOEXEC)
        try:
            if not _lock(descriptor, fcntl.F_RDLCK):
                raise OSError(errno.EBUSY, "cache file is being removed", self.path_of(name))
            found = os.fstat(descriptor)
            if found.st_nlink == 0 or found.st_size < size:
                raise OSError(errno.ESTALE, "cache file is not what it was", self.path_of(name))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def write_whole(self, name: str, body: bytes) -> int:
        """A new file with this content; its CRC-32."""
        descriptor = self._new_file(name)
        try:
            view = memoryview(body)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        return zlib.crc32(body)

    def read_whole(self, name: str, size: int, crc: int | None) -> bytes:
        """The content of a small file, which must have ``size`` bytes and (if given) this CRC-32."""
        descriptor = os.open(self.path_of(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            body = os.pread(descriptor, size + 1, 0)
        finally:
            os.close(descriptor)
        if len(body) != size or (crc is not None and zlib.crc32(body) != crc):
            raise OSError(errno.ESTALE, "cache file is not what it was", self.path_of(name))
        return body

    def take_in(self, path: Path, name: str) -> bool:
        """Rename a file into the cache; False when it lies on another file system."""
        target = self.path_of(name)
        try:
            try:
                os.rename(path, target)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
                os.rename(path, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        return True

    def same_file(self, name: str, descriptor: int) -> bool:
        """The descriptor is that of the file which now has this name."""
        try:
            return os.path.samestat(os.stat(self.path_of(name)), os.fstat(descriptor))
        except OSError:
            return False

    def remove(self, name: str, forget: Callable[[], None] | None = None) -> bool:
        """Remove a file that nobody uses; False when somebody does.

        ``forget`` is called under the exclusive lock before the file goes (or when it is gone).
        """
        with self.alone(name) as free:
            if free:
                if forget is not None:
                    forget()
                self.discard(name)
            return free

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[bool]:
        """Hold the exclusive lock on a file; False when others use it. A file that is gone is free."""
        try:
            descriptor = os.open(self.path_of(name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        try:
            yield _lock(descriptor, fcntl.F_WRLCK)
        finally:
            os.close(descriptor)

    def discard(self, name: str) -> None:
        """Remove a file without asking; no error when it is gone."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path_of(name))

    def lock_alone(self, descriptor: int) -> bool:
        """Change the shared lock into the exclusive one; False (and no change) if others hold it."""
        return _lock(descriptor, fcntl.F_WRLCK)

    def lock_shared(self, descriptor: int) -> None:
        """Change the exclusive lock back into the shared one."""
        _lock(descriptor, fcntl.F_RDLCK)

    def disk_room(self) -> tuple[int, int]:
        """Bytes of its disk that are free for this user, and how large the disk is."""
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize

    def disk_bytes(self, name: str) -> int:
        """What a file takes on disk, holes not counted."""
        return os.stat(self.path_of(name)).st_blocks * 512

    def add_sums(self, name: str, size: int, shift: int) -> bool:
        """Write the checksums of all blocks of a complete file behind it; False when it is in use or gone."""
        with self.alone(name) as free:
            if not free:
                return False
            try:
                descriptor = os.open(self.path_of(name), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            try:
                os.ftruncate(descriptor, file_bytes(size, shift))
                sink = FileSlice(name, 0, size, None, sums_offset(size), shift)
                sums = CacheBlockSums(descriptor, sink)
                for start in range(0, size, _PIECE_BYTES):
                    sums.update(os.pread(descriptor, min(_PIECE_BYTES, size - start), start))
            finally:
                os.close(descriptor)
        return True

    def force(self, name: str) -> bool:
        """Force a file's data to the disk; False when it is gone. May take long."""
        try:
            descriptor = os.open(self.path_of(name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        return True

    def punch(self, descriptor: int, offset: int, length: int) -> None:
        """Give the disk space of a range back; it reads as zeros from then on."""
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if _libc.fallocate(descriptor, mode, offset, length):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def sweep(self, shard: int, known: set[str], *, all_ages: bool = False) -> int:
        """Remove the files of one sub-folder (0 to 255) that are not ``known``; how many went.

        Files younger than ORPHAN_AGE_S may be on their way into the catalog and stay,
        unless ``all_ages``; files in use always stay.
        """
        removed = 0
        youngest_s = time.time() - ORPHAN_AGE_S
        try:
            with os.scandir(f"{self._blocks}/{shard:02x}") as found:
                names = [item.name for item in found if item.name not in known]
        except FileNotFoundError:
            return 0
        for name in names:
            try:
                if all_ages or os.stat(self.path_of(name)).st_ctime < youngest_s:
                    removed += self.remove(name)
            except OSError:
                continue
        return removed

    def _new_file(self, name: str) -> int:
        path = self.path_of(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            return os.open(path, flags, 0o600)


def _lock(descriptor: int, kind: int) -> bool:
    # struct flock of Linux, 64 bit: type, whence, start, length (0: all), pid (must be 0)
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True

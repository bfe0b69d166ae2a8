"""Files that appear whole: written under a temporary name in the hidden folder, and renamed to their place."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from typing import NamedTuple

from s3mount.checkout.folders import Folders
from s3mount.checkout.paths import native, split
from s3mount.checkout.target_folder import Target
from s3mount.errors import DiskFullError, LocalDiskError

_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


ASIDES_MAX = 1000
"""So many files are kept aside of one."""


class Guard(NamedTuple):
    """What a new file may take the place of: what was ``seen`` there (``None``: nothing).

    Something else that is there by now is kept aside, and with ``is_edited`` so is that.
    """

    seen: os.stat_result | None
    is_edited: bool

    def spares(self, there: os.stat_result) -> bool:
        """Is it to be kept?"""
        seen = self.seen
        if seen is None or self.is_edited:
            return True
        return (there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns) != (
            *(seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns),
        )


class Landing:
    """One temporary file. ``path`` reaches it through its descriptor, whatever becomes of its name."""

    __slots__ = ("descriptor", "name", "path", "size_bytes")

    def __init__(self, descriptor: int, name: str, size_bytes: int) -> None:
        self.descriptor = descriptor
        self.name = name
        self.size_bytes = size_bytes
        self.path = f"/proc/{os.getpid()}/fd/{descriptor}"


class AtomicWriter:
    """Puts files into a target. Not for more than one thread at a time. Raises LocalDiskError."""

    def __init__(self, target: Target) -> None:
        assert target.root is not None
        self._hidden = target.hidden()
        self.folders = Folders(target.root)
        self._numbers = itertools.count(1)
        self._promised_bytes = 0
        self.kept_aside: list[tuple[str, str]] = []
        """The paths of files that were kept aside, and where."""

    def close(self) -> None:
        """Close the folders. Repeatable."""
        self.folders.close()

    def begin(self, size_bytes: int) -> Landing:
        """A new temporary file of so many bytes.

        DiskFullError where the disk has no room for it beside the others that are being filled.
        """
        name = f"{next(self._numbers)}.part"
        try:
            descriptor = os.open(name, _NEW, 0o666, dir_fd=self._hidden)
        except OSError as error:
            raise disk_error("the folder cannot be written", error) from error
        landing = Landing(descriptor, name, size_bytes)
        self._promised_bytes += size_bytes
        if size_bytes:
            try:
                disk = os.fstatvfs(descriptor)
                if disk.f_bavail * disk.f_frsize < self._promised_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.ftruncate(descriptor, size_bytes)
            except OSError as error:
                self.give_up(landing)
                raise disk_error("no room for a file", error) from error
        return landing

    def give_up(self, landing: Landing) -> None:
        """Remove a temporary file again. Repeatable."""
        if landing.descriptor >= 0:
            self._let_go(landing)
            with contextlib.suppress(OSError):
                os.unlink(landing.name, dir_fd=self._hidden)

    def _let_go(self, landing: Landing) -> None:
        os.close(landing.descriptor)
        landing.descriptor = -1
        self._promised_bytes -= landing.size_bytes

    def put(
        self,
        path: str,
        data: bytes,
        mode: int | None,
        mtime_ns: int | None,
        guard: Guard | None,
    ) -> os.stat_result:
        """Write a whole file; its stat. Errors as for ``place``."""
        landing = self.begin(0)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(landing.descriptor, view) :]
        except OSError as error:
            self.give_up(landing)
            raise disk_error(path, error) from error
        return self.place(landing, path, mode, mtime_ns, guard)

    def place(
        self,
        landing: Landing,
        path: str,
        mode: int | None,
        mtime_ns: int | None,
        guard: Guard | None,
    ) -> os.stat_result:
        """Give a temporary file its attributes and its name, in place of the file that has it now; its stat.

        What ``guard`` spares is kept aside first; without one nothing is.
        What fails leaves the old file, and no temporary one. Raises LocalDiskError: where a folder or, on
        the way, a symbolic link is in the way, among others.
        """
        folder, name = split(path)
        try:
            if mode is not None:
                os.fchmod(landing.descriptor, mode)
            if mtime_ns is not None:
                os.utime(landing.descriptor, ns=(mtime_ns, mtime_ns))
            into = self.folders.find(folder, make=True)
            assert into is not None
            if guard is not None:
                self._spare(guard, path, name, into)
            os.rename(landing.name, native(name), src_dir_fd=self._hidden, dst_dir_fd=into)
            found = os.fstat(landing.descriptor)
        except OSError as error:
            self.give_up(landing)
            raise disk_error(path, error) from error
        self._let_go(landing)
        return found

    def _spare(self, guard: Guard, path: str, name: str, folder: int) -> None:
        try:
            there = os.stat(native(name), dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(there.st_mode) or not guard.spares(there):
            return
        aside = _keep_aside(name, folder)
        self.kept_aside.append((path, path[: len(path) - len(name)] + aside))

    def adjust(self, path: str, mode: int | None, mtime_ns: int | None) -> os.stat_result:
        """Set the attributes of a file whose bytes are right; its stat. Errors as for ``place``."""
        descriptor = open_file(self.folders, path)
        try:
            if mode is not None:
                os.fchmod(descriptor, mode)
            if mtime_ns is not None:
                os.utime(descriptor, ns=(mtime_ns, mtime_ns))
            return os.fstat(descriptor)
        except OSError as error:
            raise disk_error(path, error) from error
        finally:
            os.close(descriptor)


def _keep_aside(name: str, folder: int) -> str:
    """Give a file a second name, beside its own, that is not taken; that name. Raises OSError."""
    for number in range(ASIDES_MAX):
        aside = f"{name}.orig" + (f".{number}" if number else "")
        try:
            os.link(
                *(native(name), native(aside)),
                src_dir_fd=folder,
                dst_dir_fd=folder,
                follow_symlinks=False,
            )
        except FileExistsError:
            if not _are_one_file(name, aside, folder):
                continue
            # A checkout was killed when it had done just this.
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without hard links, or a file of somebody else: it is renamed.
            if _is_there(aside, folder):
                continue
            os.rename(native(name), native(aside), src_dir_fd=folder, dst_dir_fd=folder)
        return aside
    raise OSError(errno.EEXIST, f"{ASIDES_MAX} files were kept aside of it already")


def _are_one_file(name: str, other: str, folder: int) -> bool:
    one, two = (
        os.stat(native(each), dir_fd=folder, follow_symlinks=False) for each in (name, other)
    )
    return os.path.samestat(one, two)


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(native(name), dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def open_file(folders: Folders, path: str) -> int:
    """The file at ``path`` for reading, no symbolic link followed. Raises LocalDiskError."""
    folder, name = split(path)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        where = folders.find(folder)
        if where is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return os.open(native(name), flags, dir_fd=where)
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: str, error: OSError) -> LocalDiskError:
    """The error for a file or folder that cannot be used; a full disk told from other trouble."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
        return LocalDiskError("a folder is in the way")
    if error.errno == errno.EXDEV:
        return LocalDiskError("its folder lies on another file system")
    kind = DiskFullError if full else LocalDiskError
    return kind(f"{path}: {error.strerror}" if path else str(error.strerror))

"""The folder that a manifest is checked out into: which folders are refused, and who works in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import unicodedata
from pathlib import Path
from types import TracebackType

from s3mount import mountinfo
from s3mount.checkout.paths import HIDDEN, NAME_BYTES_MAX, Folding
from s3mount.config import default_state_dir
from s3mount.errors import LocalDiskError, StateInUseError, UsageError

_ROOT = "bin boot dev etc home lib lib32 lib64 libx32 media mnt opt proc root run sbin srv sys tmp usr var"
_SHARED = "usr/bin usr/lib usr/local usr/share var/lib var/log var/tmp"
SYSTEM_FOLDERS = frozenset(f"/{name}" for name in f"{_ROOT} {_SHARED}".split(" "))
"""Folders that the system or everybody shares: never anybody's copy of a bucket."""
KERNEL_FOLDERS = ("/proc", "/sys", "/dev")
"""Nothing below these is a disk, except for memory at /dev/shm."""

_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_RDONLY


def resolve(folder: Path, cache_dir: Path) -> Path:
    """``folder`` as an absolute path without symbolic links.

    Raises UsageError for what must not be a target: the system's own folders, a home folder and what
    lies above it, s3mount's mounts and its state and cache folders and what holds one, and what is no folder.
    """
    # A mount that does not answer would hold up realpath; its place is known by its text.
    plain = mountinfo.absolute(os.path.expanduser(folder))
    mounts = mountinfo.read_mounts()
    _refuse_mounts(plain, mounts)
    path = os.path.realpath(plain)
    _refuse_mounts(path, mounts)
    if path == "/" or path in SYSTEM_FOLDERS:
        raise UsageError(f"{path} is the system's; check out into a folder of its own")
    in_kernel = any(mountinfo.is_within(path, one) for one in KERNEL_FOLDERS)
    if in_kernel and not path.startswith("/dev/shm/"):
        raise UsageError(f"{path} is the kernel's; check out into a folder of its own")
    home = os.path.realpath(os.path.expanduser("~"))
    if mountinfo.is_within(home, path):
        raise UsageError(f"{path} is or holds your home folder; check out into a folder of its own")
    for own in map(os.path.realpath, (default_state_dir(), cache_dir)):
        if mountinfo.is_within(own, path) or mountinfo.is_within(path, own):
            raise UsageError(f"s3mount keeps its own files in {own}; choose another folder")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise UsageError(f"{path} is no folder")
    return Path(path)


def _refuse_mounts(path: str, mounts: list[mountinfo.MountEntry]) -> None:
    if mountinfo.mount_containing(path, mounts) is not None:
        raise UsageError(f"{path} lies in a mount of s3mount: copy there with cp instead")
    for entry in mounts:
        ours = entry.filesystem == mountinfo.FILESYSTEM_TYPE
        if ours and mountinfo.is_within(entry.mountpoint, path):
            raise UsageError(f"{path} holds the mount at {entry.mountpoint}; unmount that first")


class Target:
    """The open folder, held by one checkout at a time; ``None`` as ``root`` where a rehearsal found none."""

    def __init__(self, path: Path, root: int | None) -> None:
        self.path = path
        self.root = root
        self._hidden: int | None = None
        self.name_bytes_max = NAME_BYTES_MAX
        if root is not None:
            with contextlib.suppress(OSError, ValueError):
                self.name_bytes_max = os.fpathconf(root, "PC_NAME_MAX")

    @classmethod
    def open(cls, path: Path, *, is_rehearsal: bool = False) -> Target:
        """Open the folder ``resolve`` gave, made where it is missing unless it is a rehearsal.

        Raises LocalDiskError, and StateInUseError when another checkout works in it.
        """
        if is_rehearsal and not path.exists():
            return cls(path, None)
        try:
            if not is_rehearsal:
                path.mkdir(parents=True, exist_ok=True)
            root = os.open(path, _FLAGS)
        except OSError as error:
            raise LocalDiskError(f"{path}: {error.strerror}") from error
        try:
            if not is_rehearsal:
                _lock(root, path)
            return cls(path, root)
        except BaseException:
            os.close(root)
            raise

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder. Repeatable."""
        for descriptor in (self._hidden, self.root):
            if descriptor is not None:
                os.close(descriptor)
        self._hidden = self.root = None

    def sweep(self) -> int:
        """Remove what a killed checkout left in the hidden folder; how many files. Raises LocalDiskError."""
        assert self.root is not None
        try:
            hidden = os.open(HIDDEN, _FLAGS, dir_fd=self.root)
        except FileNotFoundError:
            return 0
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise LocalDiskError(
                    f"{self.path / HIDDEN} is no folder of checkout's own; remove it"
                ) from None
            raise LocalDiskError(f"{self.path / HIDDEN}: {error.strerror}") from error
        try:
            names = os.listdir(hidden)
            for name in names:
                os.unlink(name, dir_fd=hidden)
            os.rmdir(HIDDEN, dir_fd=self.root)
        except OSError as error:
            raise LocalDiskError(f"{self.path / HIDDEN}: {error.strerror}") from error
        finally:
            os.close(hidden)
        return len(names)

    def hidden(self) -> int:
        """The hidden folder for files that are not whole, made when first asked. Raises LocalDiskError."""
        assert self.root is not None
        if self._hidden is None:
            try:
                os.mkdir(HIDDEN, 0o700, dir_fd=self.root)
                self._hidden = os.open(HIDDEN, _FLAGS, dir_fd=self.root)
            except OSError as error:
                raise LocalDiskError(f"{self.path} cannot be written: {error.strerror}") from error
        return self._hidden

    def clear_up(self) -> None:
        """Remove the hidden folder again; what is still in it stays for the next ``sweep``."""
        if self._hidden is not None and self.root is not None:
            os.close(self._hidden)
            self._hidden = None
            with contextlib.suppress(OSError):
                os.rmdir(HIDDEN, dir_fd=self.root)

    def folding(self) -> Folding:
        """Which names this file system takes for one, found out by trying in the hidden folder.

        Raises LocalDiskError.
        """
        hidden = self.hidden()
        composed, decomposed = "probe-\u00e9", unicodedata.normalize("NFD", "probe-\u00e9")
        return Folding(
            case=_are_one(hidden, "probe-a", "PROBE-A"), form=_are_one(hidden, composed, decomposed)
        )


def _lock(root: int, path: Path) -> None:
    try:
        fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateInUseError(f"another checkout is at work in {path}") from None
    except OSError:
        # Network file systems know no locks on folders; there, two at once only do the work twice.
        return


def _are_one(folder: int, name: str, other: str) -> bool:
    """Is a file made as ``name`` found as ``other``? Raises LocalDiskError."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(name.encode(), flags, 0o600, dir_fd=folder))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EILSEQ):
            return False
        raise LocalDiskError(f"the folder cannot be written: {error.strerror}") from error
    try:
        os.stat(other.encode(), dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    else:
        return True
    finally:
        os.unlink(name.encode(), dir_fd=folder)

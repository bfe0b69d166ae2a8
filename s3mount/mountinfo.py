"""What the kernel says is mounted, read from /proc/self/mountinfo.

Only ``health`` touches a mount point: a stat of a mount whose process is gone or stuck may fail or
never return, and one's own mount must not be looked at by the loop that serves it.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from s3mount.errors import MountError

FILESYSTEM_TYPE = "fuse.s3mount"
"""The type under which the kernel lists our mounts."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountEntry(msgspec.Struct, frozen=True):
    """One line of mountinfo. ``major`` and ``minor`` are those of the file system's device."""

    mountpoint: str
    filesystem: str
    source: str
    major: int
    minor: int
    options: tuple[str, ...]
    super_options: tuple[str, ...]

    @property
    def owner_uid(self) -> int | None:
        """The user who made this FUSE mount; ``None`` where the kernel does not tell."""
        for option in self.super_options:
            name, _, value = option.partition("=")
            if name == "user_id" and value.isdigit():
                return int(value)
        return None


def read_mounts(path: str = "/proc/self/mountinfo") -> list[MountEntry]:
    """All mounts that this process sees, in the order in which they were made.

    Lines that are not understood are left out. Raises MountError where there is no /proc.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return [entry for line in file if (entry := _parse(line)) is not None]
    except OSError as error:
        raise MountError(
            f"what is mounted cannot be read from {path}: {error.strerror}; s3mount needs /proc "
            "(mount -t proc proc /proc)"
        ) from None


def topmost_at(mountpoint: str, mounts: Iterable[MountEntry]) -> MountEntry | None:
    """The mount that a look-up of exactly this absolute path reaches, or ``None``."""
    found = None
    for entry in mounts:
        if entry.mountpoint == mountpoint:
            found = entry
    return found


def mount_containing(path: str, mounts: Iterable[MountEntry]) -> MountEntry | None:
    """The s3mount mount that an absolute path lies in (the mount point included), or ``None``."""
    found = None
    for entry in mounts:
        if not is_within(path, entry.mountpoint):
            continue
        if found is None or len(entry.mountpoint) >= len(found.mountpoint):
            found = entry
    return found if found is not None and found.filesystem == FILESYSTEM_TYPE else None


def is_within(path: str, folder: str) -> bool:
    """Whether the absolute ``path`` is ``folder`` or lies below it, by their text alone."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def absolute(path: str) -> str:
    """``path`` made absolute, with symbolic links resolved in its parent but not in its last part.

    The last part may be a mount that does not answer; its parent is looked at.
    """
    plain = os.path.abspath(path)
    parent, name = os.path.split(plain)
    return os.path.join(os.path.realpath(parent), name) if name else plain


def health(mountpoint: str, timeout_s: float = 5.0) -> Literal["answers", "dead", "silent"]:
    """Whether the process behind a mount answers, is gone, or says nothing within ``timeout_s``.

    For another process's mount only. A mount that never answers costs a thread that ends with
    this process.
    """
    found: list[int] = []

    def look() -> None:
        try:
            os.stat(mountpoint)
            found.append(0)
        except OSError as error:
            found.append(error.errno or errno.EIO)

    thread = threading.Thread(target=look, daemon=True, name="mount-health")
    thread.start()
    thread.join(timeout_s)
    if not found:
        return "silent"
    return "dead" if found[0] in (errno.ENOTCONN, errno.ECONNABORTED) else "answers"


class Copy(msgspec.Struct, frozen=True):
    """A place where a process sees a mount: another mount namespace, such as a container's, or a bind mount."""

    pid: int
    name: str
    mountpoint: str

    @property
    def path(self) -> str:
        """Where this process reaches it, if it may."""
        return f"/proc/{self.pid}/root{self.mountpoint}"

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}) at {self.mountpoint}"


def copies_of(major: int, minor: int, most: int = 5) -> list[Copy]:
    """Where the mount of this device is seen, one process for each mount namespace; as far as /proc tells us.

    Blocks for some milliseconds where many processes run.
    """
    found: dict[str, Copy] = {}
    for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            entries = [] if namespace in found else read_mounts(f"/proc/{pid}/mountinfo")
            name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
        except (OSError, MountError):
            continue
        for entry in entries:
            if (entry.major, entry.minor) == (major, minor):
                found[namespace] = Copy(pid, name, entry.mountpoint)
        if len(found) == most:
            break
    return list(found.values())


def sysfs_readahead(entry: MountEntry) -> Path:
    """The file that holds this mount's read-ahead in KiB."""
    return Path(f"/sys/class/bdi/{entry.major}:{entry.minor}/read_ahead_kb")


def sysfs_connection(entry: MountEntry) -> Path:
    """The folder of this FUSE connection's limits; fusectl must be mounted for it to exist."""
    return Path(f"/sys/fs/fuse/connections/{entry.minor}")


def _parse(line: str) -> MountEntry | None:
    head, separator, tail = line.rstrip("\n").partition(" - ")
    fields, rest = head.split(" "), tail.split(" ")
    if not separator or len(fields) < 6 or len(rest) < 3:
        return None
    major, _, minor = fields[2].partition(":")
    if not (major.isdigit() and minor.isdigit()):
        return None
    return MountEntry(
        mountpoint=_unescape(fields[4]),
        filesystem=rest[0],
        source=_unescape(rest[1]),
        major=int(major),
        minor=int(minor),
        options=tuple(fields[5].split(",")),
        super_options=tuple(rest[2].split(",")),
    )


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)

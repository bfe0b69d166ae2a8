"""One process owns a state folder: a lock that dies with its holder, and a note of who that is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import msgspec

from s3mount import mountinfo
from s3mount.errors import LocalDiskError, StateInUseError

LOCK_NAME = "lock"


Phase: TypeAlias = Literal["serving", "draining", "ended"]


class OwnerNote(msgspec.Struct, frozen=True):
    """Who holds a state folder, or held it last, and for which bucket (``source``).

    ``draining``: its mount has ended, it only sends what is left. ``ended``: in good order, with so
    many changes left that S3 does not have.
    """

    pid: int
    mountpoint: str
    source: str = ""
    phase: Phase = "serving"
    changes_left: int = 0
    bytes_left: int = 0


class StateLock:
    """The lock on one state folder; held from construction to ``close`` or the process's end."""

    def __init__(self, folder: Path, mountpoint: str, source: str = "") -> None:
        """Make the folder (mode 0700) if needed and lock it.

        Raises StateInUseError naming the holder, and LocalDiskError where it cannot be written.
        """
        self._path = folder / LOCK_NAME
        self._mountpoint = mountpoint
        self._source = source
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._earlier = read_owner(folder)
            is_new = self._earlier is None and not any(folder.iterdir())
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalDiskError(
                f"the state folder {folder} cannot be used: {error.strerror}"
            ) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise StateInUseError(_in_use(folder, read_owner(folder))) from None
        except OSError as error:
            os.close(self._fd)
            raise LocalDiskError(
                f"the state folder {folder} cannot be locked: {error.strerror}"
            ) from None
        if is_new:
            self._earlier = OwnerNote(os.getpid(), mountpoint, source, "ended")
        self.note("serving")

    def restore_note(self) -> None:
        """Say again what the owner before said: this one never began. Raises LocalDiskError.

        Without, the folder would pass for that of a mount which was killed.
        """
        if self._earlier is not None:
            self._write(self._earlier)

    def note(self, phase: Phase, changes_left: int = 0, bytes_left: int = 0) -> None:
        """Say in the lock file what this process is doing. Raises LocalDiskError."""
        note = OwnerNote(
            os.getpid(), self._mountpoint, self._source, phase, changes_left, bytes_left
        )
        self._write(note)

    def _write(self, note: OwnerNote) -> None:
        text = msgspec.json.encode(note)
        try:
            # In place: a full disk has no room for what is cut off first.
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))
        except OSError as error:
            raise LocalDiskError(f"{self._path} cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_owner(folder: Path) -> OwnerNote | None:
    """The note of the last holder of a state folder (which may be gone), or ``None``."""
    try:
        return msgspec.json.decode((folder / LOCK_NAME).read_bytes(), type=OwnerNote)
    except (OSError, msgspec.MsgspecError):
        return None


def is_held(folder: Path) -> bool:
    """Does a live process own the state folder? Nothing is changed; the folder need not be there."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def leftovers(base: Path) -> list[tuple[Path, OwnerNote]]:
    """State folders below ``base`` whose last owner did not end with everything in S3.

    Whether that owner is still at it, the caller must know. No folder is locked or changed.
    """
    found = []
    for path in sorted(base.glob(f"*/{LOCK_NAME}")):
        note = read_owner(path.parent)
        if note is not None and (note.phase != "ended" or note.changes_left):
            found.append((path.parent, note))
    return found


def _in_use(folder: Path, owner: OwnerNote | None) -> str:
    if owner is None:
        return f"the state folder {folder} is in use by another process"
    if owner.mountpoint.startswith("s3://"):
        return f"the state folder {folder} is in use by another daemon, process {owner.pid}"
    doing = "is still sending what its last mount left"
    if owner.phase != "draining":
        there = mountinfo.topmost_at(owner.mountpoint, mountinfo.read_mounts())
        if there is None or there.filesystem != mountinfo.FILESYSTEM_TYPE:
            return (
                f"the state folder {folder} is in use by process {owner.pid}, which is about to mount it at "
                f"{owner.mountpoint}, or whose mount is gone from there but held by another mount namespace "
                f"(a container); s3mount unmount {owner.mountpoint} ends that"
            )
        doing = f"has it mounted at {owner.mountpoint}"
    return (
        f"the state folder {folder} is in use by process {owner.pid}, which {doing}; "
        "to mount the same bucket twice give one of them another --state-dir"
    )

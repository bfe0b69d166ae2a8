"""One process owns a state folder: a lock that dies with its holder, and a note of who that is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from s3mount.errors import LocalDiskError, StateInUseError

LOCK_NAME = "lock"


class OwnerNote(msgspec.Struct, frozen=True):
    """Who holds a state folder. ``draining``: its mount has ended, it only sends what is left."""

    pid: int
    mountpoint: str
    phase: Literal["serving", "draining"] = "serving"


class StateLock:
    """The lock on one state folder; held from construction to ``close`` or the process's end."""

    def __init__(self, folder: Path, mountpoint: str) -> None:
        """Make the folder (mode 0700) if needed and lock it.

        Raises StateInUseError naming the holder, and LocalDiskError where it cannot be written.
        """
        self._path = folder / LOCK_NAME
        self._mountpoint = mountpoint
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        self.note("serving")

    def note(self, phase: Literal["serving", "draining"]) -> None:
        """Say in the lock file what this process is doing. Raises LocalDiskError."""
        text = msgspec.json.encode(OwnerNote(os.getpid(), self._mountpoint, phase))
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text, 0)
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


def _in_use(folder: Path, owner: OwnerNote | None) -> str:
    if owner is None:
        return f"the state folder {folder} is in use by another process"
    doing = (
        f"has it mounted at {owner.mountpoint}"
        if owner.phase == "serving"
        else "is still sending what its last mount left"
    )
    return (
        f"the state folder {folder} is in use by process {owner.pid}, which {doing}; "
        "to mount the same bucket twice give one of them another --state-dir"
    )

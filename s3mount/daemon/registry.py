"""Where a running mount leaves word of itself, so that commands find its process.

Each mount writes one small record and one socket into a run folder, both named by a digest of the
mount point. A record outlives a killed process; a reader checks that the process still is the one
that wrote it. The run folder does not depend on HOME, since mount(8) starts its helpers without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from s3mount.errors import LocalDiskError

RUN_DIR_VARIABLE = "S3MOUNT_RUN_DIR"


class MountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One running mount. ``started_ticks`` is the process's start time as /proc tells it.

    ``is_snapshot``: it never has anything to send.
    """

    mountpoint: str
    source: str
    pid: int
    started_ticks: int
    state_dir: str
    log_path: str
    version: str
    is_snapshot: bool = False

    @property
    def alive(self) -> bool:
        """Whether the process that wrote this still runs (and no other has taken its pid)."""
        return process_start_ticks(self.pid) == self.started_ticks


def process_start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; ``None`` when there is no such process."""
    fields = _stat_of(pid)
    # A zombie has ended.
    return None if not fields or fields[0] in ("Z", "X") else int(fields[19])


def process_state(pid: int) -> str:
    """The letter that the kernel gives a process's state (``T``: stopped); empty when there is no such process."""
    return next(iter(_stat_of(pid)), "")


def _stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the state comes first."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def writable_run_dir() -> Path:
    """This user's run folder, made with mode 0700 where needed. Raises LocalDiskError."""
    reasons = []
    for folder in run_dirs(os.geteuid()):
        try:
            folder.mkdir(mode=0o700, parents=False, exist_ok=True)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            continue
        if not _trusted(folder, os.geteuid()):
            reasons.append(f"{folder}: others own it or may write to it")
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reasons.append(f"{folder}: not writable")
    raise LocalDiskError(
        f"no folder for the control socket ({'; '.join(reasons)}); set {RUN_DIR_VARIABLE}"
    )


def run_dirs(uid: int) -> list[Path]:
    """The places where the mounts of a user may have left word, best first."""
    given = os.environ.get(RUN_DIR_VARIABLE)
    if given:
        return [Path(given)]
    found = []
    if uid == 0:
        found.append(Path("/run/s3mount"))
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime) and uid == os.geteuid():
        found.append(Path(runtime) / "s3mount")
    found.extend((Path(f"/run/user/{uid}/s3mount"), Path(f"/tmp/s3mount-{uid}")))
    return list(dict.fromkeys(found))


def socket_name(mountpoint: str) -> str:
    """The name of a mount's control socket in its run folder."""
    return f"{_digest(mountpoint)}.sock"


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """An address for ``path`` that fits a Unix socket's 107 bytes, however deep its folder lies."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def publish(folder: Path, record: MountRecord) -> None:
    """Leave word of a mount; replaces an older record of the same mount point. Raises OSError."""
    target = _record_path(folder, record.mountpoint)
    temporary = target.with_suffix(f".{record.pid}.new")
    temporary.write_bytes(msgspec.json.encode(record))
    temporary.chmod(0o600)
    temporary.replace(target)


def withdraw(folder: Path, record: MountRecord) -> None:
    """Take back one's own record and socket; another process's at the same place stays. Repeatable."""
    found = _read(_record_path(folder, record.mountpoint))
    if found is not None and found != record:
        return
    for path in (_record_path(folder, record.mountpoint), folder / socket_name(record.mountpoint)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def find(mountpoint: str, uid: int) -> tuple[Path, MountRecord] | None:
    """The record of the mount at ``mountpoint`` made by ``uid`` and its folder; may be of a dead process."""
    for folder in run_dirs(uid):
        if not _trusted(folder, uid):
            continue
        record = _read(_record_path(folder, mountpoint))
        if record is not None and record.mountpoint == mountpoint:
            return folder, record
    return None


def find_all(uid: int) -> list[tuple[Path, MountRecord]]:
    """All records that a user's mounts have left, dead processes' too."""
    found = []
    for folder in run_dirs(uid):
        if not _trusted(folder, uid):
            continue
        for path in sorted(folder.glob("*.json")):
            record = _read(path)
            if record is not None:
                found.append((folder, record))
    return found


def _record_path(folder: Path, mountpoint: str) -> Path:
    return folder / f"{_digest(mountpoint)}.json"


def _digest(mountpoint: str) -> str:
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]


def _read(path: Path) -> MountRecord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=MountRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def _trusted(folder: Path, uid: int) -> bool:
    """Whether only ``uid`` or root can have written there."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid in (uid, 0)
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )

"""State folders named on the command line: finding the one that is meant, and describing it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from s3mount import mountinfo, status
from s3mount.cli.mounts.mounts import OUTBOX
from s3mount.config import default_state_dir
from s3mount.daemon import ownership, registry
from s3mount.errors import MountError
from s3mount.spool.journal import salvage

if TYPE_CHECKING:
    from s3mount.spool.journal.inspection import Inspection

SHOWN_MAX = 50
MARKS = (ownership.LOCK_NAME, salvage.JOURNAL, salvage.BLOBS)
"""What a state folder has at least one of."""


class StateFolder(msgspec.Struct, frozen=True):
    """A state folder, its last owner as that one said, and whether that is still at it."""

    folder: Path
    owner: ownership.OwnerNote | None
    is_held: bool

    @property
    def is_outbox(self) -> bool:
        """Is it a daemon's?"""
        return self.owner is not None and self.owner.mountpoint.startswith(OUTBOX)

    @property
    def source(self) -> str:
        """The bucket as it was named when it was mounted, or the folder's name."""
        return (self.owner.source if self.owner is not None else "") or self.folder.name

    def inspect(self) -> Inspection:
        """What lies in it. Raises LocalDiskError."""
        from s3mount.spool.journal.inspection import inspect

        return inspect(self.folder, is_in_use=self.is_held)


def default_base() -> Path:
    """Where state folders lie, unless a mount was told otherwise."""
    return Path(os.environ.get("S3MOUNT_STATE_DIR") or default_state_dir())


def find_state(path: str) -> StateFolder:
    """The state folder that ``path`` is, holds (as ``--state-dir``), or that a mount point there has or had.

    For ``s3://BUCKET`` that of a daemon. Raises MountError when there is none, or more than one.
    """
    if path.startswith(OUTBOX):
        return _find_outbox(path.rstrip("/"))
    mountpoint = mountinfo.absolute(path)
    found = registry.find(mountpoint, os.geteuid())
    entry = mountinfo.topmost_at(mountpoint, mountinfo.read_mounts())
    is_mount = entry is not None and entry.filesystem == mountinfo.FILESYSTEM_TYPE
    if found is not None and (is_mount or found[1].alive):
        return _look(Path(found[1].state_dir))
    if not is_mount:
        given = Path(path).absolute()
        if _is_state(given):
            return _look(given)
        below = states_in(given)
        if len(below) == 1:
            return below[0]
        if below:
            names = ", ".join(str(each.folder) for each in below)
            raise MountError(f"{path} holds more than one state folder; name one of {names}")
    candidates = {mountpoint, os.path.realpath(path) if not is_mount else mountpoint}
    for state in states_in(default_base()):
        if state.owner is not None and state.owner.mountpoint in candidates:
            return state
    raise MountError(
        f"{path} is neither a state folder nor a place where a bucket is or was mounted "
        f"(with its state in {default_base()})"
    )


def _find_outbox(name: str) -> StateFolder:
    found = registry.find(name, os.geteuid())
    if found is not None and found[1].alive:
        return _look(Path(found[1].state_dir))
    for state in states_in(default_base()):
        if state.owner is not None and state.owner.mountpoint == name:
            return state
    raise MountError(f"no daemon has, or left, anything for {name} in {default_base()}")


def states_in(base: Path) -> list[StateFolder]:
    """All state folders directly in ``base``."""
    try:
        folders = sorted(path for path in base.iterdir() if path.is_dir() and _is_state(path))
    except OSError:
        return []
    return [_look(folder) for folder in folders]


def describe(state: StateFolder, found: Inspection) -> str:
    """What lies in a state folder, in lines for a person, without the last newline."""
    lines = [f"{state.folder}: {state.source}"]
    if state.owner is not None and state.is_held:
        lines[0] += f" (in use by process {state.owner.pid})"
    count = len(found.changes)
    lines.append(
        f"  not in S3 yet: {status.amount(count, found.size_bytes)}"
        if count
        else "  nothing is pending"
    )
    for change in found.changes[:SHOWN_MAX]:
        size_bytes = found.bytes_of.get(change.key, 0)
        size = f", {status.size_text(size_bytes)}" if change.op == "put" else ""
        notes = [f" {change.state}: {change.error}"] if change.error else []
        notes += [" its bytes are gone"] if change.key in found.missing else []
        notes += [" known by its blob's label only"] if change.key in found.adopted else []
        lines.append(f"  {change.op} {change.key}{size}{';'.join(notes)}")
    if count > SHOWN_MAX:
        lines.append(f"  and {count - SHOWN_MAX} more")
    if found.problem:
        lines.append(f"  damaged: {found.problem}; it is set aside at the next start")
    lines += [f"  damaged: a row of {key!r} that cannot be read" for key in found.unreadable]
    lines += [
        f"  orphan {orphan.blob_id}, {status.size_text(orphan.size)}: {orphan.why}"
        for orphan in found.orphans
    ]
    lines += [f"  was damaged: {damage}" for damage in found.damages]
    return "\n".join(lines)


def _is_state(folder: Path) -> bool:
    try:
        return any((folder / name).exists() for name in MARKS)
    except OSError:
        return False


def _look(folder: Path) -> StateFolder:
    return StateFolder(folder, ownership.read_owner(folder), ownership.is_held(folder))

"""Which mount a path on the command line means, and how to reach its process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from s3mount import mountinfo, status
from s3mount.config import MountConfig, default_state_dir
from s3mount.daemon import client, ownership, protocol, registry
from s3mount.errors import MountError, UsageError

log = logging.getLogger(__name__)

OUTBOX = "s3://"
"""Begins what names a bucket that a daemon sends to, where others name a mount point."""
STATUS_TIMEOUT_S = 10.0
"""A process that has not answered by then does not answer."""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One mount as the kernel and its own record tell of it; at least one of the two is there."""

    mountpoint: str
    entry: mountinfo.MountEntry | None = None
    folder: Path | None = None
    record: registry.MountRecord | None = None

    @property
    def source(self) -> str:
        """The bucket as it was named when it was mounted."""
        if self.record is not None:
            return self.record.source
        return self.entry.source if self.entry is not None else ""

    @property
    def is_outbox(self) -> bool:
        """Is it no mount, but what a daemon has for a bucket?"""
        return self.mountpoint.startswith(OUTBOX)

    @property
    def alive(self) -> bool:
        """Whether the process that left the record runs."""
        return self.record is not None and self.record.alive

    def connect(self) -> client.ControlClient:
        """A connection to the process. Raises MountError saying why there is none."""
        if self.record is None or self.folder is None:
            raise MountError(
                f"the process of {self.mountpoint} left no word of itself "
                f"(was it started with another {registry.RUN_DIR_VARIABLE}?)"
            )
        if not self.record.alive:
            raise MountError(
                f"the process of {self.mountpoint} is gone; what was written and closed is kept in "
                f"{self.record.state_dir} and is sent at the next mount"
            )
        return client.ControlClient(self.folder, self.record)


def find_mount(path: str) -> tuple[Mount, str]:
    """The mount that ``path`` lies in, and the path relative to it (empty for the mount point).

    For ``s3://BUCKET/KEY`` what a daemon has for the bucket. Raises MountError when it lies in none.
    """
    if path.startswith(OUTBOX):
        return _find_outbox(path)
    mounts = mountinfo.read_mounts()
    for candidate in dict.fromkeys((mountinfo.absolute(path), os.path.abspath(path))):
        entry = mountinfo.mount_containing(candidate, mounts)
        if entry is not None:
            return _with_record(entry), _below(candidate, entry.mountpoint)
        ended = registry.find(candidate, os.geteuid())
        if ended is not None and ended[1].alive:
            return Mount(mountpoint=candidate, folder=ended[0], record=ended[1]), ""
    real = os.path.realpath(path)
    entry = mountinfo.mount_containing(real, mounts)
    if entry is None:
        raise MountError(f"{path} is not a mounted bucket, nor in one")
    return _with_record(entry), _below(real, entry.mountpoint)


def _find_outbox(url: str) -> tuple[Mount, str]:
    bucket, _, key = url.removeprefix(OUTBOX).partition("/")
    name = f"{OUTBOX}{bucket}"
    found = registry.find(name, os.geteuid())
    if found is None or not found[1].alive:
        raise MountError(f"no daemon of yours has anything for {name}; s3mount daemon starts one")
    return Mount(mountpoint=name, folder=found[0], record=found[1]), key


def find_mounts() -> list[Mount]:
    """All mounts of this user (root: everybody's), and processes that still send what theirs left."""
    me = os.geteuid()
    found: dict[str, Mount] = {}
    for entry in mountinfo.read_mounts():
        if entry.filesystem == mountinfo.FILESYSTEM_TYPE and me in (0, entry.owner_uid):
            found[entry.mountpoint] = _with_record(entry)
    for folder, record in registry.find_all(me):
        if record.alive and record.mountpoint not in found:
            found[record.mountpoint] = Mount(
                mountpoint=record.mountpoint, folder=folder, record=record
            )
    return list(found.values())


def config_of(mount: Mount) -> MountConfig:
    """The settings of a running mount. Raises MountError, UsageError."""
    from s3mount.app.settings import recall

    if mount.record is None or not mount.alive:
        raise MountError(f"{mount.mountpoint} has no running process; mount it first")
    if not os.path.exists(os.path.join(mount.record.state_dir, "mount.json")):
        raise UsageError(f"{mount.mountpoint} shows a past that does not change")
    config = recall(Path(mount.record.state_dir))
    if config.past is not None:
        raise UsageError(f"{mount.mountpoint} shows a past that does not change")
    return config


def snapshot_of(mount: Mount) -> status.Snapshot:
    """What the mount's process says of itself, or what can be told without it."""
    if mount.alive:
        try:
            with mount.connect() as connection:
                return msgspec.convert(
                    connection.ask(protocol.Status(), timeout_s=STATUS_TIMEOUT_S), status.Snapshot
                )
        except (MountError, msgspec.ValidationError) as error:
            log.debug("%s: %s", mount.mountpoint, error)
    record = mount.record
    phase = _phase_from_outside(mount)
    return status.Snapshot(
        mountpoint=mount.mountpoint,
        source=mount.source,
        phase=phase,
        pid=record.pid if record is not None and record.alive else None,
        state_dir=record.state_dir if record is not None else "",
        log_path=record.log_path if record is not None else "",
        stuck=_stuck(record) if record is not None and phase == "silent" else "",
    )


def _stuck(record: registry.MountRecord) -> str:
    """Where a process stands that does not answer, as far as it can be told without it."""
    if registry.process_state(record.pid) == "T":
        return f"it is stopped: kill -CONT {record.pid} lets it go on"
    # Only for a mount that does not answer: it imports trio, which takes longer than all else.
    from s3mount import turns

    return turns.last_told(Path(record.log_path), record.pid) if record.log_path else ""


def leftovers(shown: Iterable[status.Snapshot]) -> list[status.Snapshot]:
    """What mounts that are gone have kept in the usual state folder, beside those ``shown`` already."""
    known = {snapshot.state_dir for snapshot in shown}
    base = Path(os.environ.get("S3MOUNT_STATE_DIR") or default_state_dir())
    found = []
    for folder, note in ownership.leftovers(base):
        if str(folder) in known:
            continue
        found.append(
            status.Snapshot(
                mountpoint=note.mountpoint,
                source=note.source,
                phase="ended" if note.phase == "ended" else "lost",
                state_dir=str(folder),
                pending=status.Pending(note.changes_left, note.bytes_left),
            )
        )
    return found


def _phase_from_outside(mount: Mount) -> status.Phase:
    """What can be told of a mount whose process did not answer on its socket."""
    if mount.record is not None:
        return "silent" if mount.alive else "dead"
    health = mountinfo.health(mount.mountpoint, 2.0)
    return "unknown" if health == "answers" else health


def _with_record(entry: mountinfo.MountEntry) -> Mount:
    owner = os.geteuid() if entry.owner_uid is None else entry.owner_uid
    found = registry.find(entry.mountpoint, owner)
    if found is None:
        return Mount(mountpoint=entry.mountpoint, entry=entry)
    return Mount(mountpoint=entry.mountpoint, entry=entry, folder=found[0], record=found[1])


def _below(path: str, mountpoint: str) -> str:
    return path[len(mountpoint.rstrip("/")) :].lstrip("/")

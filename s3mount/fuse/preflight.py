"""What must hold before a mount is tried: each failure is one clear line, and nothing was touched."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import subprocess
from pathlib import Path

from s3mount import mountinfo
from s3mount.config import MountConfig
from s3mount.errors import LocalDiskError, MountError

log = logging.getLogger(__name__)

FUSE_DEVICE = "/dev/fuse"
FUSE_CONFIG = "/etc/fuse.conf"


def check(config: MountConfig, *, nonempty: bool, wants_others: bool) -> None:
    """Raise MountError or LocalDiskError for what would keep this mount from working. Repeatable.

    ``wants_others`` is whether other users are to be let in (allow_other or allow_root).
    """
    check_device()
    check_mountpoint(config.mountpoint, nonempty=nonempty)
    if wants_others and os.geteuid() != 0 and not others_permitted():
        raise MountError(
            f"--allow-other needs a line 'user_allow_other' in {FUSE_CONFIG} (or root)"
        )
    check_folders_apart(config)


def check_device(device: str = FUSE_DEVICE) -> None:
    """Raise MountError when FUSE cannot be used on this machine by this user."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise MountError(
                f"there is no {device}: load the kernel module (modprobe fuse), "
                f"or give the container the device (--device {device})"
            ) from None
        raise MountError(
            f"{device} may not be opened ({error.strerror}): FUSE needs read and write access to it"
        ) from None
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MountError(
            "fusermount3 is not installed; without it only root can mount (package fuse3)"
        )


def check_mountpoint(mountpoint: str, *, nonempty: bool) -> None:
    """Raise MountError unless ``mountpoint`` (absolute, resolved) is a folder to mount on."""
    top = mountinfo.topmost_at(mountpoint, mountinfo.read_mounts())
    if top is not None and top.filesystem == mountinfo.FILESYSTEM_TYPE:
        if mountinfo.health(mountpoint) != "dead":
            raise MountError(f"{mountpoint} is already mounted, with {top.source}")
        clear_dead_mount(mountpoint)
        top = mountinfo.topmost_at(mountpoint, mountinfo.read_mounts())
    if top is not None and top.filesystem == "autofs":
        # Looking into an automount point waits for the mount that is only being made here.
        return
    check_folder(mountpoint, nonempty=nonempty)


def check_folder(mountpoint: str, *, nonempty: bool) -> None:
    """Raise MountError unless this, on which nothing is mounted, is a folder that may be hidden by a mount."""
    try:
        mode = os.stat(mountpoint).st_mode
        names = os.listdir(mountpoint) if stat.S_ISDIR(mode) and not nonempty else []
    except FileNotFoundError:
        raise MountError(f"mount point {mountpoint} does not exist; make it with mkdir") from None
    except OSError as error:
        hint = ""
        if error.errno == errno.ENOTCONN:
            hint = f" (a mount whose process is gone; remove it with: fusermount3 -u {mountpoint})"
        raise MountError(f"mount point {mountpoint}: {error.strerror}{hint}") from None
    if not stat.S_ISDIR(mode):
        raise MountError(f"mount point {mountpoint} is not a directory")
    if names:
        raise MountError(
            f"mount point {mountpoint} is not empty; the mount would hide what is there "
            "(-o nonempty mounts all the same)"
        )


def clear_dead_mount(mountpoint: str) -> None:
    """Take away what an s3mount that died has left at ``mountpoint``, even if somebody stands in it.

    Raises MountError when that is not permitted.
    """
    command = [shutil.which("fusermount3") or "fusermount3", "-u", "-z", mountpoint]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
        )
        said = done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MountError(
            f"{mountpoint} holds a dead mount that cannot be removed: {error}"
        ) from None
    if done.returncode != 0:
        raise MountError(f"{mountpoint} holds a dead mount that cannot be removed: {said}")
    log.warning("%s held a mount whose process is gone; it was removed", mountpoint)


def others_permitted(config_path: str = FUSE_CONFIG) -> bool:
    """Whether users other than root may let others into their mounts."""
    try:
        lines = Path(config_path).read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split("#")[0].strip() == "user_allow_other" for line in lines)


def check_folders_apart(config: MountConfig) -> None:
    """Raise LocalDiskError when state or cache would lie in the mount that they serve, or the reverse."""
    for name, folder in (("state", config.state_dir), ("cache", config.cache_dir)):
        real = os.path.realpath(folder)
        if mountinfo.is_within(real, config.mountpoint):
            raise LocalDiskError(
                f"the {name} folder {folder} lies below the mount point {config.mountpoint}; "
                f"choose another with --{name}-dir"
            )
        if mountinfo.is_within(config.mountpoint, real):
            raise LocalDiskError(
                f"the mount point {config.mountpoint} lies inside the {name} folder {folder}; "
                "choose another mount point"
            )

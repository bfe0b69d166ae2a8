"""What a mount needs of this machine: kernel, FUSE, rights, disks. Nothing here asks S3; everything may block."""

from __future__ import annotations

import importlib
import os
import platform
import resource
import shutil
import stat
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from s3mount import mountinfo
from s3mount.doctor.findings import Finding
from s3mount.errors import MountError
from s3mount.fuse import preflight
from s3mount.status import size_text

KERNEL_MIN = (4, 18)
"""FUSE's writeback cache, readdirplus and copy_file_range as s3mount uses them (Debian 10 has 4.19)."""
DESCRIPTORS_MIN = 1024
FREE_BYTES_MIN = 1 << 30
SYNCS = 5
SYNC_SLOW_S = 0.1
WRITTEN_BYTES = 16 << 20
IN_MEMORY = ("tmpfs", "ramfs", "overlay")
REMOTE = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", mountinfo.FILESYSTEM_TYPE)


def look_at_machine(
    mountpoint: str | None,
    state_dir: Path,
    cache_dir: Path,
    *,
    device: str = preflight.FUSE_DEVICE,
    fuse_config: str = preflight.FUSE_CONFIG,
) -> Iterator[Finding]:
    """All checks, one after another; each may take a second. Nothing is left behind, and nothing raised."""
    checks: tuple[Callable[[], Finding | None], ...] = (
        _kernel,
        lambda: _device(device),
        _library,
        _helper,
        lambda: _allow_other(fuse_config),
        _descriptors,
        lambda: _mountpoint(mountpoint) if mountpoint is not None else None,
        lambda: _disk("state disk", "--state-dir", state_dir, must_last=True),
        lambda: _disk("cache disk", "--cache-dir", cache_dir, must_last=False),
    )
    for check in checks:
        found = check()
        if found is not None:
            yield found


def _kernel() -> Finding:
    release = platform.release()
    told = f"{platform.system()} {release}, Python {platform.python_version()}"
    numbers = release.split("-")[0].split(".")[:2]
    if platform.system() != "Linux" or (
        all(each.isdigit() for each in numbers) and tuple(map(int, numbers)) < KERNEL_MIN
    ):
        wanted = ".".join(map(str, KERNEL_MIN))
        return Finding("kernel", "fault", told, f"s3mount needs Linux {wanted} or newer")
    return Finding("kernel", "ok", told)


def _device(path: str) -> Finding:
    try:
        preflight.check_device(path)
    except MountError as error:
        advice = "modprobe fuse; a container is started with --device /dev/fuse --cap-add SYS_ADMIN"
        return Finding("fuse device", "fault", str(error), advice)
    return Finding("fuse device", "ok", f"{path} can be opened")


def _library() -> Finding:
    try:
        pyfuse3 = importlib.import_module("pyfuse3")
    except ImportError as error:
        advice = "apt install libfuse3-3 (Debian 13: libfuse3-4), and install s3mount again"
        return Finding("libfuse", "fault", f"pyfuse3 cannot be loaded: {error}", advice)
    return Finding("libfuse", "ok", f"pyfuse3 {pyfuse3.__version__}")


def _helper() -> Finding:
    found = shutil.which("fusermount3")
    is_root = os.geteuid() == 0
    if found is None:
        if is_root:
            return Finding("fusermount3", "note", "not there; root mounts without it")
        return Finding("fusermount3", "fault", "not there", "apt install fuse3")
    if not is_root and not os.stat(found).st_mode & stat.S_ISUID:
        advice = f"chmod u+s {found} as root (apt install --reinstall fuse3), or mount as root"
        return Finding("fusermount3", "fault", f"{found} is not setuid root", advice)
    return Finding("fusermount3", "ok", found)


def _allow_other(path: str) -> Finding | None:
    if os.geteuid() == 0:
        return None
    if preflight.others_permitted(path):
        return Finding("allow_other", "ok", f"{path} lets users mount with --allow-other")
    advice = f"a line user_allow_other in {path}, where other users shall see your mounts"
    return Finding("allow_other", "note", "a mount is seen by you alone", advice)


def _descriptors() -> Finding:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < DESCRIPTORS_MIN:
        advice = f"ulimit -Hn {DESCRIPTORS_MIN * 64}, or LimitNOFILE= in the unit"
        return Finding("descriptors", "warning", f"at most {most} open files", advice)
    told = "no limit" if most == resource.RLIM_INFINITY else f"up to {most:,} open files"
    return Finding("descriptors", "ok", told)


def _mountpoint(path: str) -> Finding:
    """A mount that is there is not touched, as it may hang."""
    where = os.path.abspath(path)
    try:
        top = mountinfo.topmost_at(where, mountinfo.read_mounts())
        if top is not None:
            told = f"{where}: {top.source} ({top.filesystem}) is mounted there"
            advice = f"s3mount status {path} tells of it; s3mount unmount {path} ends it"
            return Finding("mount point", "warning", told, advice)
        preflight.check_folder(where, nonempty=False)
        owner = os.stat(where).st_uid
    except (MountError, OSError) as error:
        return Finding("mount point", "fault", str(error), "make it, or name another folder")
    if os.geteuid() not in (0, owner):
        advice = "name a folder of yours: fusermount3 mounts on nothing else"
        return Finding("mount point", "fault", f"{where} belongs to somebody else", advice)
    return Finding("mount point", "ok", f"{where} is an empty folder")


def _disk(check: str, option: str, folder: Path, *, must_last: bool) -> Finding:
    """Is there room, is it a disk of this machine, and how fast is what a close() waits for?"""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        kind = _filesystem_of(there)
        free_bytes = _free_bytes(there)
        seconds_a_sync, bytes_a_second = _try_disk(there)
    except OSError as error:
        advice = f"make it writable, or name another folder by {option}"
        return Finding(check, "fault", f"{folder}: {error.strerror}", advice)
    told = (
        f"{folder} ({kind}): {size_text(free_bytes)} free, {size_text(int(bytes_a_second))}/s, "
        f"{seconds_a_sync * 1000:.1f} ms for a sync"
    )
    if free_bytes < FREE_BYTES_MIN:
        what = "what is written waits there" if must_last else "what was read is kept there"
        return Finding(
            check, "warning", told, f"make room, or name another disk by {option}: {what}"
        )
    if must_last and kind in IN_MEMORY:
        advice = f"name a disk that lasts by {option}: what is not in S3 yet is gone with this one"
        return Finding(check, "warning", told, advice)
    if kind in REMOTE:
        return Finding(check, "warning", told, f"name a disk of this machine by {option}")
    if must_last and seconds_a_sync > SYNC_SLOW_S:
        return Finding(
            check, "warning", told, f"name a faster disk by {option}: fsync() waits for it"
        )
    return Finding(check, "ok", told)


def _filesystem_of(folder: Path) -> str:
    """The type of the file system that holds a folder; ``unknown`` where /proc does not tell."""
    where = os.path.realpath(folder)
    best, kind = "", "unknown"
    try:
        mounts = mountinfo.read_mounts()
    except MountError:
        return kind
    for each in mounts:
        inside = where == each.mountpoint or where.startswith(each.mountpoint.rstrip("/") + "/")
        if inside and len(each.mountpoint) >= len(best):
            best, kind = each.mountpoint, each.filesystem
    return kind


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _try_disk(folder: Path) -> tuple[float, float]:
    """Seconds of one small durable write (the median of a few), and bytes a second of a large one. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder, prefix=".s3mount-doctor-") as file:
        taken = []
        for _ in range(SYNCS):
            began = time.monotonic()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            taken.append(time.monotonic() - began)
        block = os.urandom(1 << 20)
        began = time.monotonic()
        for _ in range(WRITTEN_BYTES // len(block)):
            _write_all(file.fileno(), block)
        os.fdatasync(file.fileno())
        return statistics.median(taken), WRITTEN_BYTES / max(time.monotonic() - began, 1e-9)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]

"""``s3mount wait``: a barrier for scripts."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

import click

from s3mount import mountinfo
from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.mounts import OUTBOX, Mount, find_mount, snapshot_of
from s3mount.cli.param_types import seconds
from s3mount.cli.progress import Uploads
from s3mount.cli.subprocess_timeout import run_with_timeout
from s3mount.daemon import protocol
from s3mount.daemon.client import Refused
from s3mount.errors import MountError, UsageError

WRITE_BACK_TIMEOUT_S = 60.0
ENTRIES_AT_ONCE = 1000


@click.command("wait", short_help="Wait until all changes are in S3.")
@click.argument("mountpoint", type=MOUNTED)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--timeout", type=seconds, metavar="S", help="Give up after this time.")
@click.option(
    "--manifest",
    metavar="FILE",
    help="Then write exactly the versions that this mount has put, as CSV; - for standard output.",
)
def wait(
    mountpoint: str, paths: tuple[str, ...], timeout: float | None, manifest: str | None
) -> int:
    """Wait until all changes made so far to the mount, or only those to PATHs, are in S3.

    Exit status 0 when they are, 1 with what is stuck. A PATH is relative to the mount point, unless
    it is the path of something in the mount. s3://BUCKET/KEY stands for what a daemon has for it.
    """
    mount, relative = find_paths(mountpoint, paths)
    _wait_for(mount, relative, timeout)
    if manifest is not None:
        _write_manifest(mount, relative, manifest)
    return 0


def _wait_for(mount: Mount, relative: tuple[str, ...], timeout: float | None) -> None:
    """Return when all is in S3. Raises MountError and what the mount says of the trouble."""
    uploads = Uploads(timeout)
    with mount.connect() as connection:
        if not mount.is_outbox:
            write_back(mount.mountpoint, timeout)
        connection.send(protocol.Wait(relative))
        try:
            for answer in connection.answers(uploads.silence_s):
                if isinstance(answer, protocol.Done):
                    return
                if isinstance(answer, protocol.Failed):
                    raise Refused(answer.message, answer.exit_code)
                if isinstance(answer, protocol.Progress):
                    uploads.seen(answer)
                if (why := uploads.expired) is not None:
                    raise MountError(f"{why}: {uploads.left}")
        finally:
            uploads.clear()
    raise MountError(f"the process of {mount.mountpoint} ended meanwhile")


def _write_manifest(mount: Mount, paths: tuple[str, ...], output: str) -> None:
    """Write what the mount has put, at or below ``paths``. Raises S3MountError."""
    from s3mount.manifest.formats.writing import ManifestWriter, WholeFile
    from s3mount.manifest.scope import Scope
    from s3mount.spool.journal.put_log import read_puts

    about = snapshot_of(mount)
    if about.read_only:
        raise MountError(f"the mount at {mount.mountpoint} is read-only and has put nothing")
    entries = read_puts(Path(about.state_dir), about.bucket, about.prefix, paths)
    scope = Scope(about.bucket, about.prefix, time.time_ns() // 10**6 * 10**6, is_whole=False)

    def write(file: BinaryIO) -> None:
        writer = ManifestWriter(file, scope=scope)
        while chunk := list(itertools.islice(entries, ENTRIES_AT_ONCE)):
            writer.write(chunk)
        writer.finish()

    if output == "-":
        write(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with WholeFile(Path(output).expanduser()) as file:
        write(file)


def find_paths(mountpoint: str, paths: tuple[str, ...]) -> tuple[Mount, tuple[str, ...]]:
    """The mount, and ``paths`` relative to it; of ``s3://BUCKET/KEY`` the key is one of them.

    Raises MountError, and UsageError when one leads out of the mount.
    """
    mount, inside = find_mount(mountpoint)
    relative = tuple(below_mount(path, mount.mountpoint) for path in paths)
    return mount, (inside, *relative) if mount.is_outbox and inside else relative


def below_mount(path: str, mountpoint: str) -> str:
    """``path`` relative to the mount, whether given so, or as a path of the file system.

    Raises UsageError when it leads out of the mount.
    """
    if mountpoint.startswith(OUTBOX):
        # Keys are no paths: nothing in them leads anywhere.
        return "" if path == "." else path.removeprefix(f"{mountpoint}/")
    full = mountinfo.absolute(path) if os.path.isabs(path) else os.path.abspath(path)
    if not mountinfo.is_within(full, mountpoint):
        if os.path.isabs(path):
            raise UsageError(f"{path} is not in the mount at {mountpoint}")
        full = os.path.normpath(os.path.join(mountpoint, path))
        if not mountinfo.is_within(full, mountpoint):
            raise UsageError(f"{path} leads out of the mount at {mountpoint}")
    return full[len(mountpoint.rstrip("/")) :].lstrip("/")


def write_back(mountpoint: str, timeout_s: float | None) -> None:
    """Make the kernel hand over what programs wrote and it still holds; best effort, bounded."""
    limit = WRITE_BACK_TIMEOUT_S if timeout_s is None else min(timeout_s, WRITE_BACK_TIMEOUT_S)
    with contextlib.suppress(OSError):
        run_with_timeout(["sync", "-f", mountpoint], limit)

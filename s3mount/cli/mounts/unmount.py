"""``s3mount unmount``: the orderly end, which tells what is not in S3."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import click

from s3mount import mountinfo, status
from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.mounts import Mount, find_mount
from s3mount.cli.param_types import seconds
from s3mount.cli.progress import Uploads
from s3mount.cli.subprocess_timeout import run_with_timeout
from s3mount.daemon import client, protocol
from s3mount.errors import MountError, S3MountError

STALL_S = 60.0
UNMOUNT_TIMEOUT_S = 60.0
EXIT_TIMEOUT_S = 20.0


@click.command("unmount", short_help="Send what is left, then unmount.")
@click.argument("mountpoint", type=MOUNTED)
@click.option(
    "--timeout",
    type=seconds,
    metavar="S",
    help="Give up sending after this time.  [default: after 60s without progress]",
)
def unmount(mountpoint: str, timeout: float | None) -> int:
    """Wait until everything is in S3, unmount, and wait until the mount's process has ended.

    Processes in other mount namespaces (containers) that hold a copy of the mount are cut off, and named.

    Exit status 0: everything is in S3. 1: something is not, which is said, kept and sent at the next
    mount; or the mount is in use and still there.
    """
    mount, relative = find_mount(mountpoint)
    if mount.is_outbox:
        assert mount.record is not None
        raise MountError(
            f"{mountpoint} is no mount; s3mount wait {mountpoint} waits for it, and the daemon "
            f"(process {mount.record.pid}) ends in order when it is told by SIGTERM"
        )
    if relative:
        raise MountError(f"{mountpoint} is inside the mount at {mount.mountpoint}; name that")
    if not mount.alive:
        return _clear(mount)
    return _leave(mount, Uploads(timeout, None if timeout is not None else STALL_S))


def _leave(mount: Mount, uploads: Uploads) -> int:
    record = mount.record
    assert record is not None
    with mount.connect() as connection:
        connection.send(protocol.Leave())
        answers = connection.answers(uploads.silence_s)
        ended, trouble = _flush(answers, uploads)
        if trouble is not None:
            click.echo(f"s3mount: {trouble}", err=True)
        if mountinfo.topmost_at(mount.mountpoint, mountinfo.read_mounts()) is not None:
            take_away(mount.mountpoint)
        if trouble is not None:
            _stop_sending(mount)
        ended = ended or _end(answers, uploads)
    if not client.wait_ended(record, EXIT_TIMEOUT_S):
        raise MountError(
            f"{mount.mountpoint} is unmounted, but its process {record.pid} has not ended; "
            f"see {record.log_path or 'its output'}"
        )
    if ended is None:
        raise MountError(
            f"the process of {mount.mountpoint} ended without a word; what was written and closed "
            f"is kept in {record.state_dir}"
        )
    if ended.cut_off:
        click.echo(
            f"s3mount: copies of the mount were held by {', '.join(ended.cut_off)}: cut off there",
            err=True,
        )
    if ended.files:
        raise MountError(
            f"{mount.mountpoint} is unmounted; not in S3 yet: "
            f"{status.amount(ended.files, ended.size_bytes)}, kept in {record.state_dir} "
            f"and sent at the next mount of {record.source}"
        )
    told = "" if record.is_snapshot else "; everything is in S3"
    click.echo(f"{mount.mountpoint} is unmounted{told}")
    return 0


def _flush(
    answers: Iterator[protocol.Answer], uploads: Uploads
) -> tuple[protocol.Ended | None, str | None]:
    """Wait for the first part of ``Leave``: whether that was the last word, and why not all is in S3."""
    try:
        for answer in answers:
            if isinstance(answer, protocol.Flushed):
                return None, None
            if isinstance(answer, protocol.Failed):
                return None, answer.message
            if isinstance(answer, protocol.Ended):
                return answer, None
            if isinstance(answer, protocol.Progress):
                uploads.seen(answer)
            if (why := uploads.expired) is not None:
                return None, f"{why}: {uploads.left}"
    finally:
        uploads.clear()
    return None, "the mount's process ended meanwhile"


def _end(answers: Iterator[protocol.Answer], uploads: Uploads) -> protocol.Ended | None:
    """Wait for the last part of ``Leave``; ``None`` when the process died instead."""
    try:
        for answer in answers:
            if isinstance(answer, protocol.Ended):
                return answer
            if isinstance(answer, protocol.Progress):
                uploads.seen(answer)
    finally:
        uploads.clear()
    return None


def _stop_sending(mount: Mount) -> None:
    """The mount is gone and we have waited long enough: its process is to keep the rest."""
    with contextlib.suppress(S3MountError), mount.connect() as connection:
        connection.ask(protocol.Stop())


def _clear(mount: Mount) -> int:
    """Take away a mount whose process is gone, or left no word of itself."""
    health = mountinfo.health(mount.mountpoint)
    take_away(mount.mountpoint)
    where = f" in {mount.record.state_dir}" if mount.record is not None else ""
    if health == "answers":
        raise MountError(
            f"{mount.mountpoint} is unmounted, but its process could not be asked what is left; "
            "it goes on sending that"
        )
    raise MountError(
        f"{mount.mountpoint} is unmounted; its process had died. What was written and closed is "
        f"kept{where} and sent at the next mount of {mount.source}"
    )


def take_away(mountpoint: str) -> None:
    """Unmount. Raises MountError saying who uses it, or what else is in the way."""
    command = [shutil.which("fusermount3") or "fusermount3", "-u", mountpoint]
    try:
        done, said = run_with_timeout(command, UNMOUNT_TIMEOUT_S)
    except OSError as error:
        raise MountError(
            f"cannot run fusermount3 ({error.strerror}); is fuse3 installed?"
        ) from None
    if done is None:
        raise MountError(f"{mountpoint} could not be unmounted within {UNMOUNT_TIMEOUT_S:g} s")
    if done == 0 or mountinfo.topmost_at(mountpoint, mountinfo.read_mounts()) is None:
        return
    reason = said.splitlines()[-1].removeprefix("fusermount3: ") if said else f"status {done}"
    users = users_of(mountpoint)
    if users:
        raise MountError(f"{mountpoint} is in use by {', '.join(users)}; it is still mounted")
    raise MountError(f"{mountpoint} could not be unmounted: {reason}")


def users_of(mountpoint: str, most: int = 5) -> list[str]:
    """Processes with an open file, a mapping's program or their current folder in the mount.

    As far as this user may see them; by the text of links in /proc, never by touching the mount.
    """
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", f"/proc/{pid}/exe"]
        with contextlib.suppress(OSError):
            links += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
        for link in links:
            try:
                used = mountinfo.is_within(os.readlink(link), mountpoint)
            except OSError:
                continue
            if used:
                found.append(f"{_name(pid)} (pid {pid})")
                break
        if len(found) == most:
            break
    return found


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "a process"

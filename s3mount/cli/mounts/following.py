"""What a running mount tells as it goes: ``s3mount events`` and ``s3mount logs``."""

from __future__ import annotations

import os
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

import click

from s3mount.cli import output
from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.mounts import find_mount
from s3mount.cli.mounts.steering import running
from s3mount.daemon import protocol
from s3mount.daemon.client import ANSWER_TIMEOUT_S, Refused
from s3mount.errors import LocalDiskError, MountError, UsageError
from s3mount.refs import MountEvent

LOOK_S = 0.25
"""How often it is looked whether a log has grown."""


@click.command("events", short_help="What happens to a mount, as JSON lines.")
@click.argument("mountpoint", type=MOUNTED)
@click.option("-f", "--follow", is_flag=True, help="Go on with those to come, until interrupted.")
@click.option("--since", type=int, default=0, metavar="SEQ", help="Only events behind this number.")
def events(mountpoint: str, follow: bool, since: int) -> int:
    """Print what happened to the mount, a line of JSON each: uploads, refusals, conflicts, outages, evictions.

    The last 2,000 events are known. Each has a number (seq); where some are left out, they are not known any more.
    docs/OPERATIONS.md explains each kind.

    Exit status 0; with --follow 1 when the mount's process ended.
    """
    mount, _ = running(mountpoint)
    with mount.connect() as connection:
        connection.send(protocol.Follow(since, is_once=not follow))
        for answer in connection.answers(ANSWER_TIMEOUT_S):
            if isinstance(answer, protocol.Done):
                return 0
            if isinstance(answer, protocol.Failed):
                raise Refused(answer.message, answer.exit_code)
            if isinstance(answer, protocol.Happened):
                for event in answer.events:
                    output.write_json(_shown(event))
                output.flush()
    raise MountError(f"the process of {mount.mountpoint} ended")


def _shown(event: MountEvent) -> dict[str, object]:
    at = datetime.fromtimestamp(event.at_ns / 1e9, UTC)
    told = {"seq": event.seq, "time": at.isoformat(timespec="milliseconds"), "kind": event.kind}
    return told | event.about


@click.command("logs", short_help="The log of a mount.")
@click.argument("mountpoint", type=MOUNTED)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged, until interrupted.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=100, metavar="N", help="[default: 100]"
)
def logs(mountpoint: str, follow: bool, lines: int) -> int:
    """Print the last lines of the mount's log; of a mount whose process was killed as well.

    Lines of JSON where it was mounted with --log-format json. With --follow, also into the files that come when
    the log is rotated.
    """
    mount, _ = find_mount(mountpoint)
    path = mount.record.log_path if mount.record is not None else ""
    if not path:
        raise UsageError(
            f"{mount.mountpoint} logs to standard error: it was mounted in the foreground"
        )
    try:
        _show_log(Path(path), lines, follow)
    except OSError as error:
        raise LocalDiskError(f"the log {path} cannot be read: {error.strerror}") from None
    return 0


def _show_log(path: Path, lines: int, follow: bool) -> None:
    """Raises OSError."""
    file = path.open(encoding="utf-8", errors="replace")
    try:
        for line in deque(file, lines):
            output.write_line(line.rstrip("\n"))
        begun = ""
        while follow:
            output.flush()
            more = file.readline()
            begun += more
            if begun.endswith("\n"):
                output.write_line(begun.rstrip("\n"))
                begun = ""
            elif not more and _is_rotated(path, file.fileno()):
                file.close()
                file = path.open(encoding="utf-8", errors="replace")
            elif not more:
                time.sleep(LOOK_S)
    finally:
        file.close()


def _is_rotated(path: Path, descriptor: int) -> bool:
    """Is there another file of that name now?"""
    try:
        return not os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

"""``s3mount undo`` and ``s3mount history``: bring a path of a mount back to what it was, and tell what it was."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from s3mount import logs
from s3mount.cli import output
from s3mount.cli.completing import MOUNTED
from s3mount.cli.manifests.status_line import StatusLine
from s3mount.cli.mounts.mounts import config_of, find_mount
from s3mount.cli.mounts.wait import find_paths
from s3mount.daemon import protocol
from s3mount.errors import UsageError

if TYPE_CHECKING:
    from s3mount.app.manifests import Restored
    from s3mount.app.undo import Dialog
    from s3mount.manifest.restoring import Plan, Step


@click.command("undo", short_help="Bring files of a mount back to what they were at a time.")
@click.argument("mountpoint", type=MOUNTED)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--to", "at", required=True, metavar="TIME", help="2026-10-01T00:00Z, 2026-10-01, -3d, -10m."
)
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def undo(mountpoint: str, paths: tuple[str, ...], at: str, dry_run: bool, yes: bool) -> int:
    """Bring PATHs of the mount, or all of it, back to what they were at TIME: old versions are copied inside S3.

    What a folder has now and had not then is deleted. Nothing is lost: what is there now stays as older
    versions, and another undo brings it back. For buckets that keep versions. Changes that are not in S3 yet
    are sent first. Asks before it does anything.

    Exit status 0: they are as they were. 1: some are not; what failed is named.
    """
    from s3mount.app import undo as past
    from s3mount.manifest.times import parse_time

    if not dry_run and not yes and not sys.stdin.isatty():
        raise UsageError(
            "undo asks first, and there is no terminal to ask on: give --yes or --dry-run"
        )
    now_ns = time.time_ns()
    at_ns = parse_time(at, now_ns)
    if at_ns > now_ns:
        raise UsageError(f"--to {at}: that time is yet to come")
    mount, relative = find_paths(mountpoint, paths)
    config = config_of(mount)
    with mount.connect() as connection:
        connection.ask(protocol.Wait(relative))
    logs.to_terminal("error")
    is_right = True
    for path in relative or ("",):
        done = past.undo(config, path, at_ns, _dialog(dry_run, yes))
        for key, restored in done.items():
            is_right &= _tell(f"s3://{config.store.bucket}/{key}", restored, dry_run)
    with mount.connect() as connection:
        connection.ask(protocol.Refresh(relative or ("",)))
    return 0 if is_right else 1


def _dialog(dry_run: bool, yes: bool) -> Dialog:
    from s3mount.app.undo import Dialog
    from s3mount.cli.manifests.manifest import show_plans

    line = StatusLine()

    def agree(plans: list[Plan]) -> bool:
        line.clear()
        show_plans(plans, with_steps=dry_run)
        if dry_run or not any(plan.steps for plan in plans):
            return False
        return yes or click.confirm("Bring this back?", err=True)

    def report(step: Step, why: str) -> None:
        line.say(f"s3mount: {step.key}: {why}")

    return Dialog(agree, report, line)


def _tell(place: str, restored: Restored, dry_run: bool) -> bool:
    """Say what came of one place; is it as it was?"""
    progress, counts = restored.progress, restored.counts
    if restored.is_done:
        click.echo(
            f"{progress.copied:,} files brought back, {progress.deleted:,} deleted, "
            f"{progress.failed:,} failed: {place}",
            err=True,
        )
    steps = counts["copy"] + counts["look"] + counts["delete"]
    is_refused = not (dry_run or restored.is_done) and steps > 0
    return not (progress.failed or progress.stopped or counts["missing"] or is_refused)


@click.command("history", short_help="The versions of a file in a mount.")
@click.argument("path", type=MOUNTED)
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each version.")
def history(path: str, as_json: bool) -> int:
    """List the versions in S3 of the file at PATH, which may have been removed: when written, size, version.

    s3mount undo brings one back. Changes that are not in S3 yet are no versions.
    """
    from s3mount.app import undo as past
    from s3mount.manifest.times import format_time
    from s3mount.status import size_text

    mount, relative = find_mount(path)
    if not relative:
        raise UsageError(f"{path} is the whole mount: name a file in it")
    config = config_of(mount)
    logs.to_terminal("error")
    for version in past.history(config, relative):
        if as_json:
            output.write_json(version)
            continue
        what = "deleted" if version.is_delete_marker else size_text(version.size)
        now = "  (now)" if version.is_latest else ""
        output.write_line(
            f"{format_time(version.last_modified_ns)}  {what:>10}  {version.version_id}{now}"
        )
    return 0

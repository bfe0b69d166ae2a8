"""``s3mount status``: what is mounted, and what is not in S3 yet."""

from __future__ import annotations

import click

from s3mount import status as snapshots
from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.mounts import find_mount, find_mounts, leftovers, snapshot_of
from s3mount.daemon import protocol


@click.command("status", short_help="What is mounted, and what is not in S3 yet.")
@click.argument("path", type=MOUNTED, required=False, metavar="[MOUNTPOINT|PATH]")
@click.option("-v", "--verbose", is_flag=True, help="Each thing that S3 honours, or does not.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(path: str | None, as_json: bool, verbose: bool) -> int:
    """Show all your mounts, one MOUNTPOINT, or what is known of the file at one PATH in a mount.

    s3://BUCKET/KEY stands for what a daemon has for it. Without an argument also what daemons have, and what earlier
    mounts keep for the next one, in the usual state folder.

    Exit status 0; 1 when a mount shown does not work any more, or PATH is in no mount.
    """
    if path is None:
        found = [snapshot_of(mount) for mount in find_mounts()]
        found += leftovers(found)
        if as_json:
            click.echo(snapshots.to_json(found))
        elif not found:
            click.echo("no bucket is mounted")
        else:
            click.echo("\n\n".join(snapshots.to_text(each, is_all=verbose) for each in found))
        return _exit_code(found)
    mount, relative = find_mount(path)
    if relative:
        with mount.connect() as connection:
            described = connection.ask(protocol.StatusOf(relative))
        click.echo(snapshots.to_json(described) if as_json else snapshots.file_to_text(described))
        return 0
    snapshot = snapshot_of(mount)
    click.echo(
        snapshots.to_json(snapshot) if as_json else snapshots.to_text(snapshot, is_all=verbose)
    )
    return _exit_code([snapshot])


def _exit_code(found: list[snapshots.Snapshot]) -> int:
    return 1 if any(snapshot.phase in ("dead", "silent") for snapshot in found) else 0

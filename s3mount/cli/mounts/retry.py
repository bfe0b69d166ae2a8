"""``s3mount retry``: another try of what S3 refused, now."""

from __future__ import annotations

import click

from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.wait import find_paths
from s3mount.daemon import protocol
from s3mount.errors import MountError


@click.command("retry", short_help="Try again now what S3 refused.")
@click.argument("mountpoint", type=MOUNTED)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--overwrite", is_flag=True, help="Let yours replace what others wrote, in held conflicts."
)
def retry(mountpoint: str, paths: tuple[str, ...], overwrite: bool) -> int:
    """Try again now what S3 refused or could not take, everywhere or at and below PATHs.

    Credentials are asked for anew first: those that were exchanged count at once. A conflict that was held
    keeps both versions this time: yours becomes NAME.conflict-HOST-TIME. How it went is told by s3mount
    status, or wait. Exit status 0; 1 when nothing at PATHs waits for it.
    """
    mount, relative = find_paths(mountpoint, paths)
    if not mount.alive:
        raise MountError(
            f"{mountpoint} has no running process; s3mount recover {mountpoint} sends what it left"
        )
    with mount.connect() as connection:
        answer = connection.ask(protocol.Retry(relative, overwrite))
    keys = answer.get("keys", [])
    for key in keys:
        click.echo(key)
    click.echo(f"{len(keys)} tried again now" if keys else "nothing waits for another try")
    return 0

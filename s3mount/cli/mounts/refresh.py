"""``s3mount refresh``: look at S3 again, whatever was believed."""

from __future__ import annotations

import click

from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.mounts import find_mount
from s3mount.cli.mounts.wait import below_mount
from s3mount.daemon import protocol
from s3mount.errors import MountError


@click.command("refresh", short_help="Forget what is known; the next look asks S3.")
@click.argument("mountpoint", type=MOUNTED)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def refresh(mountpoint: str, paths: tuple[str, ...]) -> int:
    """Forget what is known of the mount, or of PATHs and all below them: the next look asks S3.

    For what others changed just now, with a long --metadata-ttl, or in attributes alone. What is not in S3 yet
    stays; who has a file open goes on with its version. MOUNTPOINT may be a path in the mount itself.
    """
    mount, inside = find_mount(mountpoint)
    if not mount.alive:
        raise MountError(f"{mountpoint} has no running process")
    relative = [below_mount(path, mount.mountpoint) for path in paths] or [inside or ""]
    with mount.connect() as connection:
        connection.ask(protocol.Refresh(tuple(relative)))
    return 0

"""``s3mount bwlimit``: how fast a running mount may be, from now on."""

from __future__ import annotations

import click

from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.mounts import find_mount
from s3mount.cli.param_types import rates
from s3mount.daemon import protocol
from s3mount.errors import MountError


@click.command("bwlimit", short_help="Change how fast a running mount may be.")
@click.argument("mountpoint", type=MOUNTED)
@click.argument("rate", type=rates, metavar="RATE[:RATE]")
def bwlimit(mountpoint: str, rate: tuple[int, int]) -> int:
    """Hold the mount to so many bytes a second from now on, to S3 and from it: 10M, 512K:2M, off:1M, off.

    What is under way counts at once. The next mount is as its own --bwlimit says. MOUNTPOINT may be a path in
    the mount itself.
    """
    mount, _ = find_mount(mountpoint)
    if not mount.alive:
        raise MountError(f"{mountpoint} has no running process")
    up, down = rate
    with mount.connect() as connection:
        connection.ask(protocol.SetRates(up, down))
    return 0

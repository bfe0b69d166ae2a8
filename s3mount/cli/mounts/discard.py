"""``s3mount discard``: give pending changes up."""

from __future__ import annotations

import click

from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.mounts import Mount, find_mount
from s3mount.cli.mounts.state_folders import find_state
from s3mount.cli.mounts.wait import below_mount
from s3mount.daemon import protocol
from s3mount.errors import MountError, UsageError


@click.command("discard", short_help="Give up changes that are not in S3 yet.")
@click.argument("place", type=MOUNTED, metavar="MOUNTPOINT|STATE_DIR")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--yes", is_flag=True, help="Do it; without, only show what would be given up.")
def discard(place: str, paths: tuple[str, ...], yes: bool) -> int:
    """Give up what is not in S3 yet at and below each PATH: what was written here is lost, S3's state shows again.

    Files and deletions alike; "." means everything. A file that was moved comes back under its old name.
    What is just on its way may still arrive. s3mount export keeps a copy.

    Exit status 0: given up. 1: nothing is pending there. 2: --yes is missing; nothing was changed.
    """
    mount = _mount_at(place)
    keys = _in_mount(mount, paths, yes) if mount is not None else _in_folder(place, paths, yes)
    for key in keys:
        click.echo(key)
    if not yes:
        raise UsageError(f"{len(keys)} would be given up; nothing was, add --yes to do it")
    click.echo(f"{len(keys)} given up")
    return 0


def _mount_at(place: str) -> Mount | None:
    try:
        mount, _ = find_mount(place)
    except MountError:
        return None
    return mount if mount.alive else None


def _in_mount(mount: Mount, paths: tuple[str, ...], yes: bool) -> list[str]:
    relative = tuple(below_mount(path, mount.mountpoint) for path in paths)
    with mount.connect() as connection:
        answer = connection.ask(protocol.Discard(relative, is_rehearsal=not yes))
    return list(answer.get("keys", []))


def _in_folder(place: str, paths: tuple[str, ...], yes: bool) -> list[str]:
    from s3mount.app.discard import discard_in

    state = find_state(place)
    mountpoint = state.owner.mountpoint if state.owner is not None else ""
    if mountpoint:
        relative = tuple(below_mount(path, mountpoint) for path in paths)
    else:
        relative = tuple("" if path == "." else path.strip("/") for path in paths)
    return discard_in(state.folder, mountpoint, state.source, relative, is_rehearsal=not yes)

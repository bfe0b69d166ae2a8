"""``s3mount export``: pending files, copied out."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
import msgspec

from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.state_folders import StateFolder, find_state
from s3mount.cli.mounts.wait import write_back
from s3mount.errors import MountError, S3MountError
from s3mount.names import OWN_NAME
from s3mount.spool.journal import salvage

FLUSH_TIMEOUT_S = 10.0
OWN_MARKER = f"{OWN_NAME}/"


@click.command("export", short_help="Copy files that are not in S3 yet into a folder.")
@click.argument("place", type=MOUNTED, metavar="MOUNTPOINT|STATE_DIR")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def export(place: str, folder: Path) -> int:
    """Copy what is not in S3 yet out of a mount, or out of a state folder, into the new folder DIR.

    Files keep their paths, modes and times. S3 is not asked for anything, and nothing is changed: what was
    pending is so still. Of a large file that was changed in part, only the changed bytes are here: it
    becomes NAME.partial.

    Exit status 0: all of it was copied. 1: something is not whole, which is named.
    """
    from s3mount.spool.export import export as copy_out

    state = find_state(place)
    if state.is_held and state.owner is not None and not state.is_outbox:
        write_back(state.owner.mountpoint, FLUSH_TIMEOUT_S)
    inspection = state.inspect()
    copied = 0
    trouble = 0
    prefix = _prefix_of(state)
    # The top's own marker is no file of anybody's.
    changes = [change for change in inspection.changes if change.key not in (prefix, OWN_MARKER)]
    for done in copy_out(changes, state.folder / salvage.BLOBS, folder, prefix):
        copied += done.path is not None
        if done.why:
            trouble += 1
            where = f"{done.path}: " if done.path is not None else ""
            click.echo(f"{done.key}: {where}{done.why}", err=True)
    for orphan in inspection.orphans:
        if orphan.size:
            trouble += 1
            click.echo(f"the blob {orphan.path} is not copied: {orphan.why}", err=True)
    click.echo(f"{copied} copied to {folder}")
    if trouble:
        raise MountError(f"{trouble} of what is pending could not be copied whole")
    return 0


def _prefix_of(state: StateFolder) -> str:
    """The prefix that was mounted: paths are relative to it."""
    from s3mount.app.settings import recall

    with contextlib.suppress(S3MountError, msgspec.MsgspecError):
        return recall(state.folder).prefix
    return ""

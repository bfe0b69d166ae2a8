"""``s3mount recover``: what a state folder holds, and sending it without a mount."""

from __future__ import annotations

import click

from s3mount import logs, status
from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.state_folders import (
    StateFolder,
    default_base,
    describe,
    find_state,
    states_in,
)
from s3mount.cli.param_types import seconds
from s3mount.cli.progress import Uploads
from s3mount.daemon.protocol import Progress
from s3mount.errors import MountError, StateInUseError, UsageError
from s3mount.spool.journal import salvage

STALL_S = 60.0


@click.command("recover", short_help="Send what a state folder holds, without a mount.")
@click.argument("place", type=MOUNTED, required=False, metavar="[STATE_DIR|MOUNTPOINT]")
@click.option("--dry-run", is_flag=True, help="Only show what is there; change nothing.")
@click.option(
    "--set-aside", is_flag=True, help="Set a newer release's journal aside and go on without it."
)
@click.option(
    "--timeout",
    type=seconds,
    metavar="S",
    help="Give up sending after this time.  [default: after 60s without progress]",
)
def recover(place: str | None, dry_run: bool, set_aside: bool, timeout: float | None) -> int:
    """Show what STATE_DIR, or what the last mount at MOUNTPOINT left, and send all of it to S3.

    Without an argument, show what lies in the usual state folders. What is damaged is set aside and
    reported first; nothing is lost when it is interrupted.

    Exit status 0: everything is in S3 (or was shown). 1: something is not, which is named and kept.
    """
    if place is None:
        if set_aside or timeout is not None:
            raise UsageError("name the state folder or mount point to recover")
        found = states_in(default_base())
        texts = [describe(state, state.inspect()) for state in found]
        click.echo("\n\n".join(texts) if texts else f"no state is kept in {default_base()}")
        return 0
    state = find_state(place)
    inspection = state.inspect()
    click.echo(describe(state, inspection))
    if dry_run:
        return 0
    if state.is_held:
        raise StateInUseError(
            f"{state.folder} is in use by a process that sends all this by itself; "
            "see s3mount status, retry and wait"
        )
    return _send(state, timeout, set_aside)


def _send(state: StateFolder, timeout: float | None, set_aside: bool) -> int:
    from s3mount.app.recover import recover as send_all
    from s3mount.app.settings import recall
    from s3mount.daemon.ownership import StateLock

    config = recall(state.folder)
    if set_aside:
        with StateLock(state.folder, config.mountpoint, state.source):
            salvage.heal(state.folder, newer_too=True)
    logs.to_terminal("error")
    uploads = Uploads(timeout, None if timeout is not None else STALL_S)
    reasons: list[str] = []

    def watch(progress: Progress) -> bool:
        uploads.seen(progress)
        why = uploads.expired
        if why is not None:
            reasons.append(why)
        return why is None

    try:
        outcome = send_all(config, state.source, watch)
    finally:
        uploads.clear()
    damages = salvage.damages(state.folder)
    for damage in damages:
        click.echo(f"damaged: {damage}", err=True)
    if not outcome.changes:
        click.echo("everything is in S3")
        return 0
    for pending in outcome.pending:
        if pending["error"]:
            click.echo(f"{pending['state']}: {pending['key']}: {pending['error']}", err=True)
    why = outcome.trouble or "; ".join(reasons[:1])
    left = status.amount(outcome.changes, outcome.size_bytes)
    raise MountError(f"not in S3 yet: {left}, kept in {state.folder}{f' ({why})' if why else ''}")

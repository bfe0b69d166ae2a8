"""What mount(8) starts: ``mount.s3mount BUCKET MOUNTPOINT [-sfnv] [-o OPTIONS]``, also from fstab.

Without mount.s3mount or mount.fuse.s3mount in /sbin, ``mount -t fuse.s3mount`` goes through the
mount.fuse of libfuse, which starts the ordinary command.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import click

from s3mount.cli.mounts.mountoptions import Options, split
from s3mount.errors import S3MountError, UsageError

MOUNT_FAILED = 32
WRONG_USAGE = 1
"""Exit statuses as mount(8) documents them."""


@click.command("mount-helper", hidden=True, add_help_option=False)
@click.argument("source")
@click.argument("target")
@click.option("-o", "options", multiple=True)
@click.option("-f", "fake", is_flag=True)
@click.option("-s", "sloppy", is_flag=True)
@click.option("-n", "no_mtab", is_flag=True)
@click.option("-v", "verbose", is_flag=True)
@click.option("-N", "namespace")
@click.option("-t", "filesystem")
@click.pass_context
def helper(
    ctx: click.Context,
    source: str,
    target: str,
    options: tuple[str, ...],
    fake: bool,
    sloppy: bool,
    no_mtab: bool,
    verbose: bool,
    namespace: str | None,
    filesystem: str | None,
) -> int:
    """Mount SOURCE at TARGET as mount(8) asks for it, and answer with its exit statuses."""
    from s3mount.cli.mounts.mount import mount

    if namespace is not None:
        raise UsageError("mount -N: s3mount cannot mount in another namespace")
    words = [word for given in options for word in split(given)]
    if sloppy:
        words = _known(ctx, mount.params, words)
    arguments = ["mount", source, target]
    for word in words:
        arguments += ["-o", word.replace("\\", "\\\\").replace(",", "\\,").replace('"', '\\"')]
    if fake:
        return 0
    try:
        with mount.make_context("mount", arguments[1:], obj=arguments) as inner:
            inner.params["quiet"] = not verbose
            status: int = mount.invoke(inner)
    except click.UsageError as error:
        click.echo(f"s3mount: {error.format_message()}", err=True)
        return WRONG_USAGE
    except S3MountError as error:
        click.echo(f"s3mount: {error}", err=True)
        return WRONG_USAGE if isinstance(error, UsageError) else MOUNT_FAILED
    if status == 2:
        return WRONG_USAGE
    return MOUNT_FAILED if status else 0


def started_by_mount_fuse() -> bool:
    """Whether this is the command of libfuse's mount.fuse: the child of its shell, below mount(8)."""
    parent = os.getppid()
    if _comm(parent) in ("sh", "dash", "bash"):
        parent = _parent_of(parent)
    return _comm(parent) == "mount"


def without_blanket_grants(arguments: Sequence[str]) -> list[str]:
    """The arguments of mount.fuse without the ``dev`` and ``suid`` that it puts last.

    It does so for root whether they were asked for or not, unless nodev or nosuid were. A bucket is
    trusted with neither unasked; whoever wants them installs mount.fuse.s3mount.
    """
    kept = list(arguments)
    for place in range(len(kept) - 1, 0, -1):
        if kept[place - 1] == "-o":
            words = kept[place].split(",")
            while words and words[-1] in ("dev", "suid"):
                words.pop()
            kept[place] = ",".join(words)
            break
    return kept


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _known(
    ctx: click.Context, parameters: Sequence[click.Parameter], words: list[str]
) -> list[str]:
    """The words that mean something; mount -s asks to pass over the others."""
    known = []
    for word in words:
        with contextlib.suppress(click.UsageError):
            Options(parameters).take(ctx, word.replace(",", "\\,"))
            known.append(word)
    return known

"""What mount(8) starts: ``mount.s3mount BUCKET MOUNTPOINT [-sfnv] [-o OPTIONS]``, also from fstab."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import click

from s3mount.cli.mountoptions import Options, split
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
    from s3mount.cli.mount import mount

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

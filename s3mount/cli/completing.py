"""``s3mount completion``, and what a shell then completes: places in S3, mount points, names of mounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from s3mount import mountinfo
from s3mount.cli.config_file import MARK, give_defaults, load
from s3mount.errors import S3MountError

VARIABLE = "_S3MOUNT_COMPLETE"
"""By which a shell asks for its completion script, and for completions."""
SHELLS = ("bash", "zsh", "fish")
ANSWER_S = 2.0
"""Whoever presses the tab key waits no longer for S3."""
SCHEME = "s3://"


class Place(click.types.StringParamType):
    """A place in S3, or a local path."""

    name = "place"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Buckets and keys below what was typed; local paths for what is no URL."""
        if SCHEME.startswith(incomplete) and incomplete:
            return [CompletionItem(SCHEME)]
        if not incomplete.startswith(SCHEME):
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(each) for each in _in_s3(incomplete, ctx.params)]


class Mounted(click.types.StringParamType):
    """A mount, or a path in one."""

    name = "mount"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Mount points, names of the configuration file, and paths."""
        found = [each for each in _mounts(incomplete) if each.startswith(incomplete)]
        if found:
            return [CompletionItem(each) for each in found]
        return [CompletionItem(incomplete, type="file")]


PLACE = Place()
MOUNTED = Mounted()


def _mounts(incomplete: str) -> Iterable[str]:
    try:
        if incomplete.startswith(MARK):
            return [f"{MARK}{name}" for name in load().mounts]
        mounted = mountinfo.read_mounts()
    except S3MountError:
        # A shell that completes has no place for a message.
        return []
    return [each.mountpoint for each in mounted if each.filesystem == mountinfo.FILESYSTEM_TYPE]


def _in_s3(incomplete: str, options: Mapping[str, Any]) -> list[str]:
    """What may follow, each with what was typed before it; nothing where S3 does not tell in time."""
    from s3mount.cli.options import store_config, store_option_list
    from s3mount.s3.account import list_names

    bucket, slash, beginning = incomplete.removeprefix(SCHEME).partition("/")
    try:
        command = click.Command("completing", params=list(store_option_list()))
        give_defaults(command.name or "", command)
        with command.make_context("completing", []) as context:
            given = context.params | {name: value for name, value in options.items() if value}
        config = store_config(given, bucket if slash else "")
        found = list_names(config, beginning, timeout_s=ANSWER_S)
    except (S3MountError, click.ClickException):
        return []
    if not slash:
        return [f"{SCHEME}{name}/" for name in found if name.startswith(bucket)]
    return [f"{SCHEME}{bucket}/{name}" for name in found]


def script(shell: str, group: click.Command) -> str:
    """What a shell reads to complete ``s3mount``."""
    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(group, {}, "s3mount", VARIABLE).source()
    if shell == "bash":
        # Else a colon parts words, and s3://bucket is three of them; and what goes on behind a slash gets a blank.
        goes_on = "    [[ ${COMPREPLY[0]} == */ ]] && compopt -o nospace\n\n    return 0"
        return f"COMP_WORDBREAKS=${{COMP_WORDBREAKS//:/}}\n{source.replace('    return 0', goes_on, 1)}"
    return source


@click.command("completion", short_help="What a shell reads to complete s3mount.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print it: eval "$(s3mount completion bash)" lets a running shell have it.

    Keys are completed by one list of what was typed, for which S3 has two seconds.
    """
    click.echo(script(shell, ctx.find_root().command))
    return 0

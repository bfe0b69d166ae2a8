"""Which command is meant, and how it ends: one line on stderr and an exit status.

0: done. 1: it failed, or something is not in S3 yet. 2: the command line is wrong. 130: interrupted. Commands over
many objects have more (docs/TRANSFER.md).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import click

from s3mount import logs
from s3mount.cli import completing, config_file, output
from s3mount.cli.mounts import mount_helper
from s3mount.cli.options import ENVIRONMENT_PREFIX
from s3mount.version import __version__

EXIT_INTERRUPTED = 130
"""As of a program that SIGINT ended."""

COMMANDS: Mapping[str, str] = {
    "mount": "s3mount.cli.mounts.mount:mount",
    "unmount": "s3mount.cli.mounts.unmount:unmount",
    "status": "s3mount.cli.mounts.status:status",
    "wait": "s3mount.cli.mounts.wait:wait",
    "retry": "s3mount.cli.mounts.retry:retry",
    "refresh": "s3mount.cli.mounts.refresh:refresh",
    "bwlimit": "s3mount.cli.mounts.bwlimit:bwlimit",
    "pause": "s3mount.cli.mounts.steering:pause",
    "resume": "s3mount.cli.mounts.steering:resume",
    "loglevel": "s3mount.cli.mounts.steering:loglevel",
    "prefetch": "s3mount.cli.mounts.steering:prefetch",
    "pin": "s3mount.cli.mounts.steering:pin",
    "unpin": "s3mount.cli.mounts.steering:unpin",
    "evict": "s3mount.cli.mounts.steering:evict",
    "events": "s3mount.cli.mounts.following:events",
    "logs": "s3mount.cli.mounts.following:logs",
    "discard": "s3mount.cli.mounts.discard:discard",
    "export": "s3mount.cli.mounts.export:export",
    "recover": "s3mount.cli.mounts.recover:recover",
    "undo": "s3mount.cli.mounts.undo:undo",
    "history": "s3mount.cli.mounts.undo:history",
    "restore": "s3mount.cli.mounts.restore:restore",
    "metrics": "s3mount.cli.mounts.metrics:metrics",
    "doctor": "s3mount.cli.mounts.doctor:doctor",
    "ls": "s3mount.cli.objects.ls:ls",
    "du": "s3mount.cli.objects.du:du",
    "cat": "s3mount.cli.objects.cat:cat",
    "rm": "s3mount.cli.objects.rm:rm",
    "sync": "s3mount.cli.objects.sync:sync",
    "cancel": "s3mount.cli.objects.cancel:cancel",
    "sum": "s3mount.cli.objects.sums:sums",
    "verify": "s3mount.cli.objects.verify:verify",
    "pack": "s3mount.cli.objects.pack:pack",
    "presign": "s3mount.cli.objects.presign:presign",
    "generate-sse-key": "s3mount.cli.objects.sse_key:generate_sse_key",
    "run": "s3mount.cli.run:run_lines",
    "checkout": "s3mount.cli.manifests.checkout:checkout",
    "manifest": "s3mount.cli.manifests.manifest:manifest",
    "cp": "s3mount.cli.objects.cp:cp",
    "mv": "s3mount.cli.objects.cp:mv",
    "send": "s3mount.cli.objects.send:send",
    "daemon": "s3mount.cli.daemon:daemon",
    "upload": "s3mount.cli.objects.upload:upload",
    "download": "s3mount.cli.objects.upload:download",
    "config": "s3mount.cli.mounts.config:config",
    "completion": "s3mount.cli.completing:completion",
    "demo": "s3mount.cli.demo:demo",
    "mount-helper": "s3mount.cli.mounts.mount_helper:helper",
}

OF_MOUNTS = frozenset(
    (
        "unmount",
        "umount",
        "status",
        "wait",
        "retry",
        "refresh",
        "bwlimit",
        "pause",
        "resume",
        "loglevel",
        "prefetch",
        "pin",
        "unpin",
        "evict",
        "events",
        "logs",
        "discard",
        "export",
        "recover",
        "undo",
        "metrics",
    )
)
"""Commands in which ``@NAME`` of the configuration file stands for its mount point."""

ALIASES: Mapping[str, str] = {"umount": "unmount"}

HINTS: Mapping[str, str] = {
    "list": "s3mount ls s3://BUCKET/PREFIX/ lists objects; s3mount status shows what is mounted",
    "mounts": "s3mount status shows what is mounted",
    "info": "s3mount status MOUNTPOINT tells all of a mount",
    "df": "s3mount status MOUNTPOINT tells what is kept locally",
    "fsync": "s3mount wait MOUNTPOINT returns when all is in S3",
    "flush": "s3mount wait MOUNTPOINT returns when all is in S3",
    "fsck": "s3mount recover --dry-run shows what a mount that is gone left",
    "remount": "s3mount unmount, then mount it with the new options",
    "start": "s3mount BUCKET MOUNTPOINT mounts a bucket",
    "stop": "s3mount unmount MOUNTPOINT ends a mount",
    "help": "s3mount --help",
    "version": "s3mount --version",
}
"""Names that people try for commands, and what does that. A bucket of such a name needs ``mount`` before it."""

HELPER_NAMES = frozenset(("mount.s3mount", "mount.fuse.s3mount"))
"""Names under which mount(8) starts its helpers."""

OTHER_VARIABLES = frozenset(
    (
        "S3MOUNT_RUN_DIR",
        "S3MOUNT_DEMO_PYTHON",
        "S3MOUNT_SSE_C_KEY",
        "S3MOUNT_SRC_SSE_C_KEY",
        config_file.VARIABLE,
    )
)
"""Variables of ours that mirror no option."""


TEST_PREFIXES = ("S3MOUNT_TEST_", "S3MOUNT_SIM_", "S3MOUNT_CRASH_", "S3MOUNT_PROPERTY_")
"""Begin the variables of the test suites."""


class Commands(click.Group):
    """The group of all commands; each one's module is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or ``None``."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        found: click.Command = getattr(importlib.import_module(module), name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant, which the configuration file gives defaults."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None and not ctx.resilient_parsing:
            config_file.give_defaults(name, command)
        return name, command, rest


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="s3mount BUCKET MOUNTPOINT is short for s3mount mount BUCKET MOUNTPOINT. Options of mount "
    "have variables: --part-size is S3MOUNT_PART_SIZE. Exit status: 0 done, 1 failed or not all in "
    "S3, 2 wrong usage, 130 interrupted.",
)
@click.version_option(__version__, message="s3mount %(version)s")
def group() -> None:
    """An S3 bucket as a folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. Nothing but SystemExit's kin comes out of it."""
    if arguments is None:
        output.prepare()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and os.path.basename(sys.argv[0]) in HELPER_NAMES:
        given = ["mount-helper", *given]
    elif (
        arguments is None and given[:1] != ["mount-helper"] and mount_helper.started_by_mount_fuse()
    ):
        given = [*mount_helper.without_blanket_grants(given), "--quiet"]
    if not given and completing.VARIABLE not in os.environ:
        context = click.Context(group, info_name="s3mount", **group.context_settings)
        click.echo(group.get_help(context), err=True)
        return 2
    warn_of_unknown_variables()
    try:
        given = with_command(given)
        result = group.main(
            args=given,
            prog_name="s3mount",
            standalone_mode=False,
            obj=given,
        )
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        output.complain(" ".join(error.format_message().split()))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        output.complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  the last stop: what reaches it becomes one line
        message, exit_code = logs.explain(error, None)
        output.complain(message)
        return exit_code


def with_command(given: list[str]) -> list[str]:
    """The arguments with ``mount`` put first where they name a bucket instead of a command."""
    words = [word for word in given if not word.startswith("-")]
    if words and words[0] in OF_MOUNTS:
        given = [config_file.mountpoint_of(word) for word in given]
    if not words or words[0] in COMMANDS:
        return given
    if given[0] in ALIASES:
        return [ALIASES[given[0]], *given[1:]]
    if words[0].startswith(config_file.MARK):
        return ["mount", *given]
    for meant in (given[0], _bucket_of(given)):
        if meant in HINTS or meant in ALIASES:
            does = HINTS.get(meant) or f"s3mount {ALIASES[meant]} MOUNTPOINT"
            raise click.UsageError(
                f"{meant!r} is no command ({does}); to mount a bucket of that name: s3mount mount {meant}"
            )
    if words == given[:1] and "://" not in words[0]:
        raise click.UsageError(
            f"{words[0]!r} is no command; to mount a bucket: s3mount BUCKET MOUNTPOINT"
        )
    return ["mount", *given]


def _bucket_of(given: list[str]) -> str:
    """What the arguments would have the mount command take for the bucket."""
    if not any(word in HINTS or word in ALIASES for word in given):
        return ""
    from s3mount.cli.mounts.mount import mount

    with mount.make_context("mount", list(given), resilient_parsing=True) as context:
        return context.params.get("bucket") or ""


def warn_of_unknown_variables() -> None:
    """Name S3MOUNT_ variables that mean nothing: a misspelt one would be ignored silently."""
    present = {
        name
        for name in os.environ
        if name.startswith(ENVIRONMENT_PREFIX) and not name.startswith(TEST_PREFIXES)
    }
    if not present - OTHER_VARIABLES:
        return
    for name in sorted(present - known_variables()):
        output.complain(f"warning: the variable {name} means nothing to s3mount")


def known_variables() -> set[str]:
    """Every variable of ours that has a meaning."""
    context = click.Context(group)
    known = set(OTHER_VARIABLES)
    for name in COMMANDS:
        command = group.get_command(context, name)
        for parameter in command.params if command is not None else ():
            if isinstance(parameter.envvar, str):
                known.add(parameter.envvar)
    return known

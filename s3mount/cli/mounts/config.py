"""``s3mount config``: is the configuration file right, and where does each value of a mount come from?"""

from __future__ import annotations

from typing import Any

import click
import msgspec
from click.core import ParameterSource

from s3mount.cli import output
from s3mount.cli.config_file import MARK, ConfigFile, checked, load, shown
from s3mount.cli.options import ENVIRONMENT_PREFIX, store_option_list
from s3mount.errors import UsageError


class Setting(msgspec.Struct, frozen=True):
    """One option of a mount: its value, as it was written or as it is by default, and where that stands."""

    option: str
    value: Any
    source: str


@click.group(
    "config", short_help="The configuration file: check it, show what it makes of a mount."
)
def config() -> None:
    """Named mounts and defaults, in TOML: ~/.config/s3mount/config.toml, or the file that S3MOUNT_CONFIG names."""


@config.command("check")
def check() -> int:
    """Read the file and all that it says, as a mount would. Exit status 2 tells that something is wrong in it."""
    file = load()
    if not file.path.exists():
        click.echo(f"there is no {file.path}: nothing to check")
        return 0
    checked(file, "defaults", file.defaults, store_option_list())
    for name in file.mounts:
        settings_of(file, name, [])
    names = ", ".join(f"{MARK}{name}" for name in file.mounts) or "no mount"
    click.echo(f"{file.path}: all right; it names {names}")
    return 0


@config.command("show", context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="@NAME")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--all", "is_all", is_flag=True, help="With the values that nobody set.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each option.")
def show(name: str, options: tuple[str, ...], is_all: bool, as_json: bool) -> int:
    """What s3mount @NAME [OPTIONS] would mount and how, and where each value comes from."""
    if not name.startswith(MARK):
        raise click.UsageError(f"name a mount of the file: {MARK}{name}")
    file = load()
    for each in settings_of(file, name.removeprefix(MARK), list(options)):
        if not is_all and each.source == "default":
            continue
        if as_json:
            output.write_json(each)
        else:
            output.write_line(f"{each.option:20} {text_of(each.value):30} {each.source}")
    return 0


def settings_of(file: ConfigFile, name: str, words: list[str]) -> list[Setting]:
    """The options of a mount as they would be, without mounting it. Raises UsageError, click.UsageError."""
    from s3mount.cli.mounts.mount import mount, mount_config

    section = file.mount(name)
    # Where the file names no mount point, the command line would.
    place = [] if "mountpoint" in section else ["/"]
    try:
        with mount.make_context("mount", [f"{MARK}{name}", *place, *words]) as context:
            mount_config({**context.params, "kernel": ()})
            values = {each.name: context.params.get(each.name or "") for each in mount.params}
            sources = {
                each.name: context.get_parameter_source(each.name or "") for each in mount.params
            }
    except click.UsageError as error:
        raise UsageError(f"{file.path}: [mounts.{name}]: {error.format_message()}") from None
    return [
        Setting(shown(option), values[option], _where(file, name, option, sources[option]))
        for option in values
        if option not in (None, "ready_fd", "help_all")
    ]


def _where(file: ConfigFile, name: str, option: str, source: ParameterSource | None) -> str:
    section = file.mount(name)
    if source is ParameterSource.ENVIRONMENT:
        return f"variable {ENVIRONMENT_PREFIX}{option.upper()}"
    if source is ParameterSource.DEFAULT_MAP or (
        option in ("bucket", "mountpoint") and option in section
    ):
        part = f"mounts.{name}" if option in section else "defaults"
        return f"{file.path} [{part}]"
    return "command line" if source is ParameterSource.COMMANDLINE else "default"


def text_of(value: object) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)

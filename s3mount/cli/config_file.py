"""The configuration file: named mounts (``s3mount @work``) and defaults for how S3 is reached, in TOML.

    [defaults]
    endpoint-url = "https://rgw.example:7480"

    [mounts.work]
    bucket = "s3://my-bucket/photos"
    mountpoint = "/mnt/work"
    cache-size = "50G"

Keys are the names of options. What stands on the command line wins over a variable, a variable over the named
mount, that over ``[defaults]``. A key that nobody knows is an error.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from s3mount.cli.options import store_option_list
from s3mount.errors import UsageError

VARIABLE = "S3MOUNT_CONFIG"
SYSTEM_FILE = "/etc/s3mount/config.toml"
NOT_FOR_FILES = frozenset(("foreground", "help_all", "options", "quiet", "ready_fd"))
"""What belongs to one start of a mount."""
NO_STORE = frozenset(
    (
        "mount",
        "mount-helper",
        "config",
        "completion",
        "demo",
        "unmount",
        "status",
        "wait",
        "retry",
        "refresh",
        "bwlimit",
        "export",
        "discard",
        "recover",
        "metrics",
        "undo",
        "history",
    )
)
"""Commands without the options of ``[defaults]``; ``mount`` takes them with those of its section."""
MARK = "@"
"""Begins the name of a mount in the file."""


class ConfigFile(NamedTuple):
    """What the file at ``path`` says, with keys in the form of parameters (``endpoint_url``)."""

    path: Path
    defaults: Mapping[str, Any]
    mounts: Mapping[str, Mapping[str, Any]]

    def mount(self, name: str) -> Mapping[str, Any]:
        """The section of ``@name``. Raises UsageError."""
        found = self.mounts.get(name)
        if found is None:
            known = ", ".join(f"{MARK}{each}" for each in sorted(self.mounts)) or "none"
            raise UsageError(f"{self.path} has no [mounts.{name}]; it has: {known}")
        return found


def path_of_file() -> Path:
    """Where the file is looked for: S3MOUNT_CONFIG, else the user's, else the machine's where the user has none."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(os.path.expanduser(named))
    base = os.environ.get("XDG_CONFIG_HOME")
    if not (base and os.path.isabs(base)):
        base = os.path.expanduser("~/.config")
    users = Path(base) / "s3mount" / "config.toml"
    return users if users.exists() or not os.path.exists(SYSTEM_FILE) else Path(SYSTEM_FILE)


def load(path: Path | None = None) -> ConfigFile:
    """The file, or an empty one where there is none and none was named. Raises UsageError for what is wrong in it.

    Its options are not looked at: ``checked`` does that.
    """
    import tomllib

    where = path or path_of_file()
    try:
        with where.open("rb") as file:
            read = tomllib.load(file)
    except FileNotFoundError:
        if os.environ.get(VARIABLE):
            raise UsageError(f"{VARIABLE}: there is no file {where}") from None
        return ConfigFile(where, {}, {})
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is no TOML: {error}") from None
    if unknown := sorted(read.keys() - {"defaults", "mounts"}):
        raise UsageError(
            f"{where}: [{unknown[0]}] means nothing; there are [defaults] and [mounts.NAME]"
        )
    defaults = _section(where, "defaults", read.get("defaults", {}))
    mounts = read.get("mounts", {})
    if not isinstance(mounts, dict):
        raise UsageError(f"{where}: mounts is no table; write [mounts.NAME]")
    named = {name: _section(where, f"mounts.{name}", each) for name, each in mounts.items()}
    return ConfigFile(where, defaults, named)


def _section(path: Path, name: str, given: object) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UsageError(f"{path}: {name} is no table; write [{name}] on a line of its own")
    found: dict[str, Any] = {}
    for key, value in given.items():
        parameter = key.replace("-", "_")
        if parameter in found:
            raise UsageError(f"{path}: [{name}] has {shown(parameter)} twice")
        found[parameter] = value
    return found


def shown(parameter: str) -> str:
    """A parameter's name as people write it."""
    return parameter.replace("_", "-")


def checked(
    file: ConfigFile, section: str, values: Mapping[str, Any], options: Iterable[click.Parameter]
) -> dict[str, Any]:
    """``values`` as click takes defaults for ``options``. Raises UsageError for one that is wrong."""
    known = {
        each.name: each
        for each in options
        if isinstance(each, click.Option) and each.name not in NOT_FOR_FILES
    }
    found: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{file.path}: [{section}] {shown(name)}"
        option = known.get(name)
        if option is None:
            raise UsageError(f"{where} means nothing{_meant(name, known)}")
        found[name] = _value(where, option, value)
    return found


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (
        f"; is {shown(close[0])} meant?"
        if close
        else "; s3mount mount --help-all lists what there is"
    )


def give_defaults(name: str, command: click.Command) -> None:
    """Let ``[defaults]`` fill in the options of ``command``, and of those below it. Raises UsageError."""
    if name in NO_STORE:
        return
    file = load()
    found = checked(file, "defaults", file.defaults, store_option_list())
    below = command.commands.values() if isinstance(command, click.Group) else ()
    for each in (command, *below):
        each.context_settings["default_map"] = found


def _value(where: str, option: click.Option, value: object) -> object:
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{where} is true or false")
        return value
    if option.multiple:
        given = value if isinstance(value, list) else [value]
        return tuple(_text(where, each) for each in given)
    return _text(where, value)


def _text(where: str, value: object) -> str:
    """A value as it would stand on the command line, so that the option itself reads it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f'{where} is a text or a number, as "10G" or 5')
    return str(value)


class Expanded(NamedTuple):
    """The words of a command line with ``@NAME`` replaced, and the defaults of its options."""

    words: list[str]
    defaults: dict[str, Any]


def expand(words: list[str], command: click.Command) -> Expanded:
    """Replace ``@NAME`` by its bucket, and by its mount point where none follows. Raises UsageError."""
    file = load()
    defaults = checked(file, "defaults", file.defaults, store_option_list())
    at = next((number for number, word in enumerate(words) if word.startswith(MARK)), None)
    if at is None:
        return Expanded(words, defaults)
    name = words[at].removeprefix(MARK)
    section = f"mounts.{name}"
    values = dict(file.mount(name))
    bucket, mountpoint = (
        _place(file, section, values.pop(key, None), key) for key in ("bucket", "mountpoint")
    )
    if bucket is None:
        raise UsageError(f"{file.path}: [{section}] names no bucket")
    places = [bucket]
    with command.make_context("mount", list(words), resilient_parsing=True) as context:
        if context.params.get("mountpoint") is None:
            if mountpoint is None:
                raise UsageError(
                    f"{file.path}: [{section}] names no mountpoint; give one: s3mount {MARK}{name} FOLDER"
                )
            places.append(os.path.expanduser(mountpoint))
    return Expanded(
        [*words[:at], *places, *words[at + 1 :]],
        defaults | checked(file, section, values, command.params),
    )


def _place(file: ConfigFile, section: str, value: object, key: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"{file.path}: [{section}] {key} is a text")


def mountpoint_of(word: str) -> str:
    """The mount point of ``@NAME``; any other word as it is. Raises UsageError."""
    if not word.startswith(MARK):
        return word
    file = load()
    name = word.removeprefix(MARK)
    found = _place(file, f"mounts.{name}", file.mount(name).get("mountpoint"), "mountpoint")
    if found is None:
        raise UsageError(f"{file.path}: [mounts.{name}] names no mountpoint")
    return os.path.expanduser(found)

"""``-o a,b=c`` as mount(8) and fstab give it: which word means which option.

Words of fstab that speak to mount(8), systemd or the kernel are taken without a word of ours; a word
that nobody knows is a usage error, since a misspelt option must not be ignored silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import click

from s3mount.cli.param_types import SNAPSHOTS_FOLDER

FOR_OTHERS = frozenset(
    (
        *("_netdev", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "noowner"),
        *("group", "nogroup", "nofail", "defaults", "async", "exec", "default_permissions"),
        *("atime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime"),
        *("nostrictatime", "lazytime", "nolazytime", "iversion", "noiversion", "mand", "nomand"),
        *("silent", "loud", "symfollow"),
    )
)
"""Words of mount(8) that mean nothing to the mount itself. Access times are not kept, whatever is asked
for; libfuse refuses most words about them. ``x-...`` and ``X-...`` are such, too."""

FOR_OTHERS_WITH_VALUE = frozenset(("comment", "user", "uhelper", "helper"))
"""The same with ``=VALUE``: notes of people and of mount(8)."""

FOR_KERNEL = frozenset(("noexec", "sync", "dirsync", "noatime", "allow_root"))
"""What goes to the kernel (or libfuse) as it is."""

FOR_SELINUX = frozenset(("context", "fscontext", "defcontext", "rootcontext"))
"""Labels with ``=VALUE``: to the kernel where SELinux runs, which would refuse them elsewhere."""

SELINUX = "/sys/fs/selinux"

FLAGS: Mapping[str, tuple[str, bool | str]] = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "dev": ("dev", True),
    "nodev": ("dev", False),
    "nonempty": ("nonempty", True),
    "snapshots": ("snapshots", SNAPSHOTS_FOLDER),
}

PEERS: Mapping[str, str] = {
    "endpoint": "endpoint_url",
    "url": "endpoint_url",
    "force_path_style": "path_style",
    "use_path_request_style": "path_style",
    "cache": "cache_dir",
    "max_cache_size": "cache_size",
    "requester_pays": "request_payer",
    "default_acl": "acl",
}
"""Names under which users of other S3 file systems know our options."""


class Options:
    """What a list of ``-o`` arguments says, in the order given; the last word on a thing wins."""

    def __init__(self, parameters: Iterable[click.Parameter]) -> None:
        self._parameters = {
            found.name: found
            for found in parameters
            if isinstance(found, click.Option) and found.name and not found.hidden
        }
        self.values: dict[str, Any] = {}
        self.kernel: list[str] = []

    def take(self, ctx: click.Context, given: str) -> None:
        """Take in one ``-o`` argument. Raises click.UsageError naming the word that is wrong."""
        for word in split(given):
            self._take_word(ctx, word)

    def _take_word(self, ctx: click.Context, word: str) -> None:
        raw_name, equals, value = word.partition("=")
        name = raw_name.strip().replace("-", "_")
        if raw_name.lower().startswith("x-") or name in (
            FOR_OTHERS_WITH_VALUE if equals else FOR_OTHERS
        ):
            return
        if name == "remount":
            raise click.UsageError(
                "-o remount: a mount cannot be changed; unmount it, and mount it with the new options"
            )
        if name in FOR_SELINUX and equals:
            if os.path.isdir(SELINUX):
                self.kernel.append(word.replace("\\", "\\\\").replace(",", "\\,"))
        elif name in FOR_KERNEL and not equals:
            self.kernel.append(name)
        elif name in FLAGS and not equals:
            option, on = FLAGS[name]
            self.values[option] = on
        else:
            self._take_option(ctx, word, PEERS.get(name, name), value if equals else None)

    def _take_option(self, ctx: click.Context, word: str, name: str, value: str | None) -> None:
        option = self._parameters.get(name)
        if option is None or option.name in ("options", "foreground"):
            raise click.UsageError(f"-o {word}: unknown option {word.partition('=')[0]!r}")
        if value is None:
            if not option.is_flag:
                raise click.UsageError(f"-o {word}: needs a value ({name}=...)")
            value = "true"
        try:
            self.values[str(option.name)] = option.type_cast_value(ctx, value)
        except click.BadParameter as error:
            raise click.UsageError(f"-o {word}: {error.message}") from None


def split(given: str) -> list[str]:
    """The words between commas; ``\\,`` is a comma within a word, and quotes hold a word together."""
    words, word, quoted, escaped = [], "", False, False
    for letter in given:
        if escaped or (letter not in '\\",' and not quoted):
            word, escaped = word + letter, False
        elif letter == "\\":
            escaped = True
        elif letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            words.append(word)
            word = ""
        else:
            word += letter
    words.append(word)
    return [found for found in (text.strip() for text in words) if found]

"""docs/OPERATIONS.md names every option, variable and exit status that there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from s3mount import errors
from s3mount.bulk.report import EXIT_PERMISSION
from s3mount.cli.commands import (
    COMMANDS,
    EXIT_INTERRUPTED,
    OTHER_VARIABLES,
    TEST_PREFIXES,
    group,
    known_variables,
)
from s3mount.cli.mounts.mount import mount
from s3mount.cli.options import ExpertOption
from s3mount.events import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
TRANSFER = (Path(__file__).parents[2] / "docs" / "TRANSFER.md").read_text(encoding="utf-8")


def documented_options() -> set[str]:
    section = PAGE.partition("## Options of")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `-")]
    return {name for row in rows for name in re.findall(r"`(--?[a-z][a-z-]*)", row.split("|")[1])}


def real_options() -> set[str]:
    return {
        name
        for parameter in mount.params
        if isinstance(parameter, click.Option)
        and (not parameter.hidden or isinstance(parameter, ExpertOption))
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def test_every_option_of_mount_is_explained_and_no_other() -> None:
    assert documented_options() == real_options()


def test_every_variable_named_has_a_meaning() -> None:
    named = set(re.findall(r"S3MOUNT_[A-Z_]*[A-Z]", PAGE))
    named = {name for name in named if not name.startswith(TEST_PREFIXES)}
    assert named <= known_variables()
    assert named >= OTHER_VARIABLES


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "mount-helper"])
def test_every_command_is_listed(name: str) -> None:
    assert re.search(rf"^s3mount \[?{name}\b", PAGE, re.MULTILINE)
    assert group.get_command(click.Context(group), name) is not None


def test_exit_statuses_are_those_of_the_errors() -> None:
    section = PAGE.partition("### Exit status")[2].partition("\n##")[0]
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    assert listed == {0, 1, 2, EXIT_INTERRUPTED}
    section = TRANSFER.partition("## Exit status")[2].partition("\n##")[0]
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    raised = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.S3MountError)
    }
    assert listed == {0, EXIT_PERMISSION, EXIT_INTERRUPTED} | raised


def test_every_kind_of_event_is_explained() -> None:
    for kind, meaning in KINDS.items():
        assert f"| `{kind}` | {meaning} |" in PAGE

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from s3mount.cli.mounts.mount import mount
from s3mount.cli.mounts.mountoptions import Options
from s3mount.cli.param_types import snapshots_folder


def parsed(*arguments: str) -> dict[str, object]:
    with mount.make_context("mount", list(arguments)) as context:
        return context.params


def test_the_option_takes_a_name_only_behind_an_equals_sign() -> None:
    assert parsed("b", "/mnt")["snapshots"] == ""
    found = parsed("b", "--snapshots", "/mnt")
    assert (found["snapshots"], found["mountpoint"]) == (".snapshots", "/mnt")
    assert parsed("--snapshots=old", "b", "/mnt")["snapshots"] == "old"


@pytest.mark.parametrize(
    ("value", "name"), [("1", ".snapshots"), ("true", ".snapshots"), ("0", ""), ("past", "past")]
)
def test_the_variable_is_a_word_for_yes_or_a_name(
    value: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3MOUNT_SNAPSHOTS", value)
    assert parsed("b", "/mnt")["snapshots"] == name


def test_the_word_of_fstab_has_a_name_or_none() -> None:
    options = Options(mount.params)
    options.take(click.Context(mount), "snapshots")
    assert options.values["snapshots"] == ".snapshots"
    options.take(click.Context(mount), "snapshots=old")
    assert options.values["snapshots"] == "old"


@pytest.mark.parametrize("name", ["a/b", "..", ".s3mount", "x" * 256])
def test_what_is_no_folders_name_is_refused(name: str) -> None:
    with pytest.raises(click.BadParameter):
        snapshots_folder(name)
    done = CliRunner().invoke(mount, [f"--snapshots={name}", "b", "/mnt"])
    assert done.exit_code == 2

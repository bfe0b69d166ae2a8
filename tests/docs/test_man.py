"""`make man` makes a page of each command, which roff takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from s3mount.cli.commands import COMMANDS
from s3mount.cli.mounts.mount import mount
from s3mount.cli.options import ExpertOption

TOP = Path(__file__).parents[2]
NOT_FOR_PEOPLE = {"mount-helper"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    subprocess.run(
        [sys.executable, str(TOP / "contrib" / "man"), str(folder)], check=True, timeout=60
    )
    return folder


def test_each_command_has_a_page(pages: Path) -> None:
    made = {path.stem for path in pages.iterdir()}
    assert made >= {f"s3mount-{name}" for name in COMMANDS if name not in NOT_FOR_PEOPLE}
    assert {"s3mount", "s3mount-manifest-create", "s3mount-config-show"} <= made
    assert not made & {f"s3mount-{name}" for name in NOT_FOR_PEOPLE}
    whole = (pages / "s3mount.1").read_text()
    listed = set(re.findall(r"^\.BR (\S+) \(1\)$", whole.replace("\\-", "-"), re.MULTILINE))
    assert listed == {f"s3mount-{name}" for name in COMMANDS if name not in NOT_FOR_PEOPLE}


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_roff_takes_them_and_shows_what_help_does(pages: Path) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", *sorted(map(str, pages.iterdir()))],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    shown = subprocess.run(
        ["groff", "-man", "-Tascii", "-P-cbou", str(pages / "s3mount-mount.1")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    options = [each for each in mount.params if isinstance(each, click.Option)]
    experts = [each for each in options if isinstance(each, ExpertOption)]
    assert experts
    for option in [each for each in options if not each.hidden] + experts:
        assert option.opts[-1] in shown

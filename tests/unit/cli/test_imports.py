"""What a command imports before it does anything: most of its processor time, as trio alone takes 0.1 s."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("trio", "awscrt", "boto3", "botocore", "pyfuse3", "rich", "pyarrow")


def test_the_modules_of_commands_import_little() -> None:
    """--help imports every command's module, and so does any variable of ours that is set."""
    code = (
        "import sys; from s3mount.cli.commands import COMMANDS, group\n"
        "for command in COMMANDS:\n"
        "    assert group.get_command(None, command)\n"
        f"    for name in {SLOW!r}:\n"
        "        if sys.modules.pop(name, None): print(command, name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("status",),
        ("umount", "nothing-is-here"),
        ("completion", "bash"),
        ("config", "show"),
        ("mount", "--help"),
    ],
    ids=" ".join,
)
def test_a_command_without_s3_runs_with_little(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Also when a variable of ours is set, as then every command is asked for its variables."""
    code = (
        "import sys; from s3mount.cli import main; main(sys.argv[1:]); "
        f"print(*[name for name in {SLOW!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={
            **os.environ,
            "S3MOUNT_RUN_DIR": str(tmp_path),
            "S3MOUNT_STATE_DIR": str(tmp_path),
        },
    )
    assert done.stderr.splitlines()[-1] == ""


def test_the_daemon_needs_no_fuse() -> None:
    code = "import sys, s3mount.app.daemon; print('pyfuse3' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False"]


def test_the_process_of_a_mount_leaves_botocore_to_the_engine() -> None:
    code = "import sys, s3mount.app.mount; print('boto3' in sys.modules, 'botocore' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]

"""What a command imports before it does anything: most of its processor time, as trio alone takes 0.1 s."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("trio", "boto3", "botocore", "pyfuse3", "rich", "pyarrow")


@pytest.mark.parametrize(
    "command",
    [
        *("status", "wait", "unmount", "retry", "refresh", "mount", "mount_helper"),
        *("ls", "du", "cat", "rm", "sync", "cancel", "sums", "verify", "presign", "sse_key", "run"),
    ],
)
def test_a_command_that_only_asks_imports_little(command: str) -> None:
    code = (
        "import importlib, sys; importlib.import_module('s3mount.cli.commands'); "
        f"importlib.import_module('s3mount.cli.{command}'); "
        f"print(*[name for name in {SLOW!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []

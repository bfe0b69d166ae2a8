"""What a command imports before it does anything: most of its processor time, as trio alone takes 0.1 s."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("trio", "boto3", "botocore", "pyfuse3", "rich", "pyarrow")


@pytest.mark.parametrize(
    "command",
    [
        *("status", "wait", "unmount", "retry", "refresh", "bwlimit", "mount", "mount-helper"),
        *("pause", "resume", "loglevel", "evict", "prefetch", "pin", "unpin"),
        *("ls", "du", "cat", "rm", "sync", "cancel", "sum", "verify", "presign", "run"),
        "restore",
        *("generate-sse-key", "pack", "send", "daemon"),
    ],
)
def test_a_command_that_only_asks_imports_little(command: str) -> None:
    code = (
        "import sys; from s3mount.cli.commands import group; "
        f"assert group.get_command(None, {command!r}); "
        f"print(*[name for name in {SLOW!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_the_daemon_needs_no_fuse() -> None:
    code = "import sys, s3mount.app.daemon; print('pyfuse3' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False"]

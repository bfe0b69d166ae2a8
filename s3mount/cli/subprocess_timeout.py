"""Runs a program that touches a mount, for a bounded time."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence


def run_with_timeout(command: Sequence[str], timeout_s: float) -> tuple[int | None, str]:
    """Run a program; its exit status and what it wrote to stderr.

    The status is ``None`` when it has not ended within ``timeout_s``. It is killed then, but not
    waited for: a program that hangs in the kernel, on a mount that does not answer, takes no signal.
    Raises OSError when it cannot be started.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            status: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = None
            # Else Popen would warn of a process that is left to itself.
            process.returncode = 0
        said.seek(0)
        return status, said.read().decode(errors="replace").strip()

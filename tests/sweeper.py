"""Takes away the mounts of a test run that was killed before it could do so itself.

A script of its own, run by path. On standard input the run says ``+ PID MOUNTPOINT`` (the mount point
percent-encoded) when a mount's process starts and ``- PID`` when it has been taken away. When that
input ends, the process groups that are still on the list get SIGKILL and their mounts are removed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from urllib.parse import unquote

UNMOUNT_TIMEOUT_S = 10


def main() -> None:
    """Keep the list until standard input ends, then clear it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    mounts: dict[int, str] = {}
    for line in sys.stdin:
        sign, pid, *mountpoint = line.split()
        if sign == "+":
            mounts[int(pid)] = unquote(mountpoint[0])
        else:
            mounts.pop(int(pid), None)
    for pid, path in mounts.items():
        if not _is_somebody_elses(pid, path):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["fusermount3", "-uz", path], timeout=UNMOUNT_TIMEOUT_S, capture_output=True
            )


def _is_somebody_elses(pid: int, mountpoint: str) -> bool:
    """Has the number gone to another process? Without a leader, only our own group can have it."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as arguments:
            return os.fsencode(mountpoint) not in arguments.read().split(b"\0")
    except OSError:
        return False


if __name__ == "__main__":
    main()

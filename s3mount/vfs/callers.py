"""Who waits for an answer, and whether somebody wants them to stop waiting.

A program whose request is being answered cannot be woken by a signal: the kernel waits for the
answer. pyfuse3 does not hand on that the kernel asked for the request to be interrupted, so a
request that may take long looks at the program's signals itself, in /proc (proc(5)).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_STOPPING_MASK = sum(1 << (number - 1) for number in _STOPPING)
_EXITING = 0x4
"""PF_EXITING: the process ends already, and closes its files."""
_FLAGS_FIELD = 6
"""Of /proc/PID/stat, counted behind the name in parentheses."""


def is_told_to_stop(pid: int) -> bool:
    """Has a signal reached process ``pid`` that would end it, or with which people stop programs?

    True as well where it is ending already. False where nothing is known of it.
    """
    if pid <= 0:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        if int(stat.rpartition(")")[2].split()[_FLAGS_FIELD]) & _EXITING:
            return True
        threads = os.listdir(f"/proc/{pid}/task")
        return any(
            _stops(Path(f"/proc/{pid}/task/{thread}/status").read_bytes()) for thread in threads
        )
    except (OSError, ValueError, IndexError):
        return False


def _stops(status: bytes) -> bool:
    """Does a thread, whose /proc/PID/task/TID/status this is, have such a signal pending?"""
    masks = {
        name: int(value, 16)
        for name, _, value in (line.partition(b":\t") for line in status.splitlines())
        if name.startswith((b"Sig", b"Shd")) and name != b"SigQ"
    }
    pending = (masks[b"SigPnd"] | masks[b"ShdPnd"]) & ~masks[b"SigBlk"] & ~masks[b"SigIgn"]
    return bool(pending & (~masks[b"SigCgt"] | _STOPPING_MASK))

"""A mount in a process of its own, and what its processes took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from s3mount import mountinfo

LIMIT_S = 3600.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Used(NamedTuple):
    """CPU seconds of one process."""

    user_s: float
    system_s: float


class Mounted:
    """``python -m`` with ``arguments``, which mounts at ``top`` and stays in the foreground."""

    def __init__(
        self, arguments: Sequence[str], top: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.top = top
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments], env={**os.environ, **(environment or {})}
        )
        deadline = time.monotonic() + LIMIT_S
        while mountinfo.topmost_at(str(self.top), mountinfo.read_mounts()) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the mount did not come up")
            time.sleep(0.01)

    def _pids(self) -> Iterator[int]:
        pids = [self._process.pid]
        while pids:
            pid = pids.pop()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            pids += map(int, children.split())
            yield pid

    def memory_mib(self, what: str) -> float:
        """``VmRSS`` or ``VmHWM`` of the mount's processes together."""
        statuses = (Path(f"/proc/{pid}/status").read_text() for pid in self._pids())
        return sum(int(each.partition(f"{what}:")[2].split()[0]) for each in statuses) / 1024

    def cpu_by_process_s(self) -> list[Used]:
        """What each process used so far; the mount's own first, its engine's after it."""
        stats = (Path(f"/proc/{pid}/stat").read_text() for pid in self._pids())
        fields = (each.rpartition(")")[2].split() for each in stats)
        return [Used(int(each[11]) / CLOCK_TICKS, int(each[12]) / CLOCK_TICKS) for each in fields]

    def cpu_s(self) -> float:
        """What the mount's processes used so far."""
        return sum(each.user_s + each.system_s for each in self.cpu_by_process_s())

    def close(self) -> None:
        """Unmount, and wait until the process has ended."""
        subprocess.run(["fusermount3", "-u", str(self.top)], check=True)
        self._process.wait(60)

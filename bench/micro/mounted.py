"""A mount in a process of its own, and what its processes took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from s3mount import mountinfo

LIMIT_S = 3600.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


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

    def cpu_s(self) -> float:
        """What the mount's processes used so far."""
        stats = (Path(f"/proc/{pid}/stat").read_text() for pid in self._pids())
        fields = (each.rpartition(")")[2].split() for each in stats)
        return sum(int(each[11]) + int(each[12]) for each in fields) / CLOCK_TICKS

    def close(self) -> None:
        """Unmount, and wait until the process has ended."""
        subprocess.run(["fusermount3", "-u", str(self.top)], check=True)
        self._process.wait(60)

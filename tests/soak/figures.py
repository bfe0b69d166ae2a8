"""Memory, descriptors and threads of a mount and its engine over time."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import psutil

from tests.fuse.mounts import engines_of
from tests.mounting import Mount

MIB = 1 << 20
LEAST_SAMPLES = 12
"""Fewer tell nothing of growth."""


class Figures(NamedTuple):
    """One look. Memory in MiB."""

    mount_mib: float
    engine_mib: float
    descriptors: int
    threads: int
    processes: int


SLACK = Figures(mount_mib=24, engine_mib=24, descriptors=24, threads=8, processes=0)
"""So much more in the last third than in the second is no growth: it goes up and down with the load."""
SHARE = 1.15


def look(mount: Mount) -> Figures:
    """The figures of this moment."""
    processes = [psutil.Process(mount.pid), *engines_of(mount)]
    memory, descriptors, threads = [], 0, 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            memory.append(process.memory_info().rss / MIB)
            descriptors += _descriptors_of(process.pid)
            threads += process.num_threads()
    return Figures(memory[0], sum(memory[1:]), descriptors, threads, len(processes))


def _descriptors_of(pid: int) -> int:
    """How many a process has, but for those of snapshots, of which up to 64 stay open: what is looked at in the
    past in an hour is about as many.
    """
    count = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += "/catalogs/past-" not in os.readlink(entry.path)
    return count


def growth(samples: Sequence[Figures]) -> list[str]:
    """What was higher in the last third of ``samples`` than in the second one."""
    if len(samples) < LEAST_SAMPLES:
        return []
    third = len(samples) // 3
    found = []
    for number, name in enumerate(Figures._fields):
        before = statistics.median(each[number] for each in samples[third : 2 * third])
        after = statistics.median(each[number] for each in samples[2 * third :])
        if after > before * SHARE + SLACK[number]:
            found.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return found

"""Commands with deadlines, and what a tree of processes used of CPU and memory."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
KILL_GRACE_S = 3.0
PEAK_POLL_S = 0.05
MESSAGE_CHARS_MAX = 600


class StepFailed(Exception):
    """A step of a benchmark went wrong; the text goes into that cell of the results."""


@dataclass(frozen=True)
class Finished:
    """A command that ended: its time from fork to exit and what it used.

    ``started_s`` is on perf_counter's clock. CPU seconds include its children's; peak memory is the sum
    of what the command and its children peaked at, as last seen at most 50 ms before its end. (The
    kernel's ru_maxrss will not do: it starts at the memory of the process that forked.)
    """

    started_s: float
    seconds: float
    cpu_s: float
    peak_rss_bytes: int
    stdout: str
    stderr: str


@dataclass
class Stragglers:
    """Killed commands that hang in the kernel until the mount they wait for is gone."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def reap(self, timeout_s: float) -> list[int]:
        """Wait for all of them together at most ``timeout_s``; return the pids that remain."""
        give_up_s = time.monotonic() + timeout_s
        for process in self.processes:
            try:
                process.wait(max(0.0, give_up_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
        self.processes = [one for one in self.processes if one.returncode is None]
        return [one.pid for one in self.processes]


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    stragglers: Stragglers | None = None,
) -> Finished:
    """Run ``argv`` to its end.

    Raises StepFailed if it exits with another status than 0, cannot be started, or takes longer
    than ``timeout_s``; then it is killed, and handed to ``stragglers`` if even that did not end it.
    """
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(stdin)
        given.seek(0)
        start_s = time.perf_counter()
        try:
            process = subprocess.Popen(
                argv, stdin=given, stdout=out, stderr=err, env=environment, start_new_session=True
            )
        except OSError as error:
            raise StepFailed(f"{argv[0]}: {error.strerror}") from error
        try:
            ended, peak_bytes = _watch(process.pid, timeout_s)
        except BaseException:
            _kill(process, stragglers)
            raise
        if not ended:
            _kill(process, stragglers)
            raise StepFailed(f"deadline of {timeout_s:g} s: {_words(argv)}")
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode(errors="replace")
        stderr = err.read().decode(errors="replace")
    if process.returncode != 0:
        tail = (stderr or stdout).strip()[-MESSAGE_CHARS_MAX:]
        raise StepFailed(f"exit {process.returncode}: {_words(argv)}: {tail}")
    return Finished(
        started_s=start_s,
        seconds=seconds,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_bytes=peak_bytes,
        stdout=stdout,
        stderr=stderr,
    )


def _watch(pid: int, timeout_s: float) -> tuple[bool, int]:
    """Whether ``pid`` ended in time, and its peak memory.

    By pidfd, which wakes at once and leaves the exit status to wait4 with its usage.
    """
    give_up_s = time.monotonic() + timeout_s
    peak_bytes = 0
    pidfd = os.pidfd_open(pid)
    try:
        while True:
            left_s = give_up_s - time.monotonic()
            ended, _, _ = select.select([pidfd], [], [], max(0.0, min(PEAK_POLL_S, left_s)))
            if ended or left_s <= 0:
                return bool(ended), peak_bytes
            peak_bytes = max(peak_bytes, peak_rss_with_children(pid))
    finally:
        os.close(pidfd)


def _kill(process: subprocess.Popen[bytes], stragglers: Stragglers | None) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(KILL_GRACE_S)
    except subprocess.TimeoutExpired:
        if stragglers is not None:
            stragglers.processes.append(process)


def _words(argv: Sequence[str]) -> str:
    return shlex.join(argv)[:MESSAGE_CHARS_MAX]


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that count here."""

    parent: int
    cpu_s: float


def read_stat(pid: int) -> Stat | None:
    """``pid``'s parent and CPU seconds, its reaped children's included; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    words = text.rpartition(")")[2].split()
    return Stat(parent=int(words[1]), cpu_s=sum(map(int, words[11:15])) / CLOCK_TICKS)


def tree(root: int) -> dict[int, Stat]:
    """``root`` and all that descends from it, by pid."""
    found: dict[int, Stat] = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(int(name))) is not None:
            found[int(name)] = stat
            children.setdefault(stat.parent, []).append(int(name))
    wanted = [root]
    for pid in wanted:
        wanted.extend(children.get(pid, ()))
    return {pid: found[pid] for pid in wanted if pid in found}


class TreeUsage:
    """CPU seconds and peak memory of a tree of processes from construction to ``read``.

    Peak memory is the sum of every process's own high-water mark, set back at the start: exact for
    one process, an upper bound where several peak at different times.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        processes = tree(root)
        self._cpu_before_s = sum(stat.cpu_s for stat in processes.values())
        for pid in processes:
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            except (FileNotFoundError, ProcessLookupError):
                continue

    def read(self) -> tuple[float, int]:
        """CPU seconds and peak resident bytes since the start."""
        processes = tree(self._root)
        cpu_s = sum(stat.cpu_s for stat in processes.values()) - self._cpu_before_s
        return cpu_s, sum(peak_rss_bytes(pid) for pid in processes)


def peak_rss_bytes(pid: int) -> int:
    """The high-water mark of ``pid``'s resident memory; 0 if it is gone or a zombie."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_rss_with_children(pid: int) -> int:
    """The same of ``pid`` and all that descends from it, together: some programs come in a wrapper."""
    total = peak_rss_bytes(pid)
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return total
    return total + sum(peak_rss_with_children(int(child)) for child in children)

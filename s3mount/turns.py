"""How long the loop of a process goes on before it looks for news, and where it stands when that is too long.

A turn is what the loop does between two looks: all that can run just then. While it lasts nobody else is
answered, so nothing whose cost grows with a file, a folder or the journal may happen within one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import trio

log = logging.getLogger(__name__)

SLOW_S = 0.05
"""A turn with more processor time than this is counted as slow."""
STUCK_S = 1.0
"""A turn that lasts longer is told in the log while it lasts, and again each time it has lasted twice as long."""
LOOK_EVERY_S = 0.5
CPU_EVERY_S = 0.001
"""Asking the kernel for the processor time takes longer than all the rest; it is asked no more often."""
QUIET_S = 60.0
"""After a turn was told of, others within this time are only counted, and told with the next."""
FRAMES_MAX = 6
"""So many of our functions are named of the one that the loop is in and those that called it."""
LOG_TAIL_BYTES = 256 << 10
_HOME = str(Path(__file__).parent) + os.sep
_AGAIN = "answers again"


class Turns(trio.abc.Instrument):
    """The turns of one trio loop, measured in its own thread.

    It takes about 1.5 us a turn: 0.2% of a core while programs ask back to back (1,100 turns/s, as many requests
    share one), 0.7% at the 4,500 turns/s that were the most a stat() loop with pauses came to.

    ``began`` is when the turn under way did, by ``time.perf_counter``; ``None`` while the loop waits.
    ``began_cpu`` is the processor time that the loop's thread had used by then, or up to CPU_EVERY_S before.
    """

    def __init__(self) -> None:
        self.began_cpu = 0.0
        self._sampled = float("-inf")
        self.begin()

    def begin(self) -> None:
        """Forget all turns so far, and the one under way."""
        self.began: float | None = None
        self._max_s = self._max_cpu_s = 0.0
        self._recent_s = self._recent_cpu_s = 0.0
        self._slow = 0
        self.stuck = 0

    def before_io_wait(self, timeout: float) -> None:
        """Trio's hook: the turn is over."""
        began = self.began
        if began is None:
            return
        self.began = None
        took_s = time.perf_counter() - began
        if took_s > self._recent_s:
            self._recent_s = took_s
            self._max_s = max(self._max_s, took_s)
        if took_s > self._recent_cpu_s:
            # It cannot have used more processor time than it took.
            cpu_s = time.thread_time() - self.began_cpu
            self._recent_cpu_s = max(self._recent_cpu_s, cpu_s)
            self._max_cpu_s = max(self._max_cpu_s, cpu_s)
            self._slow += cpu_s > SLOW_S
        elif took_s > SLOW_S:
            self._slow += time.thread_time() - self.began_cpu > SLOW_S

    def after_io_wait(self, timeout: float) -> None:
        """Trio's hook: the next turn begins."""
        now = time.perf_counter()
        if now > self._sampled + CPU_EVERY_S:
            self._sampled = now
            self.began_cpu = time.thread_time()
        self.began = now

    def statistics(self) -> dict[str, float]:
        """The longest turns, since it began and since this was last asked for; see ``metrics.LOOP_METRICS``."""
        told = {
            "turn_max_s": self._max_s,
            "turn_cpu_max_s": self._max_cpu_s,
            "turn_recent_s": self._recent_s,
            "turn_recent_cpu_s": self._recent_cpu_s,
            "turns_slow": self._slow,
            "turns_stuck": self.stuck,
        }
        self._recent_s = self._recent_cpu_s = 0.0
        return told


@contextlib.contextmanager
def watched() -> Iterator[Turns]:
    """Measure the turns of a mount's trio loop, from within it, and log where it stands when one is too long."""
    turns = Turns()
    trio.lowlevel.add_instrument(turns)
    done = threading.Event()
    watchdog = _Watchdog(turns)
    thread = threading.Thread(target=watchdog.run, args=(done,), daemon=True, name="watchdog")
    thread.start()
    try:
        yield turns
    finally:
        done.set()
        trio.lowlevel.remove_instrument(turns)


class _Watchdog:
    """Looks at a loop from a thread of its own, so that a loop that is stuck is told of while it is."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._who = f"the mount (pid {os.getpid()})"
        self._loop = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._loop)
        self._told: float | None = None
        self._told_s = 0.0
        self._told_at = float("-inf")
        self._seen: float | None = None
        self._untold = 0

    def run(self, done: threading.Event) -> None:
        """Look until ``done``. Never raises."""
        while not done.wait(LOOK_EVERY_S):
            try:
                self._look()
            except Exception:
                log.exception("the watchdog cannot tell where the loop stands; it goes on")

    def _look(self) -> None:
        began = self._turns.began
        now = time.perf_counter()
        if self._told is not None and began != self._told:
            log.warning("%s %s", self._who, _AGAIN)
            self._told = None
        if began is None or now - began < STUCK_S:
            return
        if began != self._seen:
            self._seen = began
            self._turns.stuck += 1
            if now < self._told_at + QUIET_S:
                self._untold += 1
                return
        elif began != self._told or now - began < 2 * self._told_s:
            return
        self._tell(began, now)

    def _tell(self, began: float, now: float) -> None:
        cpu_s = time.clock_gettime(self._clock) - self._turns.began_cpu
        frame = sys._current_frames().get(self._loop)
        if frame is None or self._turns.began != began:
            return
        more = f"; {self._untold} more since the last was told" if self._untold else ""
        log.warning(
            "%s has not answered for %.1f s (%.1f s of processor time): in %s%s",
            *(self._who, now - began, cpu_s, describe(frame), more),
        )
        self._told, self._told_s, self._told_at, self._untold = began, now - began, now, 0


def describe(frame: FrameType) -> str:
    """Where a loop's thread stands, in one line: the place itself, then those of our functions that led there."""
    places = [_place(frame)]
    at = frame.f_back
    while at is not None and len(places) < FRAMES_MAX and not _is_trio(at):
        if at.f_code.co_filename.startswith(_HOME):
            places.append(_place(at))
        at = at.f_back
    return ", called from ".join(places)


def _is_trio(frame: FrameType) -> bool:
    return bool(frame.f_globals.get("__name__") == "trio._core._run")


def _place(frame: FrameType) -> str:
    name = frame.f_code.co_filename.removeprefix(_HOME)
    return f"{name}:{frame.f_lineno} {frame.f_code.co_qualname}"


def last_told(log_path: Path, pid: int) -> str:
    """What the log of a process that does not answer says of it: where it stands; empty when it says nothing."""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        if f"(pid {pid}) {_AGAIN}" in line:
            return ""
        _, found, told = line.partition(f"(pid {pid}) has not answered for ")
        if found:
            return f"at {line[:19]} it had not answered for {told}"
    return ""

"""A faster wait for the kernel's next request: drain, then poll briefly, and only then sleep.

Waking a sleeping process costs more than answering a small request, and requests come in
bursts. pyfuse3 sleeps in epoll before each of them. Here the reader looks at the device without
leaving the task as long as requests are there, polls for up to ``SPIN_S`` when they stop, and
sleeps as pyfuse3 does after that, so that an idle mount costs nothing.

pyfuse3 offers no hook for this; ``install`` replaces its private ``_wait_fuse_readable`` and
says so when that name is not there.
"""

from __future__ import annotations

import select
import time

import pyfuse3
import trio

SPIN_S = 50e-6
"""Seconds of polling before sleeping. On two cores with pyfuse3 3.5 it took look-ups from 20,000
to 46,000/s and random 4 KiB reads from 26,000 to 65,000/s; longer polling gained nothing."""

DRAIN_S = 500e-6
"""Longest time for which requests are served without giving other tasks of the loop a turn."""

_PRIVATE_NAME = "_wait_fuse_readable"


class FastLoop:
    """Waits for requests on one /dev/fuse descriptor; one task reads at a time, others park.

    ``wait`` has the contract of pyfuse3's own: True when there is something to read (or the
    connection is gone, which the read then tells), False when the loop is to end. It may be
    cancelled. Use it from one trio loop.
    """

    def __init__(self, fd: int, *, spin_s: float = SPIN_S, drain_s: float = DRAIN_S) -> None:
        self._fd = fd
        self._spin_s = spin_s
        self._drain_s = drain_s
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._parked: list[trio.lowlevel.Task] = []
        self._reading = False
        self._woken = False
        self._closing = False
        self._turn_ends = 0.0

    async def wait(self) -> bool:
        """Wait for the next request; see the class. A checkpoint at least every ``drain_s``."""
        while self._reading and not self._closing:
            await self._park()
            self._woken = False
        if self._closing:
            return False
        self._reading = True
        try:
            return await self._next()
        except trio.ClosedResourceError:
            self.stop()
            return False
        finally:
            self._reading = False
            if self._parked and not self._woken:
                self._woken = True
                trio.lowlevel.reschedule(self._parked.pop())

    def stop(self) -> None:
        """Make all present and later waits return False. Repeatable."""
        self._closing = True
        while self._parked:
            trio.lowlevel.reschedule(self._parked.pop())

    async def _park(self) -> None:
        """Sleep until woken. The last to park wakes first: each pyfuse3 task keeps a buffer of 1 MiB
        from its first request on, and so only as many tasks get one as are ever busy at once."""
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _next(self) -> bool:
        if time.perf_counter() < self._turn_ends and self._poll.poll(0):
            return True
        await trio.lowlevel.checkpoint()
        now = time.perf_counter()
        self._turn_ends = now + self._drain_s
        spin_until = now + self._spin_s
        while not self._closing:
            if self._poll.poll(0):
                return True
            if time.perf_counter() >= spin_until:
                break
        if self._closing:
            return False
        await trio.lowlevel.wait_readable(self._fd)
        self._turn_ends = time.perf_counter() + self._drain_s
        return True


def install(fd: int) -> FastLoop | None:
    """Make pyfuse3 wait by a FastLoop on ``fd``; ``None`` where this pyfuse3 has no such place."""
    if not callable(getattr(pyfuse3, _PRIVATE_NAME, None)):
        return None
    loop = FastLoop(fd)
    setattr(pyfuse3, _PRIVATE_NAME, loop.wait)
    return loop

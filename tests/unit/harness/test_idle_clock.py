"""A clock that only waiting moves."""

from __future__ import annotations

import time

import trio

from tests.idle_clock import IdleClock


def test_work_takes_no_time_and_waits_take_what_was_asked_for() -> None:
    async def main() -> None:
        began = trio.current_time()
        end = time.perf_counter() + 0.2
        while time.perf_counter() < end:
            continue
        await trio.lowlevel.checkpoint()
        worked_s = trio.current_time() - began
        await trio.sleep(1.0)
        waited_s = trio.current_time() - began - worked_s
        assert worked_s < 1.0 <= waited_s, "0.2 s of work would be 4"
        assert waited_s < 1.001, "however late the machine wakes it"

    clock = IdleClock(rate=20)
    trio.run(main, clock=clock, instruments=[clock])


def test_a_deadline_comes_before_a_later_one() -> None:
    async def main() -> None:
        ended = []

        async def sleep(seconds: float) -> None:
            await trio.sleep(seconds)
            ended.append(seconds)

        async with trio.open_nursery() as nursery:
            for seconds in (3.0, 1.0, 2.0):
                nursery.start_soon(sleep, seconds)
        assert ended == [1.0, 2.0, 3.0]

    clock = IdleClock(rate=20)
    trio.run(main, clock=clock, instruments=[clock])

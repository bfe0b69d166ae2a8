"""A task in the background ends neither its neighbours nor what started it."""

from __future__ import annotations

import itertools

import pytest
import trio

from s3mount import background
from s3mount.background import Background, attempt, contained, keep_running
from tests.sim.world import simulated


async def fail(times: list[int]) -> None:
    await trio.lowlevel.checkpoint()
    if times[0]:
        times[0] -= 1
        raise AssertionError("not expected")


@simulated
async def test_the_others_go_on(unexpected: list[str]) -> None:
    done = trio.Event()

    async def work() -> None:
        await trio.sleep(100)
        done.set()

    async with trio.open_nursery() as nursery:
        tasks = Background(nursery)
        tasks.start(work)
        tasks.start(fail, [1])
    assert done.is_set()
    (told,) = unexpected
    assert "test_background.fail" in told
    assert "AssertionError: not expected" in told, "the traceback"
    unexpected.clear()


@simulated
async def test_a_task_that_is_kept_begins_anew_after_growing_pauses(unexpected: list[str]) -> None:
    began: list[float] = []

    async def work() -> None:
        began.append(trio.current_time())
        await fail([len(began) < 10])

    await keep_running(work)
    assert len(began) == 10
    pauses = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert pauses == sorted(pauses)
    assert pauses[0] == background.PAUSE_FIRST_S
    assert pauses[-1] == background.PAUSE_MAX_S
    assert len(unexpected) == 9
    unexpected.clear()


@simulated
async def test_cancelling_passes_together_with_an_error(unexpected: list[str]) -> None:
    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("while it was ended")

    with trio.move_on_after(1) as scope:
        await attempt(work, otherwise=None)
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 1
    assert "ValueError: while it was ended" in unexpected.pop()


def test_what_is_contained_goes_no_further(unexpected: list[str]) -> None:
    with contained("a conversion"):
        int("x")
    told = unexpected.pop()
    assert "a conversion" in told
    assert "ValueError" in told


@simulated
async def test_attempt_gives_what_was_awaited_or_else_the_default(unexpected: list[str]) -> None:
    async def work(value: str) -> int:
        await trio.lowlevel.checkpoint()
        return int(value)

    assert await attempt(work, "7", otherwise=0) == 7
    assert await attempt(work, "x", otherwise=0) == 0
    assert "ValueError" in unexpected.pop()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_passes(error: type[BaseException]) -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            Background(nursery).start(work)

    with pytest.raises(BaseExceptionGroup) as raised:
        trio.run(run)
    assert raised.value.subgroup(error) is not None

from __future__ import annotations

import trio
import trio.testing

from s3mount.flow.window import Window
from s3mount.s3.http.limiter import Limiter


def test_as_many_pass_as_the_window_has_room_for() -> None:
    most = 0

    async def main() -> None:
        gate = Limiter(Window(3, start=3))

        async def pass_through() -> None:
            nonlocal most
            await gate.enter()
            most = max(most, gate.inside)
            await trio.sleep(1)
            gate.leave()

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(pass_through)
        assert gate.inside == 0
        assert trio.current_time() >= 6

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert most == 3


def test_who_waited_longest_goes_first_and_who_gave_up_is_passed_over() -> None:
    order: list[int] = []

    async def main() -> None:
        gate = Limiter(Window(1, start=1))

        async def pass_through(number: int, patience_s: float) -> None:
            with trio.move_on_after(patience_s):
                await gate.enter()
                try:
                    order.append(number)
                    await trio.sleep(10)
                finally:
                    gate.leave()

        async with trio.open_nursery() as nursery:
            for number, patience_s in enumerate((100, 100, 5, 100)):
                nursery.start_soon(pass_through, number, patience_s)
                await trio.sleep(0.1)
        assert gate.inside == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert order == [0, 1, 3]


def test_a_narrower_window_holds_back_and_a_wider_one_lets_in() -> None:
    async def main() -> None:
        window = Window(4, start=4)
        gate = Limiter(window)
        for _ in range(4):
            await gate.enter()
        window.throttled(1.0, 2.0)
        assert window.size == 2
        entered: list[int] = []

        async def enter(number: int) -> None:
            await gate.enter()
            entered.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(enter, number)
            await trio.testing.wait_all_tasks_blocked()
            gate.leave()
            gate.leave()
            await trio.testing.wait_all_tasks_blocked()
            assert entered == []
            gate.leave()
            await trio.testing.wait_all_tasks_blocked()
            assert len(entered) == 1
            gate.leave()

    trio.run(main)

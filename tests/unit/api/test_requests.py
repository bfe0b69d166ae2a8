"""A program's own requests under adaptive deadlines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from s3mount.api.requests import Requests
from s3mount.config import TimeoutSettings
from s3mount.errors import DeadlineError, NoSuchKeyError, ServerFaultError
from s3mount.flow.timeouts import Allowance, Timeouts

MIB = 1 << 20


def run(body: Callable[[], Awaitable[None]]) -> None:
    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_try_that_hangs_is_cancelled_and_sent_again_with_more_time() -> None:
    requests = Requests(TimeoutSettings(answer_start_s=2.0, base_s=1.0))
    tries: list[float] = []

    async def send() -> str:
        tries.append(trio.current_time())
        await trio.sleep_forever() if len(tries) < 3 else await trio.sleep(1.0)
        return "done"

    async def body() -> None:
        report, result = await requests.request(send)
        assert result == "done"
        assert (report.seq, report.attempts, report.units) == (1, 3, 0)
        assert report.success_s == pytest.approx(1.0)
        assert report.total_s > 3.0 + 4.5 + 1.0
        # 3 s, then half as long again; and between them a pause of at most 0.1 and 0.2 s.
        assert 3.0 <= tries[1] - tries[0] <= 3.1
        assert 4.5 <= tries[2] - tries[1] <= 4.7

    run(body)


def test_what_is_learnt_of_a_kind_decides_the_next_deadline() -> None:
    requests = Requests()

    async def send() -> None:
        await trio.sleep(8.0)

    async def body() -> None:
        for number in range(1, 30):
            report, _ = await requests.request(send, 8 * MIB, kind="mine")
            assert report.seq == number
        assert report.est_s_per_unit == pytest.approx(1e-6, rel=0.1)
        other, _ = await requests.request(trio.lowlevel.checkpoint, kind="other")
        assert other.attempts == 1

    run(body)


def test_only_what_may_pass_is_tried_again() -> None:
    requests = Requests(TimeoutSettings(tries=3))
    asked: list[int] = []

    async def refused() -> None:
        asked.append(1)
        await trio.lowlevel.checkpoint()
        raise NoSuchKeyError("gone")

    async def broken() -> None:
        asked.append(1)
        await trio.lowlevel.checkpoint()
        raise ServerFaultError("500")

    async def foreign() -> None:
        asked.append(1)
        await trio.lowlevel.checkpoint()
        raise ValueError("mine")

    async def body() -> None:
        for send, error, count in (
            (refused, NoSuchKeyError, 1),
            (broken, ServerFaultError, 3),
            (foreign, ValueError, 1),
            (trio.sleep_forever, DeadlineError, 3),
        ):
            asked.clear()
            with pytest.raises(error):
                await requests.request(send)
            assert len(asked) == (count if send is not trio.sleep_forever else 0)

    run(body)


def test_a_policy_of_the_programs_own_decides() -> None:
    class Fixed(Timeouts):
        def allowance(
            self, kind: str, size_bytes: int, retry: int, *, work_s: float = 0.0
        ) -> Allowance:
            return Allowance(1.0, 1.0, 0.5, 1.0)

    requests = Requests(TimeoutSettings(tries=1), Fixed())

    async def body() -> None:
        began_s = trio.current_time()
        with pytest.raises(DeadlineError, match=r"0\.5 s"):
            await requests.request(trio.sleep_forever)
        assert trio.current_time() - began_s == pytest.approx(0.5)

    run(body)

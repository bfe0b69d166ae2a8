"""The fast wait: it loses no request, shares the loop, sleeps when idle, and ends when told to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
import trio.testing

from s3mount.fuse import fastloop
from s3mount.fuse.fastloop import FastLoop


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


async def _readers(
    loop: FastLoop, reading: int, tasks: int, *, answers_s: float = 0.0
) -> tuple[list[bytes], int]:
    """``tasks`` readers as pyfuse3's are, until the loop ends; what they read, and most at once."""
    got: list[bytes] = []
    inside = most = 0

    async def reader() -> None:
        nonlocal inside, most
        while await loop.wait():
            got.append(os.read(reading, 1))
            inside += 1
            most = max(most, inside)
            if answers_s:
                await trio.sleep(answers_s)
            inside -= 1
            if got[-1] == b"!":
                loop.stop()

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(reader)
    return got, most


def test_every_request_is_read_once(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"abcdefgh!")

    async def main() -> tuple[list[bytes], int]:
        with trio.fail_after(5):
            return await _readers(FastLoop(reading), reading, 4)

    got, most = trio.run(main)
    assert b"".join(got) == b"abcdefgh!"
    assert most == 1


def test_requests_that_take_long_are_answered_together(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"a" * 19 + b"!")

    async def main() -> tuple[list[bytes], int]:
        with trio.fail_after(5):
            return await _readers(FastLoop(reading), reading, 10, answers_s=0.05)

    got, most = trio.run(main)
    assert len(got) == 20
    assert most == 10


def test_other_tasks_get_their_turn_while_requests_pour_in(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    turns = 0

    async def status_line(loop: FastLoop) -> None:
        nonlocal turns
        for _ in range(20):
            await trio.lowlevel.checkpoint()
            turns += 1
        loop.stop()

    async def main() -> None:
        os.write(writing, b"a" * 60_000)
        loop = FastLoop(reading)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(status_line, loop)
                await _readers(loop, reading, 2)

    trio.run(main)
    assert turns == 20
    assert os.read(reading, 1) == b"a", "they were not all served before the others' turns"


def test_waiting_costs_no_cpu(pipe: tuple[int, int]) -> None:
    reading, _ = pipe

    async def main() -> None:
        loop = FastLoop(reading)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_readers, loop, reading, 8)
            await trio.sleep(0.05)
            before = time.process_time()
            await trio.sleep(0.5)
            used.append(time.process_time() - before)
            loop.stop()
            nursery.cancel_scope.cancel()

    used: list[float] = []
    trio.run(main)
    assert used[0] < 0.05


def test_stopping_ends_all_who_wait(pipe: tuple[int, int]) -> None:
    reading, _ = pipe

    async def main() -> None:
        loop = FastLoop(reading)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_readers, loop, reading, 5)
                await trio.testing.wait_all_tasks_blocked()
                loop.stop()
                loop.stop()
                # As pyfuse3.terminate does, for the one that sleeps.
                trio.lowlevel.notify_closing(reading)
            assert not await loop.wait()

    trio.run(main)


def test_a_cancelled_wait_hands_the_reading_on(pipe: tuple[int, int]) -> None:
    reading, writing = pipe

    async def main() -> list[bytes]:
        loop = FastLoop(reading)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                scopes = [trio.CancelScope() for _ in range(3)]

                async def cancellable(scope: trio.CancelScope) -> None:
                    with scope:
                        await loop.wait()

                for scope in scopes:
                    nursery.start_soon(cancellable, scope)
                await trio.testing.wait_all_tasks_blocked()
                for scope in scopes:
                    scope.cancel()
            os.write(writing, b"ab!")
            return (await _readers(loop, reading, 3))[0]

    assert b"".join(trio.run(main)) == b"ab!"


def test_a_pyfuse3_without_the_place_is_left_alone(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(pyfuse3, "_wait_fuse_readable")
    assert fastloop.install(pipe[0]) is None
    assert not hasattr(pyfuse3, "_wait_fuse_readable")


def test_it_takes_the_place_of_pyfuse3s_own(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyfuse3, "_wait_fuse_readable", pyfuse3._wait_fuse_readable)  # type: ignore[attr-defined]
    loop = fastloop.install(pipe[0])
    assert loop is not None
    assert pyfuse3._wait_fuse_readable == loop.wait  # type: ignore[attr-defined]

"""Calls, cancellations and deaths in random order: nothing hangs, nothing leaks, no answer is wrong."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from s3mount.engine import supervisor
from s3mount.engine.client import EngineClient
from s3mount.engine.supervisor import EngineSupervisor
from s3mount.errors import EngineError
from s3mount.refs import ByteRange, Condition, FileSlice, ObjectHeaders
from s3mount.testing.memory_store import MemoryStore
from tests.idle_clock import IdleClock
from tests.unit.engine.parents import CONFIG, LocalChild, holding

CALLERS = 60
ROUNDS = 15


class Jitter:
    """Effects and answers take up to 5 ms."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.sleep(self._rng.uniform(0, 0.005))

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.sleep(self._rng.uniform(0, 0.005))


class Caller:
    """Writes, reads and checks keys of its own; gives up on some of its calls."""

    def __init__(self, number: int, seed: int, client: EngineClient, folder: Path) -> None:
        self._rng = random.Random(f"{seed}/{number}")
        self._number = number
        self._client = client
        self._path = folder / f"file{number}"
        self.done = 0
        self.given_up = 0

    async def run(self) -> None:
        for turn in range(ROUNDS):
            key = f"{self._number}/{turn}"
            with trio.CancelScope() as scope:
                if self._rng.random() < 0.3:
                    scope.deadline = trio.current_time() + self._rng.uniform(0, 0.01)
                await self._write_and_read(key)
                self.done += 1
            self.given_up += scope.cancelled_caught

    async def _write_and_read(self, key: str) -> None:
        body = self._rng.randbytes(self._rng.randrange(1, 2000))
        self._path.write_bytes(body)
        size = len(body)
        sent = FileSlice(str(self._path), 0, size) if self._rng.random() < 0.5 else body
        result = await self._client.put(
            key, sent, ObjectHeaders(metadata={"key": key}), condition=Condition(if_absent=True)
        )
        assert result.etag == hashlib.md5(body).hexdigest()
        self._path.write_bytes(bytes(size))
        await self._client.fetch(
            key, ByteRange(0, size), FileSlice(str(self._path), 0, size), if_match=result.etag
        )
        assert self._path.read_bytes() == body


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_when(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        supervisor, "CALL_DEATHS_MAX", 1000
    )  # there are more deaths than in a bad year
    rng = random.Random(seed)
    store = MemoryStore(faults=Jitter(rng))
    children: list[LocalChild] = []
    seen: list[EngineSupervisor] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            def spawn() -> LocalChild:
                children.append(LocalChild(nursery, holding(store)))
                return children[-1]

            async with EngineClient(CONFIG, spawn=spawn) as client:
                seen.append(client._supervisor)
                callers = [Caller(n, seed, client, tmp_path) for n in range(CALLERS)]
                killing = trio.CancelScope()

                async def kill_now_and_then() -> None:
                    with killing:
                        while True:
                            await trio.sleep(rng.uniform(0.005, 0.03))
                            # One that comes to nothing again and again is another test's.
                            if client._supervisor._deaths < supervisor.DEATHS_MAX - 2:
                                children[-1].kill()

                nursery.start_soon(kill_now_and_then)
                with trio.fail_after(60):
                    async with trio.open_nursery() as running:
                        for caller in callers:
                            running.start_soon(caller.run)
                killing.cancel()
                assert sum(c.done + c.given_up for c in callers) == CALLERS * ROUNDS
                assert sum(c.given_up for c in callers) > 20
                assert client.restarts >= 3
                await _every_place_is_free(client)
        assert seen[0].calls == 0

    # Both ends are in this loop: on a busy machine only the waits are as long as they say.
    clock = IdleClock()
    trio.run(main, clock=clock, instruments=[clock])


async def _every_place_is_free(client: EngineClient) -> None:
    """As many calls as may ever be under way go through at once."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(supervisor.CALLS_MAX):
                nursery.start_soon(client.delete, f"x{number}")


def test_stopping_in_the_middle_of_deaths_hangs_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore(faults=Jitter(random.Random(1)))
        ended = 0

        async def call(client: EngineClient, number: int) -> None:
            nonlocal ended
            try:
                while True:
                    await client.put(f"k{number}", b"v", ObjectHeaders())
            except EngineError:
                ended += 1

        for pause_s in (0.0, 0.001, 0.01, 0.03):
            ended = 0
            async with trio.open_nursery() as nursery:
                children: list[LocalChild] = []

                def spawn(
                    nursery: trio.Nursery = nursery, children: list[LocalChild] = children
                ) -> LocalChild:
                    children.append(LocalChild(nursery, holding(store)))
                    return children[-1]

                client = EngineClient(CONFIG, spawn=spawn)
                await nursery.start(client.run)
                for number in range(50):
                    nursery.start_soon(call, client, number)
                await trio.sleep(0.02)
                children[-1].kill()
                await trio.sleep(pause_s)
                with trio.fail_after(5):
                    await client.stop(1)
            assert ended == 50

    trio.run(main)

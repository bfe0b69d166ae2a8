"""The engine as a real process: killed under load, ended with its parent, deaf to the terminal."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import trio

from s3mount.engine.client import EngineClient
from s3mount.engine.process import Child, EngineProcess
from s3mount.errors import EngineError
from s3mount.refs import ByteRange, Condition, FileSlice, ObjectHeaders
from s3mount.s3.memory import MemoryStore
from tests.unit.engine.parents import CONFIG, RelayedEngine


class SlowNetwork:
    """Every effect and every answer takes a few milliseconds, differing by seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    async def before(self, operation: str, arguments: object) -> None:
        await trio.sleep(self._rng.uniform(0, 0.02))

    async def after(self, operation: str, arguments: object) -> None:
        await trio.sleep(self._rng.uniform(0, 0.02))


def test_killing_the_engine_under_load_costs_the_callers_a_delay_only(tmp_path: Path) -> None:
    """Hundreds of calls are under way when the child is killed, three times; all come out right."""
    store = MemoryStore(faults=SlowNetwork(7))
    engine = RelayedEngine(store, tmp_path)
    headers = ObjectHeaders(metadata={"mtime": "1"})
    answered = 0
    answered_at_kill: list[int] = []

    async def write_and_read(client: EngineClient, number: int) -> None:
        nonlocal answered
        body = os.urandom(64 + number)
        key = f"k/{number}"
        put = await client.put(key, body, headers, condition=Condition(if_absent=True))
        assert put.etag == hashlib.md5(body).hexdigest()
        answered += 1
        info, data = await client.get(key, if_match=put.etag)
        assert (data, info.size) == (body, len(body))
        answered += 1
        sink = tmp_path / f"sink{number}"
        sink.write_bytes(bytes(len(body)))
        seen: list[int] = []
        await client.fetch(
            key,
            ByteRange(0, len(body)),
            FileSlice(str(sink), 0, len(body)),
            on_progress=seen.append,
        )
        assert sink.read_bytes() == body
        assert seen == sorted(seen)
        answered += 1

    async def main() -> None:
        async with trio.open_nursery() as servers:
            await servers.start(engine.listen)
            async with EngineClient(engine.config, spawn=engine.spawn) as client:
                await client.check_bucket()
                async with trio.open_nursery() as nursery:
                    for number in range(600):
                        nursery.start_soon(write_and_read, client, number)
                    for goal in (100, 700, 1300):
                        while answered < goal:  # noqa: ASYNC110 - the calls are the clock
                            await trio.sleep(0.001)
                        engine.kill_newest(signal.SIGKILL)
                        answered_at_kill.append(answered)
                assert client.restarts == 3
            servers.cancel_scope.cancel()

    trio.run(main)
    assert answered == 1800
    assert all(count < 1800 - 300 for count in answered_at_kill)  # there was load at each kill
    assert len(store.contents()) == 600
    # Some puts took effect and lost their answer: that is what the test is about.
    assert store.requests["put"] > 600
    assert len(engine.pids) == 4


def test_a_child_that_always_dies_ends_in_an_error_and_not_in_a_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started = 0

    def spawn() -> Child:
        nonlocal started
        started += 1
        return EngineProcess([sys.executable, "-c", "import sys; sys.exit('out of luck')"])

    async def main() -> None:
        async with EngineClient(CONFIG, spawn=spawn) as client:
            with pytest.raises(EngineError, match="keeps dying: exit status 1: out of luck"):
                await client.head("k")
            assert started == 5
            with pytest.raises(EngineError, match="keeps dying"):
                await client.head("k")  # tried anew, once, since somebody asks again
            assert started == 6

    trio.run(main)
    assert caplog.messages.count("engine: out of luck") == 6

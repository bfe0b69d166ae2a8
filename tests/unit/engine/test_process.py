"""The engine as a real process: killed under load, ended with its parent, deaf to the terminal."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from s3mount.engine import supervisor
from s3mount.engine.client import EngineClient
from s3mount.engine.process import Child, EngineProcess
from s3mount.engine.signals import HELD_SIGNALS
from s3mount.errors import EngineError, NoSuchKeyError
from s3mount.refs import ByteRange, Condition, FileSlice, ObjectHeaders
from s3mount.testing.memory_store import MemoryStore
from tests.unit.engine.parents import CONFIG, RelayedEngine, relay_command

CALLERS = 300


class SlowNetwork:
    """Every effect and every answer takes a few milliseconds, differing by seed.

    ``on_effect`` is told of every operation that took effect and is not answered yet.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.on_effect: Callable[[str], None] = lambda operation: None

    async def before(self, operation: str, arguments: object) -> None:
        await trio.sleep(self._rng.uniform(0, 0.02))

    async def after(self, operation: str, arguments: object) -> None:
        self.on_effect(operation)
        await trio.sleep(self._rng.uniform(0, 0.02))


def test_killing_the_engine_under_load_costs_the_callers_a_delay_only(tmp_path: Path) -> None:
    """Hundreds of calls are under way when the child is killed, three times; all come out right."""
    network = SlowNetwork(7)
    store = MemoryStore(faults=network)
    engine = RelayedEngine(store, tmp_path)
    headers = ObjectHeaders(metadata={"mtime": "1"})
    answered = 0
    answered_at_kill: list[int] = []
    effects: list[str] = []
    goals = (50, 400, 600)

    def kill_now_and_then(operation: str) -> None:
        """Its answer is lost for sure; the first one's is a put's."""
        effects.append(operation)
        kills = len(answered_at_kill)
        is_due = (
            kills < len(goals) and len(effects) >= goals[kills] and (kills or operation == "put")
        )
        if is_due and len(engine.pids) > kills:
            engine.kill_newest(signal.SIGKILL)
            answered_at_kill.append(answered)

    network.on_effect = kill_now_and_then

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
                    for number in range(CALLERS):
                        nursery.start_soon(write_and_read, client, number)
                assert client.restarts == 3
            servers.cancel_scope.cancel()

    trio.run(main)
    assert answered == 3 * CALLERS
    assert all(count < 2.5 * CALLERS for count in answered_at_kill)  # there was load at each kill
    assert len(store.contents()) == CALLERS
    assert store.requests["put"] > CALLERS
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


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what another process does."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - another process tells nobody
            await trio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_child_leaves_the_terminals_and_the_services_signals_to_its_parent(
    tmp_path: Path,
) -> None:
    """It runs at a lower priority, and no signal that a group gets ends it or its requests."""
    store = MemoryStore(faults=SlowNetwork(1))
    engine = RelayedEngine(store, tmp_path)

    async def main() -> None:
        async with trio.open_nursery() as servers:
            await servers.start(engine.listen)
            async with EngineClient(engine.config, spawn=engine.spawn) as client:
                while not engine.pids:
                    await trio.lowlevel.checkpoint()
                for number in HELD_SIGNALS:
                    engine.kill_newest(number)  # at once: it is not even up
                async with trio.open_nursery() as nursery:
                    for count in range(30):
                        nursery.start_soon(client.put, f"k{count}", b"v", ObjectHeaders())
                        if count % 10 == 5:
                            engine.kill_newest(HELD_SIGNALS[count // 10])
                            await trio.sleep(0.01)
                for thread in os.listdir(f"/proc/{engine.pids[0]}/task"):
                    assert os.getpriority(os.PRIO_PROCESS, int(thread)) >= 10
                assert client.restarts == 0
            servers.cancel_scope.cancel()

    trio.run(main)
    assert len(store.contents()) == 30
    assert len(engine.pids) == 1
    assert not is_alive(engine.pids[0])


PARENT = """
import sys, trio
from s3mount.engine import supervisor
from s3mount.engine.client import EngineClient
from s3mount.engine.process import EngineProcess
from s3mount.errors import S3MountError
from tests.unit.engine.parents import relay_command, CONFIG

def spawn():
    child = EngineProcess(relay_command())
    print(child.pid, flush=True)
    return child

async def main():
    async with EngineClient(CONFIG, spawn=spawn) as client:
        try:
            await client.head("key")
        except S3MountError:
            print("it answers, were it only that it has no store", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_the_child_dies_with_its_parent_even_if_it_hangs(stopped: bool) -> None:
    """A parent that is killed tells nobody; a child that is stopped cannot read the end of stream."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        # What it does in its first moments is not the question here.
        assert parent.stdout.readline()
    assert is_alive(child)
    if stopped:
        os.kill(child, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    trio.run(until, lambda: not is_alive(child))


def test_a_child_that_hangs_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patient_s, hasty_s = 1.0, 0.25
    monkeypatch.setattr(supervisor, "TICK_S", patient_s)
    engine = RelayedEngine(MemoryStore(), tmp_path)

    async def main() -> None:
        async with trio.open_nursery() as servers:
            await servers.start(engine.listen)
            async with EngineClient(engine.config, spawn=engine.spawn) as client:
                await client.put("k", b"v", ObjectHeaders())

                async def be_hasty_until_it_is_replaced(restarts: int) -> None:
                    # Its successor may start as slowly as the machine is.
                    monkeypatch.setattr(supervisor, "TICK_S", hasty_s)
                    await until(lambda: client.restarts == restarts, 60.0)
                    monkeypatch.setattr(supervisor, "TICK_S", patient_s)

                engine.kill_newest(signal.SIGSTOP)
                servers.start_soon(be_hasty_until_it_is_replaced, 1)
                await client.head("k")
                assert client.restarts == 1
                engine.kill_newest(signal.SIGSTOP)  # and one that does not let go of a file
                servers.start_soon(be_hasty_until_it_is_replaced, 2)
                with trio.move_on_after(0.1):
                    await client.fetch("k", ByteRange(0, 1), FileSlice(str(tmp_path / "s"), 0, 1))
                await client.head("k")
            servers.cancel_scope.cancel()

    trio.run(main)
    assert len(engine.pids) == 3
    assert sum("hangs" in message for message in caplog.messages) == 2


def test_what_a_crash_leaves_on_stderr_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    crash = "import ctypes, faulthandler; faulthandler.enable(); ctypes.string_at(0)"
    children = [[sys.executable, "-c", crash]]

    def spawn() -> Child:
        return EngineProcess(children.pop() if children else relay_command())

    async def main() -> None:
        async with EngineClient(CONFIG, spawn=spawn) as client:
            await until(lambda: client.restarts == 1)

    trio.run(main)
    assert any("killed by SIGSEGV" in message for message in caplog.messages)
    assert any("Fatal Python error: Segmentation fault" in message for message in caplog.messages)


def test_the_childs_warnings_are_the_parents(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They arrive as records of the logger that made them, whatever thread that was in."""

    async def main() -> None:
        store = MemoryStore()
        engine = RelayedEngine(store, tmp_path)
        async with trio.open_nursery() as servers:
            await servers.start(engine.listen)
            async with EngineClient(engine.config, spawn=engine.spawn) as client:
                with pytest.raises(NoSuchKeyError):
                    await client.head("please warn")
                await until(lambda: "a warning from a thread" in caplog.messages)
            servers.cancel_scope.cancel()

    trio.run(main)
    (record,) = [r for r in caplog.records if r.message == "a warning from a thread"]
    assert (record.name, record.levelname) == ("s3mount.relay", "WARNING")


PREPARING = """
import os, sys
from s3mount.engine.process import prepare_engine, spawn_engine
prepare_engine(folder="/")
if sys.argv[1] == "used":
    first, second = spawn_engine(), spawn_engine()
    assert first.pid != second.pid
    assert os.readlink(f"/proc/{first.pid}/cwd") == "/"
    assert os.readlink(f"/proc/{second.pid}/cwd") == os.getcwd()
    print(first.pid, second.pid)
else:
    from s3mount.engine.process import _Prepared
    print(_Prepared.child.pid)
"""


@pytest.mark.parametrize("how", ["used", "unused"])
def test_an_engine_that_was_prepared_is_handed_out_once_and_ends_with_its_process(
    tmp_path: Path, how: str
) -> None:
    """Away from the folder that the command was given in, which it would keep busy."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARING, how],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    pids = list(map(int, done.stdout.split()))
    assert len(pids) == (2 if how == "used" else 1)
    deadline = time.monotonic() + 20
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "it outlives its parent"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Is it there, and no zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

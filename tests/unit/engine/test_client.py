"""The client against a child in the same loop: every call, error, cancellation and ending."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3mount import metrics
from s3mount.config import StoreConfig
from s3mount.engine import supervisor
from s3mount.engine.child import REOPEN_DELAY_S
from s3mount.engine.client import EngineClient
from s3mount.errors import (
    EngineError,
    NoCredentialsError,
    NoSuchKeyError,
    RejectedError,
    ServerFaultError,
    ThrottledError,
    UsageError,
)
from s3mount.refs import (
    ByteRange,
    FileSlice,
    ObjectHeaders,
)
from s3mount.s3.store import Store
from s3mount.testing.memory_store import MemoryStore
from tests.unit.engine.exercise import exercise
from tests.unit.engine.parents import CONFIG, LocalChild, holding

H = ObjectHeaders(metadata={"mode": "33188", "note": "a b"}, content_type="text/plain")
Hook = Callable[[str, Mapping[str, object]], Awaitable[None]]


class Hooks:
    """Faults made of two functions."""

    def __init__(self, before: Hook | None = None, after: Hook | None = None) -> None:
        self._before = before
        self._after = after

    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if self._before is not None:
            await self._before(operation, arguments)

    async def after(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if self._after is not None:
            await self._after(operation, arguments)


@asynccontextmanager
async def engine(store: Store) -> AsyncIterator[EngineClient]:
    """A client whose children, one after the other, all serve ``store``."""
    async with (
        trio.open_nursery() as nursery,
        EngineClient(CONFIG, spawn=lambda: LocalChild(nursery, holding(store))) as client,
    ):
        yield client


def run(main: Callable[[], Awaitable[Any]]) -> None:
    trio.run(main)


def test_every_call_gives_what_the_store_itself_gives(tmp_path: Path) -> None:
    async def main() -> None:
        direct = await exercise(MemoryStore(), tmp_path)
        async with engine(MemoryStore()) as client:
            assert await exercise(client, tmp_path) == direct
            assert sum((await client.statistics()).values()) > 0

    run(main)


def test_what_cannot_cross_is_refused_with_a_reason() -> None:
    async def main() -> None:
        async with engine(MemoryStore()) as client:
            with pytest.raises(RejectedError, match="not UTF-8"):
                await client.head("bad\udc80")
            with pytest.raises(RejectedError, match="must come as a file"):
                await client.put("k", bytes((1 << 20) + 1), H)
            await client.put("k", bytes(1 << 20), H)  # the most, and the client goes on

    run(main)


class TestErrors:
    def test_an_unexpected_exception_ends_its_own_request_only_and_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def bug(operation: str, arguments: Mapping[str, object]) -> None:
            if operation == "head":
                raise ZeroDivisionError("a bug")

        async def main() -> None:
            async with engine(MemoryStore(faults=Hooks(before=bug))) as client:
                with pytest.raises(ServerFaultError) as caught:
                    await client.head("k")
                assert "\n" not in str(caught.value)
                await client.put("k", b"v", H)
                assert client.restarts == 0

        run(main)
        (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
        assert "Head request" in record.getMessage()
        assert record.exc_info
        assert record.exc_info[0] is ZeroDivisionError

    def test_an_error_in_a_nursery_of_the_store_arrives_as_itself(self) -> None:
        async def grouped(operation: str, arguments: Mapping[str, object]) -> None:
            raise ExceptionGroup("nursery", [ExceptionGroup("inner", [ThrottledError("slow")])])

        async def main() -> None:
            async with engine(MemoryStore(faults=Hooks(before=grouped))) as client:
                with pytest.raises(ThrottledError, match="slow"):
                    await client.head("k")

        run(main)

    @pytest.mark.parametrize(
        "error", [NoCredentialsError("none found"), UsageError("no such profile")]
    )
    def test_a_store_that_cannot_be_opened_says_why_to_each_call_until_it_can(
        self, error: Exception
    ) -> None:
        tries = 0

        @asynccontextmanager
        async def open_store(_: StoreConfig) -> AsyncIterator[Store]:
            nonlocal tries
            tries += 1
            await trio.lowlevel.checkpoint()
            if tries < 3:
                raise error
            yield MemoryStore()

        async def main() -> None:
            async with (
                trio.open_nursery() as nursery,
                EngineClient(CONFIG, spawn=lambda: LocalChild(nursery, open_store)) as client,
            ):
                for expected_tries in (1, 1, 2):
                    if expected_tries == 2:
                        await trio.sleep(REOPEN_DELAY_S + 0.1)
                    with pytest.raises(type(error), match=str(error)):
                        await client.head("k")
                    assert tries == expected_tries
                await trio.sleep(REOPEN_DELAY_S + 0.1)
                await client.put("k", b"v", H)
                assert client.restarts == 0

        run(main)

    def test_a_callers_mistake_in_on_progress_is_the_callers(self, tmp_path: Path) -> None:
        (tmp_path / "sink").write_bytes(bytes(10))

        def mistake(done: int) -> None:
            raise ZeroDivisionError

        async def wait(operation: str, arguments: Mapping[str, object]) -> None:
            if operation == "fetch":
                await trio.sleep(0.2)

        async def main() -> None:
            async with engine(MemoryStore(faults=Hooks(after=wait))) as client:
                await client.put("k", b"0123456789", H)
                sink = FileSlice(str(tmp_path / "sink"), 0, 10)
                with pytest.raises(ZeroDivisionError):
                    await client.fetch("k", ByteRange(0, 10), sink, on_progress=mistake)
                await client.head("k")

        run(main)


class TestCancellation:
    def test_a_cancelled_call_returns_at_once_and_ends_in_the_child_too(self) -> None:
        ended = trio.Event()

        async def hang(operation: str, arguments: Mapping[str, object]) -> None:
            if operation == "head":
                try:
                    await trio.sleep_forever()
                finally:
                    ended.set()

        async def main() -> None:
            async with engine(MemoryStore(faults=Hooks(before=hang))) as client:
                await client.put("k", b"v", H)
                with trio.move_on_after(0.05) as scope:
                    await client.head("k")
                assert scope.cancelled_caught
                with trio.fail_after(1):
                    await ended.wait()
                await client.get("k")

        run(main)

    def test_a_cancelled_fetch_returns_when_nobody_writes_to_its_file_any_more(
        self, tmp_path: Path
    ) -> None:
        released = False

        async def cling(operation: str, arguments: Mapping[str, object]) -> None:
            nonlocal released
            if operation == "fetch":
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(0.1)
                    released = True

        async def main() -> None:
            async with engine(MemoryStore(faults=Hooks(before=cling))) as client:
                sink = FileSlice(str(tmp_path / "sink"), 0, 10)
                with trio.move_on_after(0.05) as scope:
                    await client.fetch("k", ByteRange(0, 10), sink)
                assert scope.cancelled_caught
                assert released

        run(main)

    def test_a_fetch_that_is_cancelled_while_its_child_dies_ends_cancelled(
        self, tmp_path: Path
    ) -> None:
        children: list[LocalChild] = []

        async def hang(operation: str, arguments: Mapping[str, object]) -> None:
            if operation == "fetch":
                with trio.CancelScope(shield=True):
                    children[-1].kill()
                    await trio.sleep(0.1)

        async def main() -> None:
            store = MemoryStore(faults=Hooks(before=hang))
            async with trio.open_nursery() as nursery:

                def spawn() -> LocalChild:
                    children.append(LocalChild(nursery, holding(store)))
                    return children[-1]

                async with EngineClient(CONFIG, spawn=spawn) as client:
                    sink = FileSlice(str(tmp_path / "sink"), 0, 10)
                    with trio.move_on_after(0.05) as scope:
                        await client.fetch("k", ByteRange(0, 10), sink)
                    assert scope.cancelled_caught
                    assert store.requests["fetch"] == 1

        run(main)

    def test_more_calls_than_are_taken_at_once_wait_and_may_be_cancelled(self) -> None:
        running = most = 0

        async def slow(operation: str, arguments: Mapping[str, object]) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                await trio.sleep(0.05)
            finally:
                running -= 1

        async def main() -> None:
            async with engine(MemoryStore(faults=Hooks(before=slow))) as client:

                async def delete(number: int) -> None:
                    with trio.CancelScope() as scope:
                        if number % 7 == 0:
                            scope.deadline = trio.current_time() + 0.01
                        await client.delete(f"k{number}")

                async with trio.open_nursery() as nursery:
                    for number in range(supervisor.CALLS_MAX * 2):
                        nursery.start_soon(delete, number)
                await client.delete("last")

        run(main)
        assert supervisor.CALLS_MAX // 2 < most <= supervisor.CALLS_MAX * 2


class TestDeath:
    def test_progress_never_falls_although_the_second_child_begins_anew(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "sink").write_bytes(bytes(1000))
        children: list[LocalChild] = []
        seen: list[int] = []

        async def die_once(operation: str, arguments: Mapping[str, object]) -> None:
            if operation == "fetch":
                await trio.sleep(0.05)
                if len(children) == 1:
                    children[-1].kill()
                    await trio.sleep_forever()

        async def main() -> None:
            store = MemoryStore(faults=Hooks(after=die_once))
            await store.put("k", bytes(1000), H)
            async with trio.open_nursery() as nursery:

                def spawn() -> LocalChild:
                    children.append(LocalChild(nursery, holding(store)))
                    return children[-1]

                async with EngineClient(CONFIG, spawn=spawn) as client:
                    sink = FileSlice(str(tmp_path / "sink"), 0, 1000)
                    await client.fetch("k", ByteRange(0, 1000), sink, on_progress=seen.append)
            assert store.requests["fetch"] == 2

        run(main)
        assert seen == [1000]
        assert len(children) == 2

    def test_a_request_that_kills_every_child_fails_and_the_others_do_not(self) -> None:
        children: list[LocalChild] = []

        async def poison(operation: str, arguments: Mapping[str, object]) -> None:
            if arguments.get("key") == "poison":
                await trio.sleep(0.01)
                children[-1].kill()
                await trio.sleep_forever()

        async def main() -> None:
            store = MemoryStore(faults=Hooks(before=poison))
            finished = 0

            async def others(client: EngineClient) -> None:
                nonlocal finished
                for number in range(200):
                    await client.put(f"k{number}", b"v", H)
                    await trio.sleep(0.002)
                finished += 1

            async with trio.open_nursery() as nursery:

                def spawn() -> LocalChild:
                    children.append(LocalChild(nursery, holding(store)))
                    return children[-1]

                async with EngineClient(CONFIG, spawn=spawn) as client:
                    async with trio.open_nursery() as callers:
                        callers.start_soon(others, client)
                        with pytest.raises(EngineError, match="over one request"):
                            await client.head("poison")
                    assert finished == 1
            assert len(store.contents()) == 200

        run(main)
        assert len(children) == supervisor.CALL_DEATHS_MAX + 1

    def test_counters_do_not_fall_when_a_child_is_replaced(self) -> None:
        children: list[LocalChild] = []

        @asynccontextmanager
        async def open_store(_: StoreConfig) -> AsyncIterator[Store]:
            await trio.lowlevel.checkpoint()
            yield MemoryStore()

        async def main() -> None:
            async with trio.open_nursery() as nursery:

                def spawn() -> LocalChild:
                    children.append(LocalChild(nursery, open_store))
                    return children[-1]

                async with EngineClient(CONFIG, spawn=spawn) as client:
                    for number in range(5):
                        await client.put(f"k{number}", b"v", H)
                    before = await client.statistics()
                    assert (before["requests_put"], before["engine_restarts"]) == (5, 0)
                    children[-1].kill()
                    await client.put("k", b"v", H)
                    for _ in range(2):
                        after = await client.statistics()
                        assert (after["requests_put"], after["engine_restarts"]) == (6, 1)
                    assert all(metrics.find(name) for name in after)

        run(main)

    def test_rates_that_were_changed_hold_for_later_children_too(self) -> None:
        opened: list[StoreConfig] = []
        children: list[LocalChild] = []

        @asynccontextmanager
        async def open_store(config: StoreConfig) -> AsyncIterator[Store]:
            await trio.lowlevel.checkpoint()
            opened.append(config)
            yield MemoryStore()

        async def main() -> None:
            async with trio.open_nursery() as nursery:

                def spawn() -> LocalChild:
                    children.append(LocalChild(nursery, open_store))
                    return children[-1]

                async with EngineClient(CONFIG, spawn=spawn) as client:
                    await client.put("before", b"v", H)
                    await client.set_rates(1000, 2000)
                    children[-1].kill()
                    await client.put("k", b"v", H)

        run(main)
        rates = [(config.up_bytes_per_s, config.down_bytes_per_s) for config in opened]
        assert rates == [(0, 0), (1000, 2000)]


class TestEnding:
    def test_stop_lets_calls_finish_and_takes_no_more(self) -> None:
        async def slow(operation: str, arguments: Mapping[str, object]) -> None:
            await trio.sleep(0.1)

        async def main() -> None:
            store = MemoryStore(faults=Hooks(before=slow))
            async with trio.open_nursery() as nursery:
                client = EngineClient(CONFIG, spawn=lambda: LocalChild(nursery, holding(store)))
                await nursery.start(client.run)
                async with trio.open_nursery() as callers:
                    for number in range(10):
                        callers.start_soon(client.put, f"k{number}", b"v", H)
                    await trio.testing.wait_all_tasks_blocked()
                    with trio.fail_after(2):
                        await client.stop()
                assert len(store.contents()) == 10
                with pytest.raises(EngineError, match="has been stopped"):
                    await client.head("k")
                await client.stop()

        run(main)

    def test_stop_waits_no_longer_than_it_was_told(self) -> None:
        async def hang(operation: str, arguments: Mapping[str, object]) -> None:
            await trio.sleep_forever()

        async def main() -> None:
            store = MemoryStore(faults=Hooks(before=hang))

            async def fail(client: EngineClient) -> None:
                with pytest.raises(EngineError, match="has been stopped"):
                    await client.head("k")

            async with trio.open_nursery() as nursery:
                client = EngineClient(CONFIG, spawn=lambda: LocalChild(nursery, holding(store)))
                await nursery.start(client.run)
                nursery.start_soon(fail, client)
                await trio.testing.wait_all_tasks_blocked()
                with trio.fail_after(1):
                    await client.stop(0.1)

        run(main)

    def test_an_exception_of_the_block_leaves_it_in_no_group(self) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                with pytest.raises(NoSuchKeyError):
                    async with EngineClient(
                        CONFIG, spawn=lambda: LocalChild(nursery, holding(MemoryStore()))
                    ) as client:
                        await client.head("gone")

        run(main)

    def test_a_client_that_was_never_run_can_be_stopped(self) -> None:
        async def main() -> None:
            await EngineClient(CONFIG).stop()

        run(main)

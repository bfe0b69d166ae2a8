from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

import pytest
import trio
import trio.testing

from s3mount.bulk.report import Outcome, Report, command_line
from s3mount.bulk.running import Done, Flattened, Performer, Task, for_each
from s3mount.errors import (
    AccessDeniedError,
    DiskFullError,
    NetworkError,
    NoSuchKeyError,
    ObjectExistsError,
    S3MountError,
)
from s3mount.testing.memory_store import MemoryStore, NoFaults


class Lines:
    def __init__(self, **how: bool) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.report = Report("rm", write=self.out.append, complain=self.err.append, **how)


def outcome(source: str, **more: object) -> Outcome:
    return Outcome(operation="rm", success=True, source=source, **more)  # type: ignore[arg-type]


def copied(source: str, destination: str) -> Outcome:
    return Outcome(operation="cp", success=True, source=source, destination=destination)


@pytest.mark.parametrize(
    ("told", "options", "words"),
    [
        (outcome("s3://b/k"), [], ["rm", "s3://b/k"]),
        (outcome("s3://b/k *"), [], ["rm", "--raw", "s3://b/k *"]),
        (
            outcome("s3://b/'\n\"$x"),
            ["--version-id", "v"],
            ["rm", "--version-id", "v", "s3://b/'\n\"$x"],
        ),
        (copied("-x", "s3://b/-x"), [], ["cp", "./-x", "s3://b/-x"]),
        (copied("-", "d*"), [], ["cp", "-", "d*"]),
    ],
)
def test_a_plain_line_can_be_run_again(told: Outcome, options: list[str], words: list[str]) -> None:
    assert shlex.split(command_line(told, options)) == words


def test_what_run_does_not_do_is_a_comment() -> None:
    told = command_line(outcome("there/a\nb"))
    assert told == "# rm 'there/a\\nb'"


def test_json_lines_hold_all_that_is_known() -> None:
    lines = Lines(as_json=True)
    lines.report.take(outcome("s3://b/ü", bytes=5, seconds=0.5, version_id="v"))
    lines.report.fail("rm", "s3://b/x", None, AccessDeniedError("no", request_id="R"))
    first, second = map(json.loads, lines.out)
    assert first == {
        "operation": "rm",
        "success": True,
        "source": "s3://b/ü",
        "destination": None,
        "bytes": 5,
        "seconds": 0.5,
        "version_id": "v",
        "error": None,
        "skipped": None,
    }
    assert (second["success"], second["error"]) == (False, "no (request R)")
    assert json.loads(lines.report.summary_line())["failed"] == 1
    assert not lines.err


@pytest.mark.parametrize(
    ("errors", "good", "expected"),
    [
        ([], 2, 0),
        ([AccessDeniedError("x")], 0, 14),
        ([NoSuchKeyError("x")], 0, 5),
        ([ObjectExistsError("x")], 0, 3),
        ([ObjectExistsError("x")], 1, 1),
        ([ObjectExistsError("x"), ObjectExistsError("y")], 0, 1),
    ],
)
def test_the_status_is_a_single_objects_own(
    errors: list[S3MountError], good: int, expected: int
) -> None:
    lines = Lines(quiet=True)
    for number in range(good):
        lines.report.take(outcome(f"s3://b/{number}"))
    for error in errors:
        lines.report.fail("rm", "s3://b/k", None, error)
    assert lines.report.counts.exit_code == expected
    assert not lines.out
    assert len(lines.err) == len(errors)


def task(store: MemoryStore, name: str, error: S3MountError | None = None) -> Task:
    async def work() -> Done:
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return Done(3, "v")

    return Task("rm", f"s3://b/{name}", None, work, store=store)


def test_each_task_has_an_outcome_and_what_befalls_all_ends_it() -> None:
    lines = Lines()
    performer = Performer(lines.report)
    store = MemoryStore()

    async def main() -> None:
        assert await performer.perform(task(store, "a"))
        assert not await performer.perform(task(store, "b", NoSuchKeyError("gone")))
        with pytest.raises(DiskFullError):
            await performer.perform(task(store, "c", DiskFullError("full")))

    trio.run(main)
    assert lines.out == ["rm s3://b/a"]
    assert lines.err == ["rm s3://b/b: gone"]


class Unreachable(NoFaults):
    async def before(self, operation: str, arguments: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        raise NetworkError("unreachable")


def test_a_store_that_does_not_answer_ends_it() -> None:
    lines = Lines()
    performer = Performer(lines.report)
    store = MemoryStore(faults=Unreachable())

    async def main() -> None:
        for number in range(100):
            await performer.perform(task(store, str(number), NetworkError("unreachable")))

    with pytest.raises(NetworkError):
        trio.run(main)
    assert lines.report.counts.failed == 8


def test_a_dry_run_does_nothing() -> None:
    lines = Lines(is_dry_run=True)
    trio.run(Performer(lines.report).perform, task(MemoryStore(), "a", DiskFullError("full")))
    assert lines.out == ["rm s3://b/a"]


class Batches:
    def __init__(self, batches: list[list[int]]) -> None:
        self._batches = iter(batches)

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> list[int]:
        await trio.lowlevel.checkpoint()
        for batch in self._batches:
            return batch
        raise StopAsyncIteration


def test_many_at_once_and_no_more_than_that() -> None:
    at_once = most = 0
    done = []

    async def do(item: int) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await trio.sleep(1)
        at_once -= 1
        done.append(item)

    async def main() -> float:
        batches = Batches([[], list(range(50)), [], list(range(50, 100))])
        await for_each(Flattened(batches), do, workers=10)
        return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    began = clock.current_time()
    assert trio.run(main, clock=clock) - began == pytest.approx(10)
    assert (most, sorted(done)) == (10, list(range(100)))


def test_the_first_error_ends_all_and_comes_alone() -> None:
    async def do(item: int) -> None:
        if item == 7:
            raise DiskFullError("full")
        await trio.sleep_forever()

    async def main() -> None:
        await for_each(Flattened(Batches([list(range(50))])), do)

    with pytest.raises(DiskFullError):
        trio.run(main)

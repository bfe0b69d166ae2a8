"""How long a loop's turns take, and what is told of one that takes too long."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import trio

from s3mount import turns
from s3mount.turns import last_told, watched


def compute(seconds: float) -> None:
    """Use the processor for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def stand(seconds: float) -> None:
    """Keep the loop from everything else, without using the processor."""
    time.sleep(seconds)


def test_waiting_in_a_turn_is_told_from_computing() -> None:
    async def run() -> dict[str, float]:
        with watched() as measured:
            await trio.lowlevel.checkpoint()
            stand(0.12)
            await trio.lowlevel.checkpoint()
            compute(0.06)
            await trio.sleep(0.2)
            return measured.statistics()

    told = trio.run(run)
    assert told["turn_max_s"] >= 0.12
    assert 0.06 <= told["turn_cpu_max_s"] < told["turn_max_s"]
    assert told["turns_slow"] == 1


def test_the_longest_turn_since_the_last_look() -> None:
    async def run() -> tuple[dict[str, float], dict[str, float]]:
        with watched() as measured:
            await trio.lowlevel.checkpoint()
            compute(0.06)
            await trio.lowlevel.checkpoint()
            first = measured.statistics()
            await trio.lowlevel.checkpoint()
            return first, measured.statistics()

    first, second = trio.run(run)
    assert first["turn_recent_cpu_s"] == first["turn_cpu_max_s"] >= 0.06
    assert second["turn_recent_cpu_s"] < second["turn_cpu_max_s"] == first["turn_cpu_max_s"]


def test_many_stuck_turns_fill_no_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(turns, "STUCK_S", 0.05)
    monkeypatch.setattr(turns, "LOOK_EVERY_S", 0.01)

    async def run() -> float:
        with watched() as measured:
            for _ in range(5):
                await trio.sleep(0.02)
                stand(0.2)
            await trio.sleep(0.05)
            monkeypatch.setattr(turns, "QUIET_S", 0.0)
            stand(0.2)
            await trio.sleep(0.05)
            return measured.statistics()["turns_stuck"]

    with caplog.at_level(logging.WARNING, "s3mount.turns"):
        assert trio.run(run) == 6
    told = [record.getMessage() for record in caplog.records]
    stuck = [line for line in told if "has not answered" in line and "stand" in line]
    # Each is told when it is seen, and again when it has lasted twice as long.
    assert 2 <= len(stuck) <= 8
    assert any("4 more since the last was told" in line for line in stuck)
    assert sum("answers again" in line for line in told) == 2


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], ""),
        (["2026-01-02 03:04:05,678 WARNING s3mount.turns: the mount (pid 7) answers again"], ""),
        (
            [
                "2026-01-02 03:04:05,678 WARNING s3mount.turns: the mount (pid 7) has not answered for 2 s: in x"
            ],
            "at 2026-01-02 03:04:05 it had not answered for 2 s: in x",
        ),
        (
            [
                "2026-01-02 03:04:05,678 WARNING s3mount.turns: the mount (pid 7) has not answered for 2 s: in x",
                "2026-01-02 03:04:06,678 WARNING s3mount.turns: the mount (pid 7) answers again",
            ],
            "",
        ),
        (
            [
                "2026-01-02 03:04:05,678 WARNING s3mount.turns: the mount (pid 8) has not answered for 2 s: in x"
            ],
            "",
        ),
    ],
)
def test_what_a_log_says_of_a_process(tmp_path: Path, lines: list[str], told: str) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{line}\n" for line in lines))
    assert last_told(log, 7) == told
    assert last_told(tmp_path / "absent", 7) == ""

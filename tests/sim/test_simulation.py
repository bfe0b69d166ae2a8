"""Seeds of the simulation: each must keep every promise. S3MOUNT_SIM_SEEDS says how many are played.

A failing seed prints the command that plays it again, step by step.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.model import File, Tree
from tests.sim.run import SIMULATED_STEPS, play

SEEDS = int(os.environ.get("S3MOUNT_SIM_SEEDS", "60"))
WHOLE_RUN_SEEDS = 2000
"""From so many on a kill must have hit every named step."""
PROCESSES = 2
ONCE_FAILED = (
    "242,484,719,861,1635,2598,2786,2925,2960,3404,3874,3989,4054,4160,5113,6143,7572,7712,7889,8126,"
    "10645,11785,12524,13037,14183,14716,15277,15421,18348,19453,30055,30083,30187,30223,30463,30751"
)
"""Each found something that the first 200 did not."""


@pytest.mark.timeout(60 + 3 * SEEDS)
def test_no_seed_breaks_a_promise() -> None:
    root = Path(__file__).parent.parent.parent
    share = -(-SEEDS // PROCESSES)
    players = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sim.run", str(first), str(min(share, SEEDS - first))],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for first in range(0, SEEDS, share)
    ]
    outputs = [player.communicate()[0] for player in players]
    wrong = [output for player, output in zip(players, outputs, strict=True) if player.returncode]
    assert not wrong, "\n".join([*wrong, "play it: python -m tests.sim.run SEED -v"])
    hits = Counter[str]()
    for line in "".join(outputs).splitlines():
        found = re.fullmatch(r" *(\d+) kills +(\d+) cuts +\d+ reached at (.*)", line)
        if found:
            hits[found[3]] += int(found[1]) + int(found[2])
    # A run whose kills hit nothing would prove nothing.
    assert hits["a task's step"]
    missed = [name for name in SIMULATED_STEPS if not hits[name]]
    assert len(missed) < len(SIMULATED_STEPS)
    if SEEDS >= WHOLE_RUN_SEEDS:
        assert not missed


@pytest.mark.timeout(80 + 3 * len(ONCE_FAILED.split(",")))
def test_seeds_that_once_failed() -> None:
    command = [sys.executable, "-m", "tests.sim.run", ONCE_FAILED]
    root = Path(__file__).parent.parent.parent
    timeout_s = 60 + 3 * len(ONCE_FAILED.split(","))
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout


def test_a_seed_is_played_alike_each_time(tmp_path: Path) -> None:
    logs = [play(3, tmp_path / name).log for name in ("first", "second")]
    assert logs[0] == logs[1]
    assert len(logs[0]) > 10


def test_a_machine_of_any_speed_plays_a_seed_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_ease = play(3, tmp_path / "at ease").log
    with monkeypatch.context() as patch:
        for clock in ("monotonic", "perf_counter", "process_time", "thread_time"):
            patch.setattr(time, clock, itertools.count(1.0, 10.0).__next__)
        under_load = play(3, tmp_path / "under load").log
    assert under_load == at_ease


def test_the_model_finds_what_is_missing_changed_or_too_much() -> None:
    tree = Tree("d")
    tree.files["d/a"] = File(b"one", b"one")
    assert tree.differences({"d": None, "d/a": b"one"}) == []
    assert tree.differences({"d": None}) == ["file d/a is missing"]
    assert "must be" in tree.differences({"d": None, "d/a": b"two"})[0]
    assert tree.differences({"d": None, "d/a": b"one", "d/b": b""}) == [
        "d/b is there but must not be"
    ]


def test_after_a_kill_each_byte_is_of_the_last_close_or_later() -> None:
    file = File(b"aaaa", b"aaaa")
    assert not file.may_be(b"bbbb")
    file.became(b"abba")
    file.became(b"abbacc")
    assert file.may_be(b"abaa")
    assert file.may_be(b"abbacc")
    assert not file.may_be(b"abca")
    assert not file.may_be(b"abb")

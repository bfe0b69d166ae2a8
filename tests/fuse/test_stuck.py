"""A mount whose loop stands still: its log and the status of it tell where, while it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mount.cli import main
from s3mount.cli.mounts import mounts
from tests.fuse.test_lifetime import LivingMount, until

pytestmark = pytest.mark.needs_s3  # not for the plain folder

SYNC = "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDWR))"


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LivingMount]:
    monkeypatch.setenv("S3MOUNT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(mounts, "STATUS_TIMEOUT_S", 0.5)
    found = LivingMount(tmp_path)
    yield found
    found.close()


def loop_of(mount: LivingMount, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """What the status tells of the mount's loop."""
    capsys.readouterr()
    assert main(["status", str(mount.path), "--json"]) == 0
    told: dict[str, float] = json.loads(capsys.readouterr().out)["loop"]
    return told


def test_the_log_and_the_status_tell_where_a_loop_stands(
    mount: LivingMount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, goes_on = tmp_path / "log", tmp_path / "goes on"
    mount.output = log
    mount.start("--stalls", str(goes_on), "--log-file", str(log))
    file = mount.write()
    before = loop_of(mount, capsys)
    assert before["turns_stuck"] == 0
    assert before["turn_max_s"] < 1.0
    syncing = subprocess.Popen([sys.executable, "-c", SYNC, str(file)])
    try:
        until(lambda: "has not answered for" in mount.said)
        assert main(["status", str(mount.path)]) == 1
        told = capsys.readouterr().out
        assert "its process does not answer; at 20" in told
        assert "memory_mount.py:" in told
        assert " stand_still" in told
        assert "lifetime.py" not in told
    finally:
        goes_on.touch()
        syncing.wait(10)
    until(lambda: "answers again" in mount.said)
    after = loop_of(mount, capsys)
    assert after["turns_stuck"] == 1
    assert after["turn_max_s"] > 1.0
    assert after["turn_cpu_max_s"] < after["turn_max_s"] / 2
    assert loop_of(mount, capsys)["turn_recent_s"] < 1.0


def test_a_process_that_is_stopped_is_said_to_be(
    mount: LivingMount, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.start()
    assert mount.process is not None
    pid = mount.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert main(["status", str(mount.path)]) == 1
        assert f"it is stopped: kill -CONT {pid}" in capsys.readouterr().out
    finally:
        os.kill(pid, signal.SIGCONT)
    loop_of(mount, capsys)

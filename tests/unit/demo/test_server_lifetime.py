"""A kept process ends with whoever asked for it, however that ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from s3mount.demo.server_process import ServerProcess

WAIT_S = 10.0
STUBBORN = "trap '' TERM; echo $$; while :; do sleep 1; done"

ASKER = """
import os, sys, time
from pathlib import Path
from s3mount.demo.server_process import ServerProcess

folder = Path(sys.argv[1])
kept = ServerProcess(
    ["sh", "-c", "echo $$; exec sleep 600"],
    environment=os.environ,
    log_path=folder.with_suffix(".log"),
    remove=[folder],
)
time.sleep(600)
"""


def until(what: str, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kept(folder: Path, *command: str, patience_s: float = 5.0) -> ServerProcess:
    return ServerProcess(
        command, environment=os.environ, log_path=folder / "log", patience_s=patience_s
    )


def own_pid(process: ServerProcess) -> int:
    until("the command tells its pid", process.log_tail)
    return int(process.log_tail())


def test_stop_ends_the_command(tmp_path: Path) -> None:
    process = kept(tmp_path, "sh", "-c", "echo $$; exec sleep 600")
    pid = own_pid(process)
    assert process.is_running()
    assert not ended(pid)
    process.stop()
    assert not process.is_running()
    assert ended(pid)
    process.stop()


def test_stop_ends_a_command_that_ignores_sigterm(tmp_path: Path) -> None:
    process = kept(tmp_path, "sh", "-c", STUBBORN, patience_s=0.2)
    pid = own_pid(process)
    start_s = time.monotonic()
    process.stop()
    assert ended(pid)
    assert 0.2 <= time.monotonic() - start_s < WAIT_S


def test_stop_ends_what_the_command_started(tmp_path: Path) -> None:
    process = kept(tmp_path, "sh", "-c", "sleep 600 & echo $!; wait")
    pid = own_pid(process)
    process.stop()
    until("the grandchild is gone", lambda: ended(pid))


def test_a_command_that_ends_by_itself_is_seen(tmp_path: Path) -> None:
    process = kept(tmp_path, "sh", "-c", "echo why; exit 3")
    until("it ended", lambda: not process.is_running())
    assert process.log_tail() == "why"
    process.stop()


def test_a_command_that_cannot_start_says_so(tmp_path: Path) -> None:
    process = kept(tmp_path, str(tmp_path / "nothing"))
    until("it ended", lambda: not process.is_running())
    assert "No such file or directory" in process.log_tail()
    process.stop()


@pytest.mark.parametrize("victim", ["asker", "keeper"])
def test_a_sigkill_above_takes_the_command_with_it(tmp_path: Path, victim: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file").touch()
    log_path = tmp_path / "data.log"
    asker = subprocess.Popen([sys.executable, "-c", ASKER, str(folder)])
    try:
        until("the command runs", lambda: log_path.exists() and log_path.read_text())
        pid = int(log_path.read_text())
        keeper = psutil.Process(pid).parent()
        assert keeper is not None
        (asker if victim == "asker" else keeper).kill()
        until("the command is gone", lambda: ended(pid))
        if victim == "asker":
            until("its folder is gone", lambda: not folder.exists())
            until("the keeper is gone", lambda: ended(keeper.pid))
    finally:
        asker.kill()
        asker.wait()

"""How commands find a mount's process: records that outlive nothing but their usefulness."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3mount.daemon import registry
from s3mount.daemon.registry import MountRecord
from s3mount.errors import LocalDiskError


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    monkeypatch.setenv(registry.RUN_DIR_VARIABLE, str(folder))
    return folder


def record_of(pid: int, mountpoint: str = "/mnt/x", **changes: object) -> MountRecord:
    values: dict[str, object] = {
        "mountpoint": mountpoint,
        "source": "data",
        "pid": pid,
        "started_ticks": registry.process_start_ticks(pid) or 0,
        "state_dir": "/state",
        "log_path": "",
        "version": "1",
    }
    return MountRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_the_run_folder_is_made_for_its_owner_alone(run_dir: Path) -> None:
    assert registry.writable_run_dir() == run_dir
    assert run_dir.stat().st_mode & 0o777 == 0o700


def test_a_run_folder_that_others_may_write_to_is_refused(run_dir: Path) -> None:
    run_dir.mkdir()
    run_dir.chmod(0o777)
    with pytest.raises(LocalDiskError, match="others own it or may write to it"):
        registry.writable_run_dir()
    registry.publish(run_dir, record_of(os.getpid()))
    assert registry.find("/mnt/x", os.geteuid()) is None


def test_a_record_is_found_until_it_is_taken_back(run_dir: Path) -> None:
    registry.writable_run_dir()
    mine = record_of(os.getpid())
    registry.publish(run_dir, mine)
    assert registry.find("/mnt/x", os.geteuid()) == (run_dir, mine)
    assert registry.find("/mnt/y", os.geteuid()) is None
    assert registry.find_all(os.geteuid()) == [(run_dir, mine)]
    assert mine.alive
    registry.withdraw(run_dir, mine)
    registry.withdraw(run_dir, mine)
    assert registry.find_all(os.geteuid()) == []


def test_another_process_record_is_not_taken_back(run_dir: Path) -> None:
    registry.writable_run_dir()
    mine, theirs = record_of(os.getpid()), record_of(os.getppid())
    registry.publish(run_dir, theirs)
    registry.withdraw(run_dir, mine)
    assert registry.find("/mnt/x", os.geteuid()) == (run_dir, theirs)


def test_a_record_does_not_outlive_its_process(run_dir: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = record_of(process.pid)
    before = record.alive
    process.communicate(b"\n")
    assert (before, record.alive) == (True, False)
    assert registry.process_start_ticks(process.pid) is None


def test_a_process_with_the_same_pid_is_another() -> None:
    assert not record_of(os.getpid(), started_ticks=1).alive


def test_a_damaged_record_is_no_record(run_dir: Path) -> None:
    registry.writable_run_dir()
    registry.publish(run_dir, record_of(os.getpid()))
    next(run_dir.glob("*.json")).write_text("{")
    assert registry.find("/mnt/x", os.geteuid()) is None
    assert registry.find_all(os.geteuid()) == []


def test_run_folders_do_not_depend_on_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.RUN_DIR_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    assert registry.run_dirs(0)[0] == Path("/run/s3mount")
    assert registry.run_dirs(1234) == [Path("/run/user/1234/s3mount"), Path("/tmp/s3mount-1234")]

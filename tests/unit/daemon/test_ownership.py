"""One process owns a state folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3mount.daemon.ownership import LOCK_NAME, StateLock, leftovers, read_owner
from s3mount.errors import LocalDiskError, StateInUseError


def test_the_second_owner_is_told_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    with StateLock(folder, "/mnt/x"):
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(StateInUseError) as raised:
            StateLock(folder, "/mnt/y")
    assert str(os.getpid()) in str(raised.value)
    # Nothing is mounted there (yet, or any more).
    assert "is about to mount it at /mnt/x, or whose mount is gone from there" in str(raised.value)
    StateLock(folder, "/mnt/y").close()


def test_the_note_tells_the_phase(tmp_path: Path) -> None:
    with StateLock(tmp_path, "/mnt/a/rather/long/path") as lock:
        lock.note("draining")
        owner = read_owner(tmp_path)
        assert owner is not None
        assert (owner.pid, owner.mountpoint, owner.phase) == (
            os.getpid(),
            "/mnt/a/rather/long/path",
            "draining",
        )
        with pytest.raises(StateInUseError, match="still sending what its last mount left"):
            StateLock(tmp_path, "/mnt/y")
    with StateLock(tmp_path, "/m"):
        owner = read_owner(tmp_path)
        assert owner is not None
        assert (owner.mountpoint, owner.phase) == ("/m", "serving")


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    hold = (
        "import pathlib, sys; from s3mount.daemon.ownership import StateLock;"
        "lock = StateLock(pathlib.Path(sys.argv[1]), '/mnt/x'); print('held', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(StateInUseError, match=str(process.pid)):
        StateLock(tmp_path, "/mnt/y")
    process.kill()
    process.communicate()
    StateLock(tmp_path, "/mnt/y").close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalDiskError, match=r"file/state cannot be used: Not a directory"):
        StateLock(tmp_path / "file" / "state", "/mnt/x")


def test_what_is_left_is_remembered(tmp_path: Path) -> None:
    for name, phase, left in (("a", "ended", 2), ("b", "ended", 0), ("c", "serving", 0)):
        with StateLock(tmp_path / name, f"/mnt/{name}", f"bucket-{name}") as lock:
            lock.note(phase, left, 10 * left)  # type: ignore[arg-type]
    (tmp_path / "d").mkdir()
    found = leftovers(tmp_path)
    assert [(folder.name, note.source, note.changes_left) for folder, note in found] == [
        ("a", "bucket-a", 2),
        ("c", "bucket-c", 0),
    ]
    assert leftovers(tmp_path / "none") == []


def test_a_damaged_note_is_no_note(tmp_path: Path) -> None:
    with StateLock(tmp_path, "/mnt/x"):
        (tmp_path / LOCK_NAME).write_text("?")
        assert read_owner(tmp_path) is None
        with pytest.raises(StateInUseError, match="in use by another process"):
            StateLock(tmp_path, "/mnt/y")


def test_who_never_began_leaves_the_note_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "ID"
    with StateLock(folder, "/mnt/x", "data") as lock:
        lock.restore_note()
    assert leftovers(folder.parent) == [], "no mount was killed here"
    with StateLock(folder, "/mnt/x", "data") as lock:
        lock.note("ended", 3, 30)
    with StateLock(folder, "/mnt/y", "data") as lock:
        lock.restore_note()
    [(_, note)] = leftovers(folder.parent)
    assert (note.phase, note.mountpoint, note.changes_left) == ("ended", "/mnt/x", 3)
    StateLock(folder, "/mnt/z", "data").close()
    with StateLock(folder, "/mnt/x", "data") as lock:
        lock.restore_note()
    [(_, note)] = leftovers(folder.parent)
    assert (note.phase, note.mountpoint) == ("serving", "/mnt/z"), "that one was killed"

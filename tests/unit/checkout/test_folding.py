"""On file systems that take several names for one file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mount.checkout.paths import Folding
from s3mount.checkout.target_folder import Target
from tests.unit.checkout.folders import World

IMAGE_MIB = 320
"""Sparse; the least that mkfs.xfs takes is 300."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk image")

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-O", "casefold", "-E", "encoding=utf8"],
    "xfs": ["mkfs.xfs", "-q", "-n", "version=ci"],
}


@pytest.fixture(params=MAKE)
def folded(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A target on a file system that ignores case."""
    make = MAKE[request.param]
    if shutil.which(make[0]) is None:
        pytest.skip(f"no {make[0]} here")
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    disk.mkdir()
    for command in ([*make, str(image)], ["mount", "-o", "loop", str(image), str(disk)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no {request.param} that folds case here: {done.stderr.strip()[:200]}")
    try:
        world.folder = disk / "target"
        world.folder.mkdir()
        if request.param == "ext4":
            subprocess.run(["chattr", "+F", world.folder], check=True)
        yield world
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_an_ordinary_file_system_is_found_to_tell_names_apart(world: World) -> None:
    with Target.open(world.folder) as target:
        found = target.folding()
        target.clear_up()
    assert (found.case, found.form) == (False, False)
    keys = ["A", "a", "é", "e\u0301"]
    summary = world.check_out([world.put(key, key.encode()) for key in keys])
    assert summary.is_complete
    assert world.files() == {key: key.encode() for key in keys}


def test_names_that_are_one_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by a stand-in for the trial, as not every machine has such a file system."""
    monkeypatch.setattr(Target, "folding", lambda self: Folding(case=True, form=True))
    wanted = [world.put(key, key.encode()) for key in ("A", "D/x", "a", "d/y", "z")]
    for right in (0, 3):
        summary = world.check_out(wanted)
        assert [failure.path for failure in summary.failures] == ["a", "d/y"]
        assert summary.right == right
    assert world.files() == {"A": b"A", "D/x": b"D/x", "z": b"z"}


@needs_root
def test_a_real_one(folded: World) -> None:
    wanted = [folded.put(key, key.encode()) for key in ("A", "D/x", "a", "d/y", "z")]
    for right in (0, 3):
        summary = folded.check_out(wanted)
        assert [failure.path for failure in summary.failures] == ["a", "d/y"]
        assert summary.right == right
    assert folded.files() == {"A": b"A", "D/x": b"D/x", "z": b"z"}

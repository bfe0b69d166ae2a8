"""More names than there is room for, on a real mount of a bucket that is only a rule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3mount import mountinfo
from tests.fuse.bucket_contents import wait_until

GROUPS, FOLDERS, FILES = 30, 10, 100
ROOM_BYTES = 200_000
DEADLINE_S = 60.0


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """Mounted, with room for about a tenth of the names."""
    place = tmp_path / "mnt"
    place.mkdir()
    shape = {"--groups": GROUPS, "--folders": FOLDERS, "--files": FILES}
    options = [str(word) for pair in shape.items() for word in pair]
    command = [sys.executable, "-m", "tests.fuse.generated_mount", str(place), str(tmp_path)]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [*command, *options, "--inode-bytes-max", str(ROOM_BYTES)], stderr=log
    )
    try:
        wait_until(
            lambda: mountinfo.topmost_at(str(place), mountinfo.read_mounts()) is not None, "mounted"
        )
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(place)], check=False, timeout=DEADLINE_S)
        try:
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            log.close()


def bash(script: str, place: Path) -> str:
    """What a script prints that begins in ``place``."""
    done = subprocess.run(
        ["bash", "-ec", script], cwd=place, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def listings(top: Path) -> dict[str, float]:
    """What the status tells of inodes."""
    command = [sys.executable, "-m", "s3mount", "status", "--json", str(top)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE_S)
    told: dict[str, float] = json.loads(done.stdout)["listings"]
    return told


def test_a_walk_finds_all_and_keeps_little(top: Path) -> None:
    for _ in range(2):
        assert len(bash("find .", top).splitlines()) == GROUPS * (FOLDERS * (FILES + 1) + 1) + 1
        told = listings(top)
        assert told["inode_bytes"] < 2 * ROOM_BYTES
        assert told["inodes_dropped"] > GROUPS * FOLDERS * FILES / 2


def test_a_shell_goes_on_in_a_folder_that_was_dropped(top: Path) -> None:
    """Its folder comes by number alone; what it says of itself stays the same."""
    script = f"""
        cd g0007/d00007; before=$(stat -c %i .)
        (cd /; find {top} > /dev/null)
        ls | wc -l; stat -c %s f000005.bin; [ "$(stat -c %i .)" = "$before" ]; ls -d ../d00008
    """
    assert bash(script, top).split() == [
        str(FILES),
        str(len("g0007/d00007/f000005.bin")),
        "../d00008",
    ]


def test_an_open_folder_and_a_path_outlast_a_walk(top: Path) -> None:
    descriptor = os.open(top / "g0003/d00003", os.O_RDONLY)
    try:
        inode = os.fstat(descriptor).st_ino
        bash("find .", top)
        assert os.fstat(descriptor).st_ino == inode
        assert len(os.listdir(descriptor)) == FILES
        assert os.stat("f000000.bin", dir_fd=descriptor).st_size == len("g0003/d00003/f000000.bin")
        assert (top / "g0003/d00003").stat().st_ino == inode
    finally:
        os.close(descriptor)

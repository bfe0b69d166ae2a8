"""The kernel's table of mounts, read as it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3mount import mountinfo

TABLE = r"""22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 0:40 / /mnt/x rw,nosuid,nodev - tmpfs none rw
41 40 0:41 / /mnt/x rw,nosuid,nodev shared:9 master:2 - fuse.s3mount s3://data/a\040b rw,user_id=1000,group_id=1000
42 27 0:42 / /mnt/with\040space ro - fuse.s3mount data ro,user_id=0
43 41 0:43 / /mnt/x/inner rw - tmpfs none rw
44 27 0:44 / /mnt/y rw - fuse.sshfs host: rw
a line that is not one
"""


@pytest.fixture
def mounts(tmp_path: Path) -> list[mountinfo.MountEntry]:
    path = tmp_path / "mountinfo"
    path.write_text(TABLE)
    return mountinfo.read_mounts(str(path))


def test_lines_are_taken_apart(mounts: list[mountinfo.MountEntry]) -> None:
    assert len(mounts) == 7
    found = mountinfo.topmost_at("/mnt/x", mounts)
    assert found is not None
    assert found.filesystem == "fuse.s3mount"
    assert found.source == "s3://data/a b"
    assert (found.major, found.minor, found.owner_uid) == (0, 41, 1000)
    assert found.options == ("rw", "nosuid", "nodev")
    assert mountinfo.sysfs_readahead(found) == Path("/sys/class/bdi/0:41/read_ahead_kb")
    assert mountinfo.sysfs_connection(found) == Path("/sys/fs/fuse/connections/41")


def test_a_space_is_a_space(mounts: list[mountinfo.MountEntry]) -> None:
    found = mountinfo.topmost_at("/mnt/with space", mounts)
    assert found is not None
    assert found.owner_uid == 0


@pytest.mark.parametrize(
    ("path", "mountpoint"),
    [
        ("/mnt/x", "/mnt/x"),
        ("/mnt/x/a/b", "/mnt/x"),
        ("/mnt/xy", None),
        ("/mnt", None),
        ("/mnt/x/inner/file", None),
        ("/mnt/y/file", None),
        ("/mnt/with space/file", "/mnt/with space"),
    ],
)
def test_the_mount_of_a_path(
    mounts: list[mountinfo.MountEntry], path: str, mountpoint: str | None
) -> None:
    found = mountinfo.mount_containing(path, mounts)
    assert (found.mountpoint if found is not None else None) == mountpoint


def test_a_path_is_made_absolute_without_its_last_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    assert mountinfo.absolute(str(tmp_path / "link" / "x")) == str(tmp_path / "real" / "x")
    assert mountinfo.absolute(str(tmp_path / "link")) == str(tmp_path / "link")
    assert mountinfo.absolute("/") == "/"


def test_a_folder_answers(tmp_path: Path) -> None:
    assert mountinfo.health(str(tmp_path)) == "answers"
    assert mountinfo.health(str(tmp_path / "none")) == "answers"

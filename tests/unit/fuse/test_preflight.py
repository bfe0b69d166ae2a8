"""What is looked at before a mount is tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3mount.config import MountConfig, StoreConfig
from s3mount.errors import LocalDiskError, MountError
from s3mount.fuse import preflight


@pytest.mark.parametrize(
    ("text", "permitted"),
    [
        ("", False),
        ("#user_allow_other\n", False),
        ("user_allow_other\n", True),
        ("mount_max = 5\n  user_allow_other  # for s3mount\n", True),
        ("user_allow_others\n", False),
    ],
)
def test_fuse_conf_is_read_as_fusermount_reads_it(
    tmp_path: Path, text: str, permitted: bool
) -> None:
    path = tmp_path / "fuse.conf"
    path.write_text(text)
    assert preflight.others_permitted(str(path)) is permitted


def test_no_fuse_conf_permits_nothing(tmp_path: Path) -> None:
    assert not preflight.others_permitted(str(tmp_path / "none"))


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="modprobe fuse"):
        preflight.check_device(str(tmp_path / "fuse"))


def test_a_mount_point_is_an_empty_folder(tmp_path: Path) -> None:
    preflight.check_mountpoint(str(tmp_path), nonempty=False)
    (tmp_path / "file").write_text("")
    preflight.check_mountpoint(str(tmp_path), nonempty=True)
    with pytest.raises(MountError, match="is not empty"):
        preflight.check_mountpoint(str(tmp_path), nonempty=False)
    with pytest.raises(MountError, match="is not a directory"):
        preflight.check_mountpoint(str(tmp_path / "file"), nonempty=True)
    with pytest.raises(MountError, match="does not exist"):
        preflight.check_mountpoint(str(tmp_path / "none"), nonempty=False)


@pytest.mark.parametrize(
    ("mountpoint", "state", "cache", "said"),
    [
        ("/m/x", "/m/x/state", "/c", "state folder /m/x/state lies below the mount point"),
        ("/m/x", "/s", "/m/x", "cache folder /m/x lies below the mount point"),
        ("/c/mnt", "/s", "/c", "mount point /c/mnt lies inside the cache folder"),
    ],
)
def test_folders_and_mount_lie_apart(mountpoint: str, state: str, cache: str, said: str) -> None:
    config = MountConfig(
        store=StoreConfig(bucket="data"), mountpoint=mountpoint, state_dir=state, cache_dir=cache
    )
    with pytest.raises(LocalDiskError, match=said):
        preflight.check_folders_apart(config)


def test_names_that_only_begin_alike_are_apart() -> None:
    preflight.check_folders_apart(
        MountConfig(
            store=StoreConfig(bucket="data"),
            mountpoint="/m/x",
            state_dir="/m/x-state",
            cache_dir="/m/x-cache",
        )
    )


def test_a_link_does_not_hide_where_a_folder_lies(tmp_path: Path) -> None:
    (tmp_path / "mnt/in").mkdir(parents=True)
    os.symlink(tmp_path / "mnt/in", tmp_path / "cache")
    config = MountConfig(
        store=StoreConfig(bucket="data"),
        mountpoint=str(tmp_path / "mnt"),
        state_dir="/s",
        cache_dir=str(tmp_path / "cache"),
    )
    with pytest.raises(LocalDiskError, match="lies below the mount point"):
        preflight.check_folders_apart(config)

"""What libfuse is told, and what its complaints become."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from s3mount.config import MountConfig, StoreConfig
from s3mount.fuse import session


def config(**settings: object) -> MountConfig:
    return MountConfig(store=StoreConfig(bucket="data"), mountpoint="/mnt/x", **settings)  # type: ignore[arg-type]


def test_a_bucket_is_not_trusted_with_set_ids_and_devices() -> None:
    options = session.mount_options(config(), "data")
    assert {"nosuid", "nodev", "default_permissions", "subtype=s3mount", "fsname=data"} == options
    trusted = session.mount_options(config(suid=True, dev=True), "data")
    assert {"suid", "dev"} <= trusted
    assert not {"nosuid", "nodev"} & trusted


def test_other_options() -> None:
    options = session.mount_options(config(read_only=True, allow_other=True), "data", ("noexec",))
    assert {"ro", "allow_other", "noexec"} <= options
    assert not any(option.startswith("max_read") for option in options)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("s3://data/a/b", "fsname=s3://data/a/b"),
        ("s3://data/a,b", "fsname=s3://data/a%2Cb"),
        ("s3://data/é x", "fsname=s3://data/%C3%A9%20x"),
        ("s3://data/a\\b", "fsname=s3://data/a%5Cb"),
    ],
)
def test_any_prefix_may_be_named(source: str, shown: str) -> None:
    assert shown in session.mount_options(config(), source)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "fuse: device not found, try 'modprobe fuse' first\n",
            "device not found, try 'modprobe fuse' first",
        ),
        (
            "fusermount3: mount failed: Operation not permitted\n",
            "mount failed: Operation not permitted",
        ),
        (
            "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n",
            "--allow-other needs a line 'user_allow_other' in /etc/fuse.conf (or root)",
        ),
    ],
)
def test_libfuses_complaint_becomes_one_line(said: str, told: str) -> None:
    assert session._why_not("/mnt/x", said) == f"cannot mount at /mnt/x: {told}"


def test_what_c_code_prints_is_caught_and_stderr_comes_back() -> None:
    script = (
        "import os; from s3mount.fuse.session import _captured_stderr\n"
        "with _captured_stderr() as said:\n"
        "    os.write(2, b'from below')\n"
        "    print(said())\n"
        "os.write(2, b'after')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, timeout=30
    )
    assert done.stdout == b"from below\n"
    assert done.stderr == b"after"
    assert len(os.listdir("/proc/self/fd")) > 0

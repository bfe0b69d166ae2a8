"""No test, however it ends, leaves a mount behind or waits for one for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import mounting
from tests.fuse.mounts import kill_engines
from tests.mounting import Mount, MountFailed, mounted_at
from tests.servers import S3Server

LIMIT_S = 30.0
NOWHERE = S3Server(
    name="nowhere", endpoint_url="http://127.0.0.1:1", access_key="key", secret_key="secret"
)

DEAF = """
import os, stat, sys
import pyfuse3, trio

class Deaf(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755
        return entry

    async def lookup(self, parent, name, ctx=None):
        await trio.sleep_forever()

pyfuse3.init(Deaf(), sys.argv[1], {"fsname=deaf"})
trio.run(pyfuse3.main)
"""
"""A file system that never answers a look-up."""

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from tests.unit.harness.test_mounts_end import DeafMount

mount = DeafMount(Path(sys.argv[1]))
mount.mount()
print(mount.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


class DeafMount(Mount):
    """A mount of ``DEAF`` in place of a bucket."""

    def __init__(self, folder: Path) -> None:
        super().__init__(NOWHERE, "bucket", folder)

    def _s3mount(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", DEAF, str(self.path)]


def until(what: str, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_killing_the_mounts_frees_who_waits_in_the_kernel(tmp_path: Path) -> None:
    mount = DeafMount(tmp_path)
    mount.mount()
    waiting = subprocess.Popen(["stat", str(mount.path / "name")], stderr=subprocess.DEVNULL)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        mounting.kill_all()
        assert waiting.wait(LIMIT_S) != 0
    finally:
        mount.close()
        waiting.kill()
        waiting.wait()
    assert not mounted_at(mount.path)


def test_a_killed_run_leaves_no_mount(tmp_path: Path) -> None:
    script = textwrap.dedent(KILLED_RUN)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == -9, done.stderr
    pid = int(done.stdout)
    until("its process is gone", lambda: gone(pid))
    until("its mount is gone", lambda: not mounted_at(tmp_path / "mnt"))


def test_a_mount_that_does_not_come_up_is_told_with_its_log(tmp_path: Path) -> None:
    class Broken(DeafMount):
        def _s3mount(self, *arguments: str) -> list[str]:
            return ["sh", "-c", "echo this is why; exit 3"]

    mount = Broken(tmp_path)
    with pytest.raises(MountFailed, match=r"(?s)ended with 3 instead.*this is why"):
        mount.mount()
    assert not mount.mounted
    with pytest.raises(MountFailed, match="is not mounted"):
        _ = mount.pid


def test_orphans_of_a_killed_mount_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fertile(DeafMount):
        def _s3mount(self, *arguments: str) -> list[str]:
            return ["sh", "-c", 'sleep 600 & exec "$@"', "sh", *super()._s3mount()]

    monkeypatch.setattr(mounting, "ORPHANS_TIMEOUT_S", 0.3)
    mount = Fertile(tmp_path)
    mount.mount()
    try:
        with pytest.raises(MountFailed, match="those that it started did not"):
            mount.kill9()
    finally:
        mount.close()
    assert not mount.mounted


def test_a_mount_that_died_by_itself_has_no_engines_to_kill(tmp_path: Path) -> None:
    mount = DeafMount(tmp_path)
    mount.mount()
    mount.kill_process()
    until("it is reaped", lambda: not mount.runs)
    assert kill_engines(mount) == 0
    mount.kill9()

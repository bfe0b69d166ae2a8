"""The demo does what it says, says so only when it is true, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from s3mount.demo import walkthrough
from s3mount.demo.mounted import make_bucket, s3_client
from s3mount.demo.server import DemoServer
from s3mount.errors import S3MountError
from tests.mounting import mount_points

START_S = 60.0
END_S = 90.0


def until(what: str, limit_s: float, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


class Demo:
    """``s3mount demo ARGUMENTS`` in a temporary folder of its own, by which its processes are known."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self._marks = (str(folder), *arguments)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "s3mount", "demo", *arguments],
            env=os.environ | {"TMPDIR": str(self.scratch), "S3MOUNT_RUN_DIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def processes(self) -> list[int]:
        """What runs on the demo's behalf, the keeper and the server and the mount among it."""
        found = []
        for process in psutil.process_iter():
            try:
                told = " ".join(process.cmdline()) + process.environ().get("TMPDIR", "")
            except psutil.Error:
                continue
            if str(self.scratch) in told and process.pid != os.getpid():
                found.append(process.pid)
        return found

    def nothing_left(self) -> bool:
        """No process, no mount, no file."""
        return (
            not self.processes()
            and not any(str(self.scratch.parent) in point for point in mount_points())
            and not list(self.scratch.iterdir())
        )

    def close(self) -> None:
        """End it, if a failed test has not."""
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait(END_S)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Demo]:
    """``s3mount demo FOLDER``, mounted."""
    mountpoint = tmp_path / "shown"
    demo = Demo(tmp_path, str(mountpoint))
    try:
        until("it is mounted", START_S, lambda: str(mountpoint) in mount_points())
        yield demo
    finally:
        demo.close()


def test_the_tour_proves_what_it_shows_and_cleans_up(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    try:
        told, _ = demo.process.communicate(timeout=100)
        assert demo.process.returncode == 0, told
        copied = re.search(r"^copy .*: (\d+) files", told, re.MULTILINE)
        proven = re.search(r"^proof +boto3 lists (\d+) objects", told, re.MULTILINE)
        assert copied is not None
        assert proven is not None
        # One file was removed and one created.
        assert int(proven[1]) == int(copied[1]) > 200
        assert 10 <= len(told.splitlines()) <= 16
        assert demo.nothing_left()
    finally:
        demo.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_served_bucket_ends_with_its_command(
    serving: Demo, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "shown" / "file").write_text("bytes")
    assert (tmp_path / "shown" / "file").read_text() == "bytes"
    serving.process.send_signal(number)
    told, _ = serving.process.communicate(timeout=END_S)
    assert serving.process.returncode == 0, told
    assert serving.nothing_left()
    assert not (tmp_path / "shown").exists()


def test_a_killed_demo_takes_everything_with_it(serving: Demo, tmp_path: Path) -> None:
    (tmp_path / "shown" / "file").write_text("bytes")
    assert len(serving.processes()) >= 5  # itself, two keepers, the server, the mount
    serving.process.kill()
    serving.process.wait()
    until("nothing is left", END_S, serving.nothing_left)


def test_a_mount_ended_elsewhere_ends_the_demo(serving: Demo, tmp_path: Path) -> None:
    until("it says so", START_S, lambda: "until Ctrl-C" in _line(serving))
    subprocess.run(["fusermount3", "-u", str(tmp_path / "shown")], check=True, timeout=END_S)
    told, _ = serving.process.communicate(timeout=END_S)
    assert serving.process.returncode == 0, told
    assert serving.nothing_left()


def test_a_mount_point_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    demo = Demo(tmp_path, str(tmp_path / "no" / "where"))
    try:
        told, _ = demo.process.communicate(timeout=START_S)
        assert demo.process.returncode == 1
        assert told.splitlines()[-1].startswith("s3mount: cannot make ")
        assert "Traceback" not in told
        assert demo.nothing_left()
    finally:
        demo.close()


def test_the_proof_fails_for_every_difference(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    with DemoServer() as server:
        make_bucket(server, "proof")
        client = s3_client(server)
        client.put_object(Bucket="proof", Key="tree/", Body=b"")
        client.put_object(Bucket="proof", Key="tree/one", Body=b"1")
        with pytest.raises(S3MountError, match="differ in 1 keys, tree/two the first"):
            walkthrough.prove(server, "proof", tmp_path, "tree/")
        client.put_object(Bucket="proof", Key="tree/two", Body=b"2")
        assert walkthrough.prove(server, "proof", tmp_path, "tree/") == 2
        client.put_object(Bucket="proof", Key="tree/one", Body=b"x")
        with pytest.raises(S3MountError, match="differ in 1 keys, tree/one the first"):
            walkthrough.prove(server, "proof", tmp_path, "tree/")
        client.put_object(Bucket="proof", Key="tree/one", Body=b"1")
        client.put_object(Bucket="proof", Key="tree/three", Body=b"3")
        with pytest.raises(S3MountError, match="differ in 1 keys, tree/three the first"):
            walkthrough.prove(server, "proof", tmp_path, "tree/")
        with pytest.raises(S3MountError, match="cannot be read through boto3"):
            walkthrough.prove(server, "elsewhere", tmp_path, "tree/")


def _line(demo: Demo) -> str:
    assert demo.process.stdout is not None
    return demo.process.stdout.readline()

"""The life of a mount's process: signals, unmounting from outside, what is pending, crashes.

The mount is real, its files are in memory (memory_mount), so that every stage can be held and
nothing depends on a server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from s3mount import mountinfo
from s3mount.cli import main
from s3mount.daemon.launch import NotReady, Ready, start_in_background
from tests.mounting import mounted_at
from tests.namespaces import in_mount_namespace

pytestmark = pytest.mark.needs_s3  # not for the plain folder


class LivingMount:
    """``tests.fuse.memory_mount`` as a process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "mnt"
        self.path.mkdir()
        self.state = folder / "state"
        self.output = folder / "output"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def arguments(self) -> list[str]:
        return [str(self.path), str(self.state)]

    def start(self, *options: str) -> LivingMount:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuse.memory_mount", *self.arguments, *options],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        until(lambda: "is mounted at" in self.said or self.process.poll() is not None)  # type: ignore[union-attr]
        assert mounted_at(self.path), self.said
        return self

    @property
    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self, timeout_s: float = 20.0) -> int:
        assert self.process is not None
        status = self.process.wait(timeout_s)
        self.process = None
        return status

    def write(self, name: str = "file", size: int = 1024) -> Path:
        path = self.path / name
        path.write_bytes(b"x" * size)
        return path

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if mounted_at(self.path):
            subprocess.run(["fusermount3", "-uz", str(self.path)], check=False, timeout=10)


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LivingMount]:
    monkeypatch.setenv("S3MOUNT_RUN_DIR", str(tmp_path / "run"))
    found = LivingMount(tmp_path)
    yield found
    found.close()


def test_unmount_waits_for_everything_and_for_the_process(
    mount: LivingMount, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.start("--send-s", "0.5")
    mount.write()
    began = time.monotonic()
    assert main(["unmount", str(mount.path)]) == 0
    assert time.monotonic() - began >= 0.4
    assert "everything is in S3" in capsys.readouterr().out
    assert not mounted_at(mount.path)
    assert mount.process is not None
    assert mount.process.poll() == 0


def test_unmount_says_what_s3_refuses_and_unmounts_all_the_same(
    mount: LivingMount, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.start("--refuse")
    mount.write()
    assert main(["unmount", str(mount.path)]) == 1
    said = capsys.readouterr().err
    assert "S3 refuses 1 of the pending changes" in said
    assert "not in S3 yet: 1 change (1.0 KiB)" in said
    assert f"kept in {mount.state}/state" in said
    assert not mounted_at(mount.path)
    assert mount.ended() == 1


def test_unmount_gives_up_sending_in_time(
    mount: LivingMount, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.start("--stuck")
    mount.write()
    assert main(["unmount", str(mount.path), "--timeout", "0.7"]) == 1
    said = capsys.readouterr().err
    assert "not everything was sent within 0.7 s" in said
    assert "not in S3 yet: 1 change" in said
    assert not mounted_at(mount.path)
    assert mount.ended() == 1


def test_unmount_names_who_uses_the_mount(
    mount: LivingMount, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.start()
    with subprocess.Popen(["sleep", "60"], cwd=mount.path) as user:
        assert main(["unmount", str(mount.path)]) == 1
        assert (
            f"is in use by sleep (pid {user.pid}); it is still mounted" in capsys.readouterr().err
        )
        user.kill()
    assert mount.write().read_bytes() == b"x" * 1024
    assert main(["unmount", str(mount.path)]) == 0


@pytest.fixture
def namespace() -> list[str]:
    """What runs a program in a mount namespace; skips before anything is mounted where none can be made."""
    return in_mount_namespace()


class Holder:
    """A process in a mount namespace of its own, as a container's, with a copy of a mount there."""

    def __init__(self, mount: LivingMount, namespace: Sequence[str], script: str = ":") -> None:
        self._process = subprocess.Popen(
            [*namespace, "sh", "-c", f"{script}; exec sleep 60"], cwd="/"
        )
        self.name = f"sleep (pid {self._process.pid}) at {mount.path}"
        entry = mountinfo.topmost_at(str(mount.path), mountinfo.read_mounts())
        assert entry is not None
        device = entry.major, entry.minor
        until(lambda: self.name in map(str, mountinfo.copies_of(*device)))

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def test_unmount_ends_what_a_container_holds_a_copy_of(
    mount: LivingMount, namespace: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mount.start("--send-s", "0.2")
    with Holder(mount, namespace, f"exec 3>{mount.path}/held; echo written >&3") as holder:
        mount.write()
        assert main(["unmount", str(mount.path), "--timeout", "10"]) == 0
        told = capsys.readouterr()
        assert "everything is in S3" in told.out
        assert told.err == (
            f"s3mount: copies of the mount were held by {holder.name}: cut off there\n"
        )
        assert mount.ended() == 0
        assert "may be missing" not in mount.said
        # What is mounted there next is left alone, and works.
        mount.output.unlink()
        mount.start()
        assert mount.write().read_bytes() == b"x" * 1024
        assert main(["unmount", str(mount.path)]) == 0


def test_a_mount_held_elsewhere_is_told_of_and_ended_by_unmount(
    mount: LivingMount, namespace: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.start()
    with Holder(mount, namespace):
        subprocess.run(["fusermount3", "-u", str(mount.path)], check=True, timeout=10)
        second = tmp_path / "second"
        second.mkdir()
        command = [sys.executable, "-m", "tests.fuse.memory_mount", str(second), str(mount.state)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert refused.returncode == 1
        assert f"s3mount unmount {mount.path} ends that" in refused.stderr
        assert main(["unmount", str(mount.path)]) == 0
        assert mount.ended() == 0


def test_a_signal_ends_what_a_container_holds_a_copy_of(
    mount: LivingMount, namespace: list[str]
) -> None:
    mount.start()
    with Holder(mount, namespace) as holder:
        mount.signal(signal.SIGTERM)
        assert mount.ended() == 0
        assert f"unmounted, but held by {holder.name}, which is cut off" in mount.said


def test_unmount_of_what_is_no_mount(
    mount: LivingMount, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unmount", str(tmp_path)]) == 1
    assert "is not a mounted bucket" in capsys.readouterr().err
    mount.start()
    assert main(["unmount", str(mount.path / "below")]) == 1
    assert "is inside the mount at" in capsys.readouterr().err
    assert mounted_at(mount.path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_unmounts_and_ends_with_0(mount: LivingMount, number: int) -> None:
    mount.start("--send-s", "0.5")
    mount.write()
    mount.signal(number)
    time.sleep(0.2)
    assert mount.write("meanwhile").read_bytes() == b"x" * 1024, "it is served while it drains"
    assert mount.ended() == 0
    assert not mounted_at(mount.path)


class Supervisor:
    """A socket as systemd's, on which a service of Type=notify tells how it fares."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self.lines: list[str] = []

    def heard(self, start: str) -> bool:
        """Has a line that begins so arrived by now?"""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.lines += self._socket.recv(4096).decode().splitlines()
        return any(line.startswith(start) for line in self.lines)

    def close(self) -> None:
        """Hear nothing more."""
        self._socket.close()


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """What a mount that is started now takes for systemd."""
    listening = Supervisor(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(listening.path))
    yield listening
    listening.close()


def test_systemd_is_told_how_it_fares(mount: LivingMount, supervisor: Supervisor) -> None:
    mount.start("--stuck", "--drain-s", "1")
    until(lambda: supervisor.heard("READY=1"))
    assert mount.process is not None
    assert supervisor.heard(f"MAINPID={mount.process.pid}")
    assert not supervisor.heard("STOPPING=1")
    mount.write()
    mount.signal(signal.SIGTERM)
    until(lambda: supervisor.heard("STOPPING=1"))
    assert mount.ended() == 1
    assert supervisor.heard("STATUS=sending what is left: 1 change (1.0 KiB)")
    assert supervisor.heard("EXTEND_TIMEOUT_USEC=30000000")
    assert supervisor.heard(f"STATUS=1 change (1.0 KiB) not in S3 yet, kept in {mount.state}")


def test_systemd_is_told_when_it_is_unmounted_from_outside(
    mount: LivingMount, supervisor: Supervisor
) -> None:
    mount.start("--send-s", "0.3")
    mount.write()
    subprocess.run(["fusermount3", "-u", str(mount.path)], check=True, timeout=10)
    assert mount.ended() == 0
    assert supervisor.heard("STOPPING=1")
    assert supervisor.heard("EXTEND_TIMEOUT_USEC=")
    assert supervisor.heard("STATUS=everything is in S3")


def test_a_signal_leaves_what_cannot_be_sent_in_time(mount: LivingMount) -> None:
    mount.start("--stuck", "--drain-s", "0.3")
    mount.write()
    mount.signal(signal.SIGTERM)
    assert mount.ended() == 1
    assert not mounted_at(mount.path)
    assert "1 change (1.0 KiB) not in S3 yet: kept in" in mount.said
    assert "Traceback" not in mount.said


def test_a_second_signal_ends_at_once(mount: LivingMount) -> None:
    mount.start("--stuck", "--drain-s", "600")
    mount.write()
    mount.signal(signal.SIGTERM)
    until(lambda: "once more ends at once" in mount.said)
    mount.signal(signal.SIGTERM)
    assert mount.ended() == 1
    assert not mounted_at(mount.path)


def test_a_signal_ends_a_mount_that_is_in_use(mount: LivingMount) -> None:
    mount.start()
    with subprocess.Popen(["sleep", "60"], cwd=mount.path) as user:
        mount.signal(signal.SIGTERM)
        assert mount.ended() == 0
        assert not mounted_at(mount.path)
        user.kill()


def test_what_an_open_file_holds_is_written_back_before_it_is_cut_off(mount: LivingMount) -> None:
    mount.start("--drain-s", "2")
    with (mount.path / "open").open("wb", buffering=0) as file:
        file.write(b"y" * 5000)
        mount.signal(signal.SIGTERM)
        assert mount.ended() == 0
        with contextlib.suppress(OSError):
            file.close()
    assert "still in use" in mount.said
    assert "last writes may be missing" not in mount.said


def test_unmounting_from_outside_drains_and_ends(mount: LivingMount) -> None:
    mount.start("--send-s", "0.5")
    mount.write()
    began = time.monotonic()
    subprocess.run(["fusermount3", "-u", str(mount.path)], check=True, timeout=10)
    assert mount.ended() == 0
    assert time.monotonic() - began >= 0.3
    assert "unmounted; everything is in S3" in mount.said


def test_a_draining_process_is_shown_and_can_be_waited_for(
    mount: LivingMount, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.start("--send-s", "3")
    mount.write()
    subprocess.run(["fusermount3", "-u", str(mount.path)], check=True, timeout=10)
    until(lambda: "sending 1 change" in mount.said)
    assert main(["status", str(mount.path)]) == 0
    assert f"{mount.path}: pretended (draining" in capsys.readouterr().out
    assert main(["unmount", str(mount.path)]) == 0
    assert mount.ended() == 0


def test_a_new_mount_takes_over_from_a_draining_process(mount: LivingMount, tmp_path: Path) -> None:
    mount.start("--stuck", "--drain-s", "60")
    mount.write()
    subprocess.run(["fusermount3", "-u", str(mount.path)], check=True, timeout=10)
    until(lambda: "sending 1 change" in mount.said)
    (tmp_path / "other").mkdir()
    second = LivingMount(tmp_path / "other")
    second.state = mount.state
    try:
        second.start()
        assert mount.ended() == 1
        assert "told to leave the rest" in mount.said
    finally:
        second.close()


def test_a_serving_process_keeps_its_state_to_itself(mount: LivingMount, tmp_path: Path) -> None:
    mount.start()
    assert mount.process is not None
    (tmp_path / "other").mkdir()
    second = LivingMount(tmp_path / "other")
    second.state = mount.state
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuse.memory_mount", *second.arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert (
        f"in use by process {mount.process.pid}, which has it mounted at {mount.path}"
        in done.stderr
    )
    assert not mounted_at(second.path)
    assert mount.write().exists()


def test_after_kill_9_status_and_unmount_tell_what_happened(
    mount: LivingMount, capsys: pytest.CaptureFixture[str]
) -> None:
    mount.start()
    mount.signal(signal.SIGKILL)
    mount.ended()
    assert main(["status"]) == 1
    assert f"{mount.path}: pretended (dead" in capsys.readouterr().out
    assert main(["status", str(mount.path)]) == 1
    assert "its process is gone" in capsys.readouterr().out
    assert main(["wait", str(mount.path)]) == 1
    assert "is gone; what was written and closed is kept in" in capsys.readouterr().err
    assert main(["unmount", str(mount.path)]) == 1
    assert f"kept in {mount.state}/state and sent at the next mount" in capsys.readouterr().err
    assert not mounted_at(mount.path)


def test_a_dead_mount_gives_way_to_a_new_one(mount: LivingMount) -> None:
    mount.start()
    mount.signal(signal.SIGKILL)
    mount.ended()
    assert mounted_at(mount.path)
    mount.output.unlink()
    mount.start()
    assert "whose process is gone; it was removed" in mount.said
    assert mount.write().exists()


def test_a_mount_that_breaks_down_does_not_look_empty(mount: LivingMount) -> None:
    mount.start("--breaks")
    path = mount.write()
    file = os.open(path, os.O_RDWR)
    with pytest.raises(OSError, match=r"abort|not connected"):
        os.fsync(file)
    with contextlib.suppress(OSError):
        os.close(file)
    assert mount.ended() == 1
    assert mounted_at(mount.path)
    assert mountinfo.health(str(mount.path)) == "dead"
    assert "internal error: RuntimeError: broken on purpose; details in" in mount.said


def test_sigusr1_writes_stacks_and_tasks_to_the_log(mount: LivingMount) -> None:
    mount.start()
    mount.signal(signal.SIGUSR1)
    until(lambda: "tasks of the loop" in mount.said)
    assert "Current thread" in mount.said
    assert "_serve_kernel" in mount.said
    assert mount.write().exists()


@pytest.mark.parametrize("option", ["--no-fast-loop", None])
def test_both_loops_serve_and_rest(mount: LivingMount, option: str | None) -> None:
    mount.start(*([option] if option else []))
    assert mount.process is not None
    for number in range(50):
        mount.write(f"file-{number}", 4096)
    listed = subprocess.run(["ls", str(mount.path)], capture_output=True, check=True, timeout=20)
    assert len(listed.stdout.split()) == 50
    process = psutil.Process(mount.process.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(2)
    # The file system of memory_mount looks at its files a hundred times a second.
    assert sum(process.cpu_times()[:2]) - before < 0.2
    assert main(["unmount", str(mount.path)]) == 0


def background(mount: LivingMount, *options: str, step_timeout_s: float = 30) -> Ready | NotReady:
    return start_in_background(
        [*mount.arguments, *options],
        command=[sys.executable, "-m", "tests.fuse.memory_mount"],
        step_timeout_s=step_timeout_s,
    )


def test_in_the_background_the_parent_returns_when_it_answers(
    mount: LivingMount, capsys: pytest.CaptureFixture[str]
) -> None:
    assert background(mount) == Ready(str(mount.path), f"pretended is mounted at {mount.path}")
    assert mount.write().exists()
    log = mount.state / "state" / "log"
    assert "is mounted at" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    assert main(["status", str(mount.path)]) == 0
    assert str(log) in capsys.readouterr().out
    assert main(["unmount", str(mount.path)]) == 0


def test_in_the_background_the_parent_returns_the_reason(mount: LivingMount) -> None:
    (mount.path / "in-the-way").write_text("")
    news = background(mount)
    assert isinstance(news, NotReady)
    assert news.exit_code == 1
    assert f"mount point {mount.path} is not empty" in news.message


def test_a_child_that_dies_without_a_word_is_reported(mount: LivingMount) -> None:
    news = start_in_background([], command=[sys.executable, "-c", "raise SystemExit('no memory')"])
    assert news == NotReady("the mount's process ended with status 1 while starting: no memory", 1)


def test_a_child_that_does_not_come_up_is_ended(mount: LivingMount) -> None:
    news = start_in_background(
        [],
        command=[sys.executable, "-c", "input(); import time; time.sleep(600)"],
        step_timeout_s=0.5,
    )
    assert isinstance(news, NotReady)

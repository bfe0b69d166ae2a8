"""A mount under test: the real command in a process of its own, on folders of its own.

Nothing here touches the mount from this process without a deadline: whether it is there is read
from the kernel's table, and whether it answers is asked by a child that can be killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from tests.servers import S3Server

READY_TIMEOUT_S = 30.0
ORPHANS_TIMEOUT_S = 10.0
POLL_S = 0.02
LOG_TAIL_BYTES = 16_384

SWEEPER = Path(__file__).with_name("sweeper.py")


class MountFailed(Exception):
    """The mount did not come up, did not go away, or a command on it failed; with its log."""


class _Running:
    """The mounts that are there, told to a sweeper that takes them away should this run be killed."""

    def __init__(self) -> None:
        self._mounts: dict[Mount, int] = {}
        self._lock = threading.Lock()
        self._sweeper: subprocess.Popen[str] | None = None

    def __iter__(self) -> Iterator[Mount]:
        return iter(list(self._mounts))

    def add(self, mount: Mount) -> None:
        """``mount`` has a process now."""
        with self._lock:
            self._mounts[mount] = mount.pid
            self._tell(f"+ {mount.pid} {quote(str(mount.path))}")

    def discard(self, mount: Mount) -> None:
        """``mount`` and its process are gone."""
        with self._lock:
            pid = self._mounts.pop(mount, None)
            if pid is not None:
                self._tell(f"- {pid}")

    def close(self) -> None:
        """End the sweeper, which takes away what is still there; repeatable."""
        with self._lock:
            sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            assert sweeper.stdin is not None
            sweeper.stdin.close()
            sweeper.wait()

    def _tell(self, line: str) -> None:
        if self._sweeper is None:
            self._sweeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SWEEPER)],
                stdin=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert self._sweeper.stdin is not None
        self._sweeper.stdin.write(line + "\n")
        self._sweeper.stdin.flush()


_running = _Running()


def kill_all() -> None:
    """Kill every mount process that still runs, which frees whoever waits for one in the kernel."""
    for mount in _running:
        mount.kill_process()


def close_all() -> None:
    """Take away what tests have left, such as one whose deadline came while it cleaned up."""
    try:
        for mount in _running:
            mount.close()
    finally:
        _running.close()


class Mount:
    """One mount of ``bucket`` (``bucket/prefix`` too) on ``server``.

    ``options`` are further command line options; they, ``environment`` and ``endpoint_url`` (of a
    relay in front of the server, say) may be changed between mounts. State and cache are kept over
    ``remount`` unless asked otherwise. ``module`` is run to mount it.
    """

    def __init__(
        self,
        server: S3Server,
        bucket: str,
        folder: Path,
        *,
        options: Sequence[str] = (),
        endpoint_url: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.server = server
        self.bucket = bucket
        self.options = list(options)
        self.endpoint_url = endpoint_url or server.endpoint_url
        self.module = "s3mount"
        self.path = folder / "mnt"
        self.log_path = folder / "mount.log"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.state_dir = self._fresh_dir("state")
        self.cache_dir = self._fresh_dir("cache")
        # Commands find mounts and their defaults here, and nothing of the person's own.
        places = {
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "xdg-state"),
            "XDG_CACHE_HOME": str(folder / "xdg-cache"),
            "S3MOUNT_RUN_DIR": str(self._fresh_dir("run")),
        }
        inherited = {
            name: value
            for name, value in server.environment().items()
            if not name.startswith("S3MOUNT_")
        }
        self.environment = inherited | places | (environment or {})
        self.path.mkdir()

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        if self._process is None:
            raise MountFailed(f"{self.path} is not mounted")
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Is its process there?"""
        return self._process is not None and self._process.poll() is None

    @property
    def mounted(self) -> bool:
        """Does the kernel list it?"""
        return mounted_at(self.path)

    @property
    def log(self) -> str:
        """The end of what all its processes have written, over remounts."""
        with contextlib.suppress(FileNotFoundError), self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")
        return ""

    def mount(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start it and return when it answers. Raises MountFailed."""
        if self._process is not None:
            raise MountFailed(f"{self.path} is mounted already")
        command = [
            *self._s3mount("mount", self.bucket, str(self.path), "--foreground"),
            *("--endpoint-url", self.endpoint_url, "--path-style"),
            *("--state-dir", str(self.state_dir), "--cache-dir", str(self.cache_dir)),
            *self.options,
        ]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        _running.add(self)
        try:
            self._until_it_answers(time.monotonic() + timeout_s)
        except BaseException:
            self.close()
            raise

    def wait(self, timeout_s: float = 60.0) -> None:
        """Return when everything is in S3 (``s3mount wait``). Raises MountFailed."""
        done = self.command("wait", str(self.path), "--timeout", str(timeout_s), limit_s=timeout_s)
        self._must_be_done(done)

    def unmount(self, timeout_s: float = 60.0) -> None:
        """``s3mount unmount``: everything is in S3, nothing is mounted, the process ended with 0.

        Raises MountFailed.
        """
        process = self._process
        if process is None:
            raise MountFailed(f"{self.path} is not mounted")
        done = self.command(
            "unmount", str(self.path), "--timeout", str(timeout_s), limit_s=timeout_s
        )
        self._must_be_done(done)
        if self.mounted:
            raise MountFailed(f"s3mount unmount returned 0, yet {self.path} is mounted")
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failed("unmounted, but its process does not end") from None
        self._none_left_behind(process.pid)
        self._process = None
        _running.discard(self)
        if status != 0:
            raise self._failed(f"unmounted, but its process ended with {status}")

    def remount(
        self,
        *,
        fresh_state: bool = False,
        fresh_cache: bool = False,
        timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        """Unmount if it is mounted, then mount again, with empty folders where asked for."""
        if self._process is not None:
            self.unmount()
        if fresh_state:
            self.state_dir = self._fresh_dir("state")
        if fresh_cache:
            self.cache_dir = self._fresh_dir("cache")
        self.mount(timeout_s)

    def kill9(self) -> None:
        """SIGKILL to the mount's process, and the dead mount taken away.

        Its engine is left to notice by itself; MountFailed when it does not.
        """
        self.kill_process()
        if self._process is not None:
            self._process.wait()
            self._none_left_behind(self._process.pid)
            self._process = None
        _running.discard(self)
        self._take_away()

    def kill_process(self) -> None:
        """SIGKILL to the mount's process; the dead mount stays in the table."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def command(self, *arguments: str, limit_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run ``s3mount ARGUMENTS`` as the person who mounted. Raises MountFailed when it hangs."""
        try:
            return subprocess.run(
                self._s3mount(*arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit_s + 10,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._failed(
                f"s3mount {' '.join(arguments)}: still runs after {limit_s + 10:.0f} s"
            ) from None

    def close(self) -> None:
        """Take everything away, whatever state it is in; nothing pending is waited for. Repeatable."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._take_away()
        _running.discard(self)

    def _s3mount(self, *arguments: str) -> list[str]:
        module = self.module if arguments[0] == "mount" else "s3mount"
        return [sys.executable, "-m", module, *arguments]

    def _fresh_dir(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder))

    def _until_it_answers(self, deadline: float) -> None:
        process = self._process
        assert process is not None
        while not self.mounted:
            if process.poll() is not None:
                raise self._failed(f"ended with {process.returncode} instead of mounting")
            if time.monotonic() > deadline:
                raise self._failed("not mounted in time")
            time.sleep(POLL_S)
        try:
            subprocess.run(
                ["stat", "--format=%i", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=max(1.0, deadline - time.monotonic()),
                check=True,
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            raise self._failed(f"mounted, but does not answer: {error}") from None

    def _none_left_behind(self, group: int) -> None:
        """The processes that the ended ``group`` leader started end too. Raises MountFailed."""
        deadline = time.monotonic() + ORPHANS_TIMEOUT_S
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(POLL_S)
            raise self._failed("its process ended, those that it started did not")

    def _take_away(self) -> None:
        """Remove the mount from the table: politely, then lazily. Raises MountFailed when it stays."""
        for how in ("-u", "-uz"):
            if not self.mounted:
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    ["fusermount3", how, str(self.path)],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=10,
                    check=False,
                )
        if self.mounted:
            raise self._failed("fusermount3 -uz does not take it away")

    def _must_be_done(self, done: subprocess.CompletedProcess[str]) -> None:
        if done.returncode != 0:
            told = (done.stderr + done.stdout).strip()
            raise self._failed(f"{' '.join(done.args[2:])}: status {done.returncode}: {told}")

    def _failed(self, what: str) -> MountFailed:
        return MountFailed(f"{self.bucket} on {self.path}: {what}\n--- {self.log_path}\n{self.log}")


def mounted_at(path: Path) -> bool:
    """Is something mounted at ``path``? Read from the kernel's table, so it cannot hang."""
    return str(path) in mount_points()


def mount_points() -> Iterator[str]:
    """Every mount point of this process's mount namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            escaped = line.split(" ")[4]
            yield re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)

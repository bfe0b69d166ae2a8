"""The real daemon as a process on folders of its own, and ``s3mount send`` to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.servers import S3Server

READY_TIMEOUT_S = 30.0
COMMAND_TIMEOUT_S = 60.0


class Daemon:
    """``start`` and ``kill`` as often as wanted; ``log`` is all that it ever said."""

    def __init__(self, server: S3Server, bucket: str, folder: Path, *options: str) -> None:
        self.server = server
        self.bucket = bucket
        self.folder = folder
        self.socket = folder / "run" / "daemon.sock"
        self.client = server.boto3_client()
        self._options = options
        self._log_path = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "run").mkdir(mode=0o700)

    @property
    def log(self) -> str:
        """What it said so far."""
        return self._log_path.read_text() if self._log_path.exists() else ""

    def environment(self) -> dict[str, str]:
        """With a home and a run folder of its own."""
        return self.server.environment() | {
            "XDG_CACHE_HOME": str(self.folder / ".cache"),
            "XDG_STATE_HOME": str(self.folder / ".state"),
            "S3MOUNT_RUN_DIR": str(self.folder / "run"),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }

    def start(
        self,
        *more: str,
        endpoint_url: str = "",
        environment: dict[str, str] | None = None,
        may_die: bool = False,
    ) -> None:
        """Start it, and wait until it takes files, or is dead where it ``may_die``."""
        where = ["--endpoint-url", endpoint_url or self.server.endpoint_url, "--path-style"]
        with self._log_path.open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "s3mount", "daemon", *where, *self._options, *more],
                env=self.environment() | (environment or {}),
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
            )
        wait_until(lambda: self._listens(may_die=may_die), READY_TIMEOUT_S)

    def _listens(self, *, may_die: bool) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            assert may_die, self.log
            return True
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self.socket))
                return bool(probe.recv(1000))
            except OSError:
                return False

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise

    @property
    def pid(self) -> int:
        """Of the running daemon."""
        assert self._process is not None
        return self._process.pid

    def argv(self, *words: str) -> list[str]:
        """A command of s3mount; ``{b}`` is ``s3://`` and the bucket."""
        given = [word.replace("{b}", f"s3://{self.bucket}") for word in words]
        return [sys.executable, "-m", "s3mount", *given]

    def run(
        self,
        *words: str,
        status: int = 0,
        stdin: bytes = b"",
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[bytes]:
        """A command to its end, which must be ``status``."""
        done = subprocess.run(
            self.argv(*words),
            env=self.environment(),
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert done.returncode == status, f"{done.stderr.decode()}\n{self.log}"
        return done

    def body(self, key: str) -> bytes:
        """What S3 has under ``key``."""
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def keys(self) -> list[str]:
        """What the bucket holds, beside what is just being tried of it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        return [key for key in keys if not key.startswith(".s3mount/")]

    def versions(self) -> list[str]:
        """The key of every version and delete marker."""
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket)
        return [
            each["Key"]
            for page in pages
            for kind in ("Versions", "DeleteMarkers")
            for each in page.get(kind, ())
        ]


def wait_until(is_so: Callable[[], bool], within_s: float = 20.0) -> None:
    """Return when ``is_so()``; fails after ``within_s``."""
    ends = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < ends, f"not within {within_s:g} s"
        time.sleep(0.02)

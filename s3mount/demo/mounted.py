"""A bucket of the embedded server, mounted by the command that people use."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from s3mount import mountinfo
from s3mount.demo.server import DemoServer
from s3mount.demo.server_process import ServerProcess
from s3mount.errors import MountError, S3MountError

MOUNT_TIMEOUT_S = 30.0
END_TIMEOUT_S = 20.0
DRAIN_TIMEOUT_S = 5.0
"""What is left after this is thrown away with the server anyway."""
POLL_S = 0.02


def s3_client(server: DemoServer) -> Any:
    """A boto3 client of ``server``: another tool's view of the bucket."""
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=server.region,
        config=Config(s3={"addressing_style": "path"}),
    )


def make_bucket(server: DemoServer, bucket: str) -> None:
    """Make ``bucket``. Raises S3MountError."""
    try:
        s3_client(server).create_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        raise S3MountError(f"cannot make the bucket {bucket}: {error}") from error


class DemoMount:
    """``bucket`` at ``mountpoint`` while the ``with`` block lasts, its state and cache in ``folder``.

    ``folder`` is removed with it. The mount's process also ends when this process is killed. Entering
    blocks until the mount answers; S3MountError says why it does not. A mount point that does not
    exist is made, and removed in the end. Leaving unmounts, if that has not been done, and waits
    little for what is still to be sent.
    """

    def __init__(self, server: DemoServer, bucket: str, mountpoint: Path, folder: Path) -> None:
        self.server = server
        self.bucket = bucket
        self.mountpoint = Path(mountinfo.absolute(str(mountpoint)))
        self.log_path = folder / "mount.log"
        self._folder = folder
        self._process: ServerProcess | None = None
        self._made_mountpoint = False

    @property
    def arguments(self) -> list[str]:
        """What a person would type after ``s3mount``, the folders for state and cache left out."""
        return [
            *(self.bucket, str(self.mountpoint)),
            *("--endpoint-url", self.server.endpoint_url, "--path-style"),
        ]

    def __enter__(self) -> Self:
        """Mount it."""
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unmount it."""
        self.close()

    def is_mounted(self) -> bool:
        """Does the kernel list it, and is its process there?"""
        return (
            self._process is not None and self._process.is_running() and self._entry() is not None
        )

    def command(self, name: str, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run ``s3mount NAME MOUNTPOINT ARGUMENTS``; what it printed. Raises S3MountError."""
        return run(
            [sys.executable, "-m", "s3mount", name, str(self.mountpoint), *arguments],
            environment=self._environment(),
            timeout_s=timeout_s,
        )

    def close(self) -> None:
        """Unmount and end the process, whatever state they are in; repeatable.

        Raises MountError when the mount cannot be taken away.
        """
        if self._process is not None:
            self._process.stop()  # SIGTERM first: a mount that is told to end unmounts itself
            self._process = None
        if self._entry() is not None:
            run(["fusermount3", "-uz", str(self.mountpoint)], timeout_s=END_TIMEOUT_S)
        if self._made_mountpoint:
            with contextlib.suppress(OSError):  # somebody has put something there meanwhile
                self.mountpoint.rmdir()
            self._made_mountpoint = False

    def _start(self) -> None:
        if not os.path.lexists(self.mountpoint):
            try:
                self.mountpoint.mkdir()
            except OSError as error:
                raise MountError(f"cannot make {self.mountpoint}: {error.strerror}") from error
            self._made_mountpoint = True
        if self._entry() is not None:
            raise MountError(f"something is mounted at {self.mountpoint} already")
        self._process = ServerProcess(
            [
                *(sys.executable, "-m", "s3mount", "mount", *self.arguments, "--foreground"),
                *("--state-dir", str(self._folder / "state")),
                *("--cache-dir", str(self._folder / "cache")),
                *("--drain-timeout", f"{DRAIN_TIMEOUT_S}s"),
            ],
            environment=self._environment(),
            log_path=self.log_path,
            remove=[self._folder],
            patience_s=END_TIMEOUT_S,
        )
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while self._entry() is None:
            if not self._process.is_running():
                raise MountError(_last_line(self._process.log_tail()))
            if time.monotonic() > deadline:
                raise MountError(f"{self.mountpoint} is not mounted after {MOUNT_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)
        if mountinfo.health(str(self.mountpoint)) != "answers":
            raise MountError(f"{self.mountpoint} is mounted, but does not answer")

    def _entry(self) -> mountinfo.MountEntry | None:
        return mountinfo.topmost_at(str(self.mountpoint), mountinfo.read_mounts())

    def _environment(self) -> dict[str, str]:
        """This process's environment without the person's own buckets and settings."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "S3MOUNT_")) or name == "S3MOUNT_RUN_DIR"
        }
        no_files = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        return inherited | self.server.environment() | no_files


def run(
    command: Sequence[str], *, environment: dict[str, str] | None = None, timeout_s: float = 120.0
) -> str:
    """Run a command to its end, deaf to the terminal's Ctrl-C; its output.

    Raises S3MountError with its last words when it fails or takes longer than ``timeout_s``.
    """
    name = " ".join(command[2:4]) if command[:2] == [sys.executable, "-m"] else command[0]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise S3MountError(f"{name} has not ended after {timeout_s:.0f} s") from None
    except OSError as error:
        raise S3MountError(f"cannot run {name}: {error.strerror}") from error
    if done.returncode != 0:
        told = _last_line(done.stderr) or _last_line(done.stdout)
        raise S3MountError(f"{name} ended with {done.returncode}: {told}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip().removeprefix("s3mount: ") if lines else "it did not say why"

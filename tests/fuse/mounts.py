"""Mounts that are asked often: waiting without a command's start; status and processes of a mount."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from s3mount.daemon import protocol
from s3mount.daemon.client import ControlClient
from s3mount.daemon.registry import RUN_DIR_VARIABLE, MountRecord
from tests.mounting import Mount, MountFailed
from tests.servers import S3Server


class QuickMount(Mount):
    """A mount whose ``wait`` speaks to its control socket, in milliseconds.

    The command ``s3mount wait`` takes half a second to start, and most tests wait more than once.
    """

    def __init__(self, server: S3Server, bucket: str, folder: Path, options: Sequence[str]) -> None:
        self._run_dir = folder / "control"
        self._run_dir.mkdir(mode=0o700)
        environment = {RUN_DIR_VARIABLE: str(self._run_dir)}
        super().__init__(server, bucket, folder, options=options, environment=environment)

    def connect(self) -> ControlClient:
        """A connection to the mount's process."""
        record = MountRecord(
            mountpoint=str(self.path),
            source=self.bucket,
            pid=self.pid,
            started_ticks=0,
            state_dir=str(self.state_dir),
            log_path=str(self.log_path),
            version="",
        )
        return ControlClient(self._run_dir, record)

    def wait(self, timeout_s: float = 60.0) -> None:
        """Return when everything is in S3. Raises MountError or Refused."""
        end = time.monotonic() + timeout_s
        with self.connect() as control:
            control.send(protocol.Wait())
            for answer in control.answers(timeout_s):
                if isinstance(answer, protocol.Done):
                    return
                if isinstance(answer, protocol.Failed) or time.monotonic() > end:
                    break
        told = f"not all is in S3: {answer}; {status_of(self)}"
        raise MountFailed(f"{told}\n--- {self.log_path}\n{self.log}")


def status_of(mount: Mount) -> dict[str, Any]:
    """``s3mount status MOUNTPOINT --json``."""
    done = mount.command("status", str(mount.path), "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def pending_of(mount: Mount) -> dict[str, Any]:
    """What the status tells of changes that S3 does not have."""
    pending: dict[str, Any] = status_of(mount)["pending"]
    return pending


def parked_in(mount: Mount) -> list[dict[str, Any]]:
    """The changes that S3 refused and that wait for a person or their next try."""
    return [change for change in pending_of(mount)["list"] if change["state"] == "parked"]


def status_of_file(mount: Mount, name: str) -> dict[str, Any]:
    """``s3mount status PATH --json`` of one file in the mount."""
    done = mount.command("status", str(mount.path / name), "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def counter(mount: Mount, name: str) -> float:
    """One of the status's numbers, wherever it stands; 0 when it was never counted."""

    def find(value: object) -> float | None:
        if not isinstance(value, dict):
            return None
        if isinstance(value.get(name), int | float):
            return float(value[name])
        return next((found for part in value.values() if (found := find(part)) is not None), None)

    return find(status_of(mount)) or 0.0


def engines_of(mount: Mount) -> list[psutil.Process]:
    """The processes that the mount's process has started and that run; none when it is gone itself."""
    engines = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(mount.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    engines.append(child)
    return engines


def kill_engines(mount: Mount) -> int:
    """SIGKILL to them; how many there were."""
    killed = 0
    for engine in engines_of(mount):
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine.pid, 9)
            killed += 1
    return killed

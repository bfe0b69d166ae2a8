"""What tests ask of one running mount beside its files: its status, its processes."""

from __future__ import annotations

import json
import os
from typing import Any

import psutil

from tests.mounting import Mount


def status_of(mount: Mount) -> dict[str, Any]:
    """``s3mount status MOUNTPOINT --json``."""
    done = mount.command("status", str(mount.path), "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def status_of_file(mount: Mount, name: str) -> dict[str, Any]:
    """``s3mount status PATH --json`` of one file in the mount."""
    done = mount.command("status", str(mount.path / name), "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def counter(mount: Mount, name: str) -> float:
    """One of the status's counters, wherever it stands among them; 0 when it was never counted."""

    def find(value: object) -> float | None:
        if not isinstance(value, dict):
            return None
        if isinstance(value.get(name), int | float):
            return float(value[name])
        return next((found for part in value.values() if (found := find(part)) is not None), None)

    return find(status_of(mount)["counters"]) or 0.0


def engines_of(mount: Mount) -> list[psutil.Process]:
    """The processes that the mount's process has started and that run."""
    return [
        child
        for child in psutil.Process(mount.pid).children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    ]


def kill_engines(mount: Mount) -> int:
    """SIGKILL to them; how many there were."""
    engines = engines_of(mount)
    for engine in engines:
        os.kill(engine.pid, 9)
    return len(engines)

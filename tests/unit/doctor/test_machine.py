"""What the doctor finds on a machine, where the whole command cannot be given such a machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from s3mount.doctor import machine
from s3mount.doctor.findings import Finding
from s3mount.doctor.machine import look_at_machine


def found(tmp_path: Path, **more: str) -> dict[str, Finding]:
    return {each.check: each for each in look_at_machine(None, tmp_path, tmp_path, **more)}


def test_no_fuse(tmp_path: Path) -> None:
    device = found(tmp_path, device=str(tmp_path / "fuse"))["fuse device"]
    assert device.level == "fault"
    assert "modprobe fuse" in device.advice


def test_no_helper_for_who_is_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert found(tmp_path)["fusermount3"].level == "fault"
    (tmp_path / "fusermount3").write_text("#!/bin/sh\n")
    (tmp_path / "fusermount3").chmod(0o755)
    assert "setuid" in found(tmp_path)["fusermount3"].found


def test_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_free_bytes", lambda folder: 1 << 20)
    disk = found(tmp_path)["state disk"]
    assert (disk.level, "--state-dir" in disk.advice) == ("warning", True)
    assert os.listdir(tmp_path) == []


def test_a_state_folder_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_filesystem_of", lambda folder: "tmpfs")
    checks = found(tmp_path)
    assert (checks["state disk"].level, checks["cache disk"].level) == ("warning", "ok")


def test_an_old_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "4.4.0-21-generic")
    assert found(tmp_path)["kernel"].level == "fault"

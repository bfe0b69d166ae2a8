"""The units of systemd, as far as systemd is here to judge them; and what they pass."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from s3mount.daemon import systemd

UNITS = Path(__file__).parents[3] / "contrib" / "systemd"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_daemons_units() -> None:
    names = [UNITS / "s3mount-daemon.socket", UNITS / "s3mount-daemon.service"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        capture_output=True,
        timeout=60,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if "s3mount-daemon" in line]
    assert not said


def test_passed_sockets_are_those_of_this_process_and_are_asked_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(systemd, "FIRST_PASSED_FD", theirs.fileno())
        monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
        monkeypatch.setenv("LISTEN_FDS", "1")
        assert systemd.passed_sockets() == []
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        passed = systemd.passed_sockets()
        assert [each.fileno() for each in passed] == [theirs.fileno()]
        assert systemd.passed_sockets() == []
        for each in passed:
            each.detach()

"""The progress of commands over many objects, on a terminal and off it."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
from s3mount.bulk.report import Counts
from s3mount.cli.objects.bulk_progress import Shown

shown = Shown(is_quiet=False)
counts = Counts(objects=2, expected=5, bytes=3 << 20, expected_bytes=6 << 20)
if shown._is_live:
    shown._show(counts)
    counts.is_known = True
    shown._show(counts)
shown.write("rm [bold]s3://b/k")
shown.complain("rm s3://b/x: no")
shown.clear()
"""


def told(*, on_terminal: bool) -> str:
    """What the program writes on standard error."""
    reading, writing = os.openpty() if on_terminal else os.pipe()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=writing,
        env=environment,
        timeout=60,
    )
    os.close(writing)
    assert done.returncode == 0
    assert done.stdout == b"rm [bold]s3://b/k\n"
    said = b""
    while True:
        try:
            piece = os.read(reading, 65536)
        except OSError:  # a terminal that nobody writes to any more
            break
        if not piece:
            break
        said += piece
    os.close(reading)
    return said.decode()


def test_a_terminal_shows_how_far_it_is_and_the_total_once_it_is_known() -> None:
    said = told(on_terminal=True)
    assert "2 of 5" in said
    assert "3.0 MiB" in said
    assert "50%" in said
    assert "s3mount: rm s3://b/x: no" in said


def test_without_a_terminal_only_what_failed_is_said() -> None:
    assert told(on_terminal=False) == "s3mount: rm s3://b/x: no\n"

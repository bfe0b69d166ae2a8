"""Named steps: all are in the code, each name once in the list; the variable kills at the right pass."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s3mount import crashpoints
from s3mount.errors import UsageError

PACKAGE = Path(crashpoints.__file__).parent


def test_the_list_names_exactly_the_steps_of_the_code() -> None:
    named = [
        name
        for path in PACKAGE.rglob("*.py")
        if path.name != "crashpoints.py"
        for name in re.findall(r'\bcrashpoint\("([^"]*)"\)', path.read_text())
    ]
    assert set(named) == set(crashpoints.STEPS)
    assert len(set(crashpoints.STEPS)) == len(crashpoints.STEPS)


def test_a_listener_hears_every_step_while_it_listens() -> None:
    heard: list[str] = []
    crashpoints.crashpoint("blob: created")
    with crashpoints.listening(heard.append):
        crashpoints.crashpoint("blob: written")
        with crashpoints.listening(lambda name: None):
            crashpoints.crashpoint("blob: cloned")
        crashpoints.crashpoint("blob: removed")
    crashpoints.crashpoint("blob: created")
    assert heard == ["blob: written", "blob: removed"]


def passes_until_killed(wanted: str) -> tuple[int, str, str]:
    """Exit status, what a process said that passes two steps four times each, and its stderr."""
    code = (
        "from s3mount import crashpoints\n"
        "crashpoints.arm()\n"
        "for turn in range(4):\n"
        "    for name in ('blob: written', 'part: sent'):\n"
        "        print(turn, name, flush=True)\n"
        "        crashpoints.crashpoint(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={crashpoints.VARIABLE: wanted, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize(
    ("wanted", "last"),
    [("part: sent", "0 part: sent"), ("part: sent:3", "2 part: sent")],
)
def test_a_process_kills_itself_at_the_pass_that_the_variable_says(wanted: str, last: str) -> None:
    status, said, told = passes_until_killed(wanted)
    assert (status, said) == (-signal.SIGKILL, last)
    assert "'part: sent'" in told


@pytest.mark.parametrize("wanted", ["", "part: sent:5"])
def test_it_lives_where_nothing_is_asked_or_the_pass_never_comes(wanted: str) -> None:
    assert passes_until_killed(wanted)[:2] == (0, "3 part: sent")


@pytest.mark.parametrize("wanted", ["nonsense", "part: sent:x", ":1"])
def test_an_unknown_step_is_refused(wanted: str) -> None:
    with pytest.raises(UsageError, match="no step"):
        crashpoints.arm({crashpoints.VARIABLE: wanted})

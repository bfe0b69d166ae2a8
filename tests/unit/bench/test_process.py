"""Commands with deadlines and the accounting of process trees, on real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.process import StepFailed, TreeUsage, run, tree

MIB = 1 << 20
BURN = "import time\nend = time.process_time() + {s}\nwhile time.process_time() < end: pass"


def test_a_command_tells_its_output_time_and_cost() -> None:
    done = run(
        [sys.executable, "-c", f"{BURN.format(s=0.3)}\nprint(input())"],
        timeout_s=60,
        stdin=b"hello\n",
    )
    assert done.stdout == "hello\n"
    assert 0.3 <= done.cpu_s < 3
    assert done.seconds >= 0.3


def test_peak_memory_is_the_command_s_own() -> None:
    code = "import time\nkept = bytes(64 << 20)\nkept = kept.replace(b'\\0', b'x')\ntime.sleep(0.4)"
    large = run([sys.executable, "-c", code], timeout_s=60)
    small = run(["sleep", "0.3"], timeout_s=60)
    assert large.peak_rss_bytes > 64 * MIB
    assert 0 < small.peak_rss_bytes < 16 * MIB


def test_a_failing_command_says_why() -> None:
    with pytest.raises(StepFailed, match=r"exit 3: .*went wrong"):
        run(["sh", "-c", "echo went wrong >&2; exit 3"], timeout_s=60)
    with pytest.raises(StepFailed, match="No such file"):
        run(["/nonexistent/command"], timeout_s=60)


def test_a_command_past_its_deadline_is_killed_with_its_children() -> None:
    start_s = time.monotonic()
    with pytest.raises(StepFailed, match=r"deadline of 0\.3 s"):
        run(["sh", "-c", "sleep 60 & sleep 60; true"], timeout_s=0.3)
    assert time.monotonic() - start_s < 30


@contextmanager
def family(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell whose child runs ``code`` when a line comes in, and lives on until stdin ends."""
    script = f"import sys\nsys.stdin.readline()\n{code}\nprint(1, flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        ["sh", "-c", f'{sys.executable} -c "$0"; true', script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        yield parent
        assert parent.stdin is not None
        parent.stdin.close()


def go(parent: subprocess.Popen[bytes]) -> None:
    """Let the child do its work and wait until it has."""
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(b"\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == b"1\n"


def test_a_tree_s_cpu_and_memory_count_children_from_the_start_on() -> None:
    code = f"{BURN.format(s=0.4)}\nkept = bytes(48 << 20).replace(b'\\0', b'x')\ndel kept"
    with family(code) as parent:
        while len(tree(parent.pid)) < 2:
            time.sleep(0.01)
        used = TreeUsage(parent.pid)
        go(parent)
        cpu_s, peak_bytes = used.read()
        later_cpu_s, later_peak_bytes = TreeUsage(parent.pid).read()
    assert 0.35 <= cpu_s < 4
    assert peak_bytes > 48 * MIB
    assert later_cpu_s < 0.2
    assert later_peak_bytes < peak_bytes - 40 * MIB


def test_peak_memory_of_what_a_wrapper_starts() -> None:
    inner = "import time; kept = bytearray(80 << 20); time.sleep(0.5)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    done = run([sys.executable, "-c", outer], timeout_s=60)
    assert done.peak_rss_bytes > 80 << 20

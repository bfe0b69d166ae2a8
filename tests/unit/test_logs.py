"""Where a process writes, and what becomes of its last error. In processes of their own, since
logging belongs to a whole process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3mount import logs
from s3mount.errors import AccessDeniedError, MountError, UsageError


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )


def test_a_log_turns_and_takes_stray_output_and_dumps_along(tmp_path: Path) -> None:
    script = """
import logging, os, signal, sys
from pathlib import Path
from s3mount import logs
logs.LOG_BYTES_MAX = 2000
logs.to_file(Path(sys.argv[1]), "info")
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
logs.dump_stacks_on_sigusr1()
log = logging.getLogger("test")
for number in range(60):
    log.info("line %d %s", number, "x" * 40)
log.debug("not asked for")
os.write(2, b"from C code\\n")
print("printed", flush=True)
os.kill(os.getpid(), signal.SIGUSR1)
"""
    path = tmp_path / "deep" / "log"
    done = run(script, str(path))
    assert (done.stdout, done.stderr) == ("", "")
    text = path.read_text()
    assert "line 59" in text
    assert "from C code" in text
    assert "printed" in text
    assert "Current thread" in text
    assert "not asked for" not in text
    kept = sorted(path.parent.iterdir())
    assert 1 < len(kept) <= logs.LOG_FILES_KEPT + 1
    assert all(each.stat().st_mode & 0o777 == 0o600 for each in kept)


def test_what_is_no_ordinary_file_is_neither_rotated_nor_changed(tmp_path: Path) -> None:
    script = """
import logging, sys
from pathlib import Path
from s3mount import logs
logs.LOG_BYTES_MAX = 200
logs.to_file(Path(sys.argv[1]), "info")
for number in range(20):
    logging.getLogger("test").info("line %d %s", number, "x" * 40)
"""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o644)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        run(script, str(pipe))
        assert b"line 19" in os.read(reading, 1 << 16)
    finally:
        os.close(reading)
    assert pipe.is_fifo()
    assert pipe.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [pipe]


def test_errors_in_one_line() -> None:
    assert logs.explain(MountError("two\nlines"), None) == ("two lines", 1)
    assert logs.explain(UsageError("wrong"), None) == ("wrong", 2)
    group = ExceptionGroup(
        "outer", [ZeroDivisionError(), ExceptionGroup("inner", [AccessDeniedError("no", key="k")])]
    )
    assert logs.explain(group, None) == ("no", 1)


def test_an_unexpected_error_without_a_place_for_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert logs.explain(ZeroDivisionError("oh"), None) == (
        "internal error: ZeroDivisionError: oh",
        1,
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the proxy socks5://me:s3cret@proxy:1 is", "the proxy socks5://***@proxy:1 is"),
        ("at http://me:pa/ss@word@proxy:3128/x", "at http://***@proxy:3128/x"),
        ('"https://token@proxy"', '"https://***@proxy"'),
        ("s3://bucket/a@b and http://host:80/c@d", "s3://bucket/a@b and http://host:80/c@d"),
    ],
)
def test_passwords_of_urls_are_not_told(text: str, shown: str, tmp_path: Path) -> None:
    assert logs.without_secrets(text) == shown
    assert logs.explain(MountError(text), None) == (shown, 1)
    record = logging.LogRecord("name", logging.INFO, "", 0, "%s", (text,), None)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logs.to_terminal("info")
        assert root.handlers[0].format(record).endswith(f"name: {shown}")
    finally:
        root.handlers[:] = before
        root.setLevel(level)

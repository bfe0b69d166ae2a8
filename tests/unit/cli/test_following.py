"""``s3mount logs --follow``, over the rotation of a log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLLOW = """
import sys
from pathlib import Path
from s3mount.cli.mounts.following import _show_log
_show_log(Path(sys.argv[1]), 2, True)
"""


@pytest.mark.timeout(30)
def test_a_log_is_followed_into_the_file_that_takes_its_place(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\nthree\nhal")
    with subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(log)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        try:
            assert follower.stdout is not None
            assert [follower.stdout.readline() for _ in range(2)] == ["three\n", "hal\n"]
            with log.open("a") as file:
                file.write("four\n")
            assert follower.stdout.readline() == "four\n"
            log.rename(tmp_path / "log.1")
            log.write_text("five\n")
            assert follower.stdout.readline() == "five\n"
        finally:
            follower.kill()

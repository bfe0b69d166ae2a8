"""``s3mount completion``: the scripts, and what is completed without S3."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from s3mount.cli import main
from s3mount.cli.completing import SHELLS


def completed(*words: str, environment: Mapping[str, str] = {}) -> list[str]:
    """What a shell is told for a command line that is being typed; the last word is not finished."""
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "s3mount"],
        env={**os.environ, **asked, "_S3MOUNT_COMPLETE": "bash_complete", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_can_read_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "s3mount" in script
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_commands_options_and_names_are_completed(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[mounts.work]\nbucket = 'b'\nmountpoint = '/x'\n")
    assert completed("s3mount", "unm") == ["unmount"]
    assert "--upload-delay" not in completed("s3mount", "mount", "--upl")
    assert completed("s3mount", "mount", "--uploa") == ["--uploads"]
    told = completed("s3mount", "unmount", "@", environment={"S3MOUNT_CONFIG": str(config)})
    assert told == ["@work"]
    assert completed("s3mount", "ls", "s3:") == ["s3://"]


def test_s3_that_does_not_answer_completes_nothing() -> None:
    nobody = {"S3MOUNT_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a"}
    assert completed("s3mount", "ls", "s3://b/", environment=nobody) == []
    wrong = {"S3MOUNT_CONFIG": "/nowhere/config.toml"}
    assert completed("s3mount", "ls", "s3://b/", environment=wrong) == []

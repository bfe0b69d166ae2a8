from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3mount.cli.commands import main


def test_a_key_is_made_once_and_for_its_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "key"
    before = os.umask(0o777)
    try:
        assert main(["generate-sse-key", str(made)]) == 0
    finally:
        os.umask(before)
    assert made.stat().st_mode & 0o777 == 0o600
    key = made.read_bytes()
    assert len(key) == 32
    assert main(["generate-sse-key", str(made)]) == 11
    assert "is never replaced" in capsys.readouterr().err
    assert made.read_bytes() == key
    assert main(["generate-sse-key", str(tmp_path / "none" / "key")]) == 6

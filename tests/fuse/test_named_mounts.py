"""``s3mount @NAME``: a mount that the configuration file describes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import S3Server

pytestmark = pytest.mark.needs_s3
TIMEOUT_S = 60.0


def test_a_named_mount(bucket: str, s3_server: S3Server, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "config.toml").write_text(
        f"""
        [defaults]
        endpoint-url = "{s3_server.endpoint_url}"
        path-style = true
        [mounts.work]
        bucket = "s3://{bucket}/below"
        mountpoint = "{place}"
        state-dir = "{tmp_path / "state"}"
        cache-dir = "{tmp_path / "cache"}"
        """
    )
    environment = s3_server.environment() | {"S3MOUNT_CONFIG": str(tmp_path / "config.toml")}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "s3mount", *words]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("@work")
    try:
        (place / "file").write_bytes(b"by name")
        run("wait", "@work")
        assert "everything is in S3" in run("status", "@work")
        assert run("cat", f"s3://{bucket}/below/file") == "by name"
    finally:
        run("umount", "@work")
    assert list(place.iterdir()) == []

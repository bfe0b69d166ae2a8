from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.daemons import Daemon
from tests.servers import S3Server


def _ended(daemon: Daemon) -> Iterator[Daemon]:
    try:
        yield daemon
    finally:
        daemon.kill()
    assert "Traceback (most recent call last)" not in daemon.log, daemon.log


@pytest.fixture
def daemon(s3_server: S3Server, bucket: str, tmp_path: Path) -> Iterator[Daemon]:
    yield from _ended(Daemon(s3_server, bucket, tmp_path))


@pytest.fixture
def versioned_daemon(
    s3_server: S3Server, versioned_bucket: str, tmp_path: Path
) -> Iterator[Daemon]:
    yield from _ended(Daemon(s3_server, versioned_bucket, tmp_path))

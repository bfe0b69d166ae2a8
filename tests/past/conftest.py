"""A bucket with a history of its own, and a home for commands, for each test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.past.history import Commands, History
from tests.servers import S3Server

SEED = int(os.environ.get("S3MOUNT_TEST_PAST_SEED", "1"))


@pytest.fixture
def history(s3_server: S3Server, versioned_bucket: str) -> History:
    return History(s3_server, versioned_bucket, SEED)


@pytest.fixture
def commands(s3_server: S3Server, tmp_path: Path) -> Commands:
    return Commands(s3_server, tmp_path)

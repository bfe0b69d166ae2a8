"""A bucket with a history of its own, and a home for commands, for each test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.past.history import Commands, History
from tests.servers import S3Server


def seeds() -> list[int]:
    """Those of S3MOUNT_TEST_PAST_SEED, one or FIRST-LAST."""
    first, _, last = os.environ.get("S3MOUNT_TEST_PAST_SEED", "1").partition("-")
    return list(range(int(first), int(last or first) + 1))


@pytest.fixture(params=seeds())
def history(s3_server: S3Server, versioned_bucket: str, request: pytest.FixtureRequest) -> History:
    return History(s3_server, versioned_bucket, request.param)


@pytest.fixture
def commands(s3_server: S3Server, tmp_path: Path) -> Commands:
    return Commands(s3_server, tmp_path)

"""A bucket that keeps versions and a place to check it out into, for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkout.command import Checkout
from tests.servers import S3Server


@pytest.fixture
def checkout(s3_server: S3Server, versioned_bucket: str, tmp_path: Path) -> Checkout:
    return Checkout(s3_server, versioned_bucket, tmp_path)

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bulk.places import Places
from tests.servers import S3Server


@pytest.fixture
def places(s3_server: S3Server, bucket: str, tmp_path: Path) -> Places:
    return Places(s3_server, bucket, tmp_path)


@pytest.fixture
def versioned(s3_server: S3Server, versioned_bucket: str, tmp_path: Path) -> Places:
    return Places(s3_server, versioned_bucket, tmp_path)

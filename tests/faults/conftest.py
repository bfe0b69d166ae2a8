"""Fixtures of the tests with faults: a relay on which bad things happen, and a mount behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fuse.bucket_contents import S3Contents
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.faulty import FaultyRelay

Behind = tuple[Mount, S3Contents]


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[FaultyRelay]:
    """A relay in front of the server."""
    with FaultyRelay(s3_server.endpoint_url) as running:
        yield running


@pytest.fixture
def behind(
    bucket: str, relay: FaultyRelay, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> Behind:
    """A mount that reaches the server through the relay, and the bucket without it."""
    mount = mount_factory(bucket, "--part-size", "5M", endpoint_url=relay.url)
    return mount, S3Contents(s3_server.boto3_client(), bucket)

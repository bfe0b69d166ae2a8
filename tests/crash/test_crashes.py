"""SIGKILL at every named step and at random times, on a real mount with a real server.

S3MOUNT_CRASH_KILLS says how many kills there are in all (12 by default; ``make test-crash`` asks for
300). A run that long fails if a named step was never hit.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from s3mount import crashpoints
from tests.crash.campaign import Campaign
from tests.crash.load import PART_BYTES
from tests.fuse.bucket_contents import S3Contents
from tests.mounting import Mount
from tests.servers import S3Server

KILLS = int(os.environ.get("S3MOUNT_CRASH_KILLS", "12"))
SERVERS = 2
WHOLE_RUN_KILLS = 300
"""From so many on every step must have been hit."""
KILL_S = 12.0
STEPS = [step for step in crashpoints.STEPS if not step.startswith(("step: ", "discard: "))]
"""The load has no folder that is large enough for a step of its own, and gives nothing up: the simulation does."""

pytestmark = pytest.mark.timeout(120 + 2 * KILL_S * KILLS)


@pytest.fixture
def contents(s3_server: S3Server, bucket: str) -> S3Contents:
    """The bucket without the mount."""
    return S3Contents(s3_server.boto3_client(), bucket)


def test_nothing_acknowledged_is_lost_by_kills(
    mount_factory: Callable[..., Mount], bucket: str, contents: S3Contents
) -> None:
    options = ("--part-size", str(PART_BYTES), "--metadata-ttl", "0.2")
    mount = mount_factory(bucket, *options, mounted=False)
    campaign = Campaign(mount, contents, seed=KILLS)
    try:
        campaign.run(KILLS // SERVERS, STEPS, must_hit=KILLS >= WHOLE_RUN_KILLS)
    finally:
        for where, number in sorted(campaign.kills.items()):
            print(f"{number:4} kills at {where}")
    assert any(where in STEPS for where in campaign.kills)
    if KILLS >= WHOLE_RUN_KILLS:
        assert set(STEPS) <= set(campaign.kills)

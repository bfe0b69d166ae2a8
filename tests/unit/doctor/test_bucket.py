"""What the doctor finds in a bucket that answers as told."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from s3mount import tasks
from s3mount.config import StoreConfig
from s3mount.doctor.bucket import look_at_bucket
from s3mount.doctor.findings import Finding
from s3mount.refs import BucketInfo
from s3mount.testing.memory_store import MemoryStore

HOUR_S = 3600


class Skewed(MemoryStore):
    """Its clock is ``behind_s`` behind this machine's."""

    behind_s = 0.0

    async def check_bucket(self, prefix: str = "") -> BucketInfo:
        bucket = await super().check_bucket(prefix)
        return msgspec.structs.replace(bucket, date_ns=int((time.time() - self.behind_s) * 1e9))


@pytest.mark.parametrize(("behind_s", "level"), [(0, "ok"), (-120, "warning"), (HOUR_S, "fault")])
def test_the_clock(behind_s: float, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-nobody")
    store = Skewed()
    store.behind_s = behind_s

    @asynccontextmanager
    async def open_store(_: StoreConfig) -> AsyncIterator[MemoryStore]:
        yield store

    told: list[Finding] = []
    config = StoreConfig(bucket="b", endpoint_url="http://127.0.0.1:9", region="us-east-1")

    async def main() -> None:
        await look_at_bucket(config, "", open_store, told.append, may_write=True)

    tasks.run(main)
    by_check = {each.check: each for each in told}
    assert by_check["clock"].level == level
    assert by_check["credentials"].found == "AKID*******, from env"
    assert by_check["right to delete"].level == "ok"

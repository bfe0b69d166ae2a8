"""The real engine process against real servers, and against settings that cannot work."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio

from s3mount.config import StoreConfig, TimeoutSettings
from s3mount.engine.client import EngineClient
from s3mount.engine.process import EngineProcess, default_command
from s3mount.errors import (
    NetworkError,
    NoCredentialsError,
    NoSuchBucketError,
    S3MountError,
    UsageError,
)
from s3mount.refs import Condition, ObjectHeaders
from s3mount.s3.client import S3Store
from s3mount.transfer.download import download_file
from s3mount.transfer.fetching import Fetching, Wanted
from s3mount.transfer.upload import upload_file
from tests.servers import S3Server
from tests.unit.engine.exercise import exercise

pytestmark = pytest.mark.each_server

PART = 5 << 20


class Engines:
    """Starts real engines and remembers them."""

    def __init__(self) -> None:
        self.started: list[EngineProcess] = []

    def spawn(self) -> EngineProcess:
        self.started.append(EngineProcess(default_command()))
        return self.started[-1]

    def kill(self) -> None:
        os.kill(self.started[-1].pid, signal.SIGKILL)


@pytest.fixture
def config(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> StoreConfig:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return StoreConfig(bucket=bucket, endpoint_url=s3_server.endpoint_url, path_style=True)


def test_files_go_and_come_whole_while_the_engine_is_killed_again_and_again(
    config: StoreConfig, s3_server: S3Server, tmp_path: Path
) -> None:
    """Small conditional puts and large files in parts at once; boto3 looks at the outcome."""
    engines = Engines()
    headers = ObjectHeaders(metadata={"mtime": "1.5"})
    small = {f"small/{n}": random.Random(n).randbytes(100 + n) for n in range(200)}
    large = {f"large/{n}": random.Random(n).randbytes(3 * PART + n) for n in range(3)}
    work = 0

    async def put(client: EngineClient, key: str) -> None:
        nonlocal work
        result = await client.put(key, small[key], headers, condition=Condition(if_absent=True))
        assert result.etag == hashlib.md5(small[key]).hexdigest()
        work += 1

    async def copy(client: EngineClient, key: str, slots: trio.CapacityLimiter) -> None:
        nonlocal work
        path = tmp_path / key.replace("/", "-")
        path.write_bytes(large[key])
        size = len(large[key])
        result = await upload_file(
            client, str(path), size, key, headers, part_bytes=PART, slots=slots
        )
        work += 50
        wanted = Wanted(key, result.etag, size, result.version_id)
        back = path.with_suffix(".back")
        fetching = Fetching(lambda n: None, slots=slots)
        await download_file(fetching, client, wanted, str(back), range_bytes=PART)
        assert back.read_bytes() == large[key]
        work += 50

    async def main() -> None:
        async with EngineClient(config, spawn=engines.spawn) as client:
            await client.check_bucket()
            slots = trio.CapacityLimiter(6)
            async with trio.open_nursery() as nursery:
                for key in large:
                    nursery.start_soon(copy, client, key, slots)
                for key in small:
                    nursery.start_soon(put, client, key)
                for goal in (40, 150, 300):
                    while work < goal:  # noqa: ASYNC110 - the work is the clock
                        await trio.sleep(0.002)
                    engines.kill()
            assert client.restarts == 3
            assert await client.list_uploads("") == [] or s3_server.name == "ceph"

    trio.run(main)
    eyes = s3_server.boto3_client()
    for key, data in (small | large).items():
        answer = eyes.get_object(Bucket=config.bucket, Key=key)
        assert answer["Body"].read() == data
        assert answer["Metadata"] == {"mtime": "1.5"}


def test_every_call_gives_what_the_store_itself_gives(
    config: StoreConfig, s3_server: S3Server, tmp_path: Path
) -> None:
    other = s3_server.make_bucket()

    async def main() -> None:
        async with S3Store(config) as store:
            direct = await exercise(store, tmp_path)
        async with EngineClient(msgspec.structs.replace(config, bucket=other)) as client:
            assert await exercise(client, tmp_path) == direct

    try:
        trio.run(main)
    finally:
        s3_server.remove_bucket(other)


CANNOT_WORK: list[tuple[Callable[[str], StoreConfig], dict[str, str], type[S3MountError]]] = [
    (
        lambda url: StoreConfig(bucket="b", endpoint_url=url, path_style=True),
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        NoCredentialsError,
    ),
    (lambda url: StoreConfig(bucket="b", profile="no-such", endpoint_url=url), {}, UsageError),
    (lambda url: StoreConfig(bucket="b", endpoint_url="no url at all"), {}, UsageError),
    (
        lambda url: StoreConfig(
            bucket="b",
            endpoint_url="http://127.0.0.1:9",
            path_style=True,
            timeouts=TimeoutSettings(tries=2),
        ),
        {},
        NetworkError,
    ),
    (
        lambda url: StoreConfig(bucket="no-such-bucket-here", endpoint_url=url, path_style=True),
        {},
        NoSuchBucketError,
    ),
]


@pytest.mark.parametrize(("settings", "environment", "error"), CANNOT_WORK)
def test_settings_that_cannot_work_are_one_clear_line_and_no_traceback(
    localstack: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: Callable[[str], StoreConfig],
    environment: dict[str, str],
    error: type[S3MountError],
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (localstack.environment() | environment).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    config = settings(localstack.endpoint_url)

    async def main() -> None:
        async with EngineClient(config) as client:
            with pytest.raises(error) as caught:
                await client.check_bucket()
            assert "\n" not in str(caught.value)
            assert "Traceback" not in str(caught.value)
            with pytest.raises(error):
                await client.list_page("")
            assert client.restarts == 0

    trio.run(main)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []

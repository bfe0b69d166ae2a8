"""PackWriter on real servers: tasks and threads put members, and read them where they were told to lie."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

import s3mount
from s3mount.errors import NoSuchBucketError, PackFullError, StoreError, UsageError
from s3mount.pack.writer import UNDER_WAY_MAX
from tests.servers import S3Server


@pytest.fixture(autouse=True)
def surroundings(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials, and a state folder of the test's own."""
    for variable, value in s3_server.environment().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def settings(s3_server: S3Server) -> dict[str, Any]:
    """How the server is asked."""
    return {"endpoint_url": s3_server.endpoint_url, "path_style": True}


def range_get(client: Any, placed: Any) -> bytes:
    span = f"bytes={placed.body}-{placed.body + placed.size - 1}"
    answer = client.get_object(Bucket=placed.bucket, Key=placed.key, Range=span)
    data: bytes = answer["Body"].read()
    return data


def test_tasks_put_and_know_where_it_will_lie(
    s3_server: S3Server, bucket: str, settings: dict[str, Any]
) -> None:
    client = s3_server.boto3_client()

    async def main() -> None:
        placed: dict[str, Any] = {}
        async with s3mount.open(f"s3://{bucket}/data", **settings) as opened:
            async with s3mount.PackWriter(opened, "logs", files=50) as packs:

                async def one(task: int) -> None:
                    for number in range(30):
                        name = f"{task}/{number}"
                        placed[name] = await packs.put(name, name.encode() * 50)

                async with trio.open_nursery() as nursery:
                    for task in range(5):
                        nursery.start_soon(one, task)
                with pytest.raises(UsageError):
                    await packs.put("", b"no name")
                first = placed["0/0"]
                assert first.key.startswith("data/logs/")
                stored = await first.batch.wait()
                assert (stored.key, stored.files) == (first.key, 50)
            # Closed, and durable.
            assert all(each.batch.is_stored for each in placed.values())
            for name, each in placed.items():
                if name.endswith("/7"):
                    assert range_get(client, each) == name.encode() * 50
            assert len([item async for item in opened.list("logs/")]) == 6
            # Not in a block of its own: the bucket's end closes it.
            late = await s3mount.PackWriter(opened).put("late", b"!")
            assert not late.batch.is_stored
        assert range_get(client, late) == b"!"

    async def bounded() -> None:
        with trio.fail_after(100):
            await main()

    trio.run(bounded)


def test_threads_put_into_the_windows_of_the_past(
    s3_server: S3Server, bucket: str, settings: dict[str, Any]
) -> None:
    client = s3_server.boto3_client()
    found: list[Any] = []
    with (
        s3mount.open_sync(f"s3://{bucket}", **settings) as opened,
        s3mount.BlockingPackWriter(opened, "w/", seconds=2, windows=True, layout="v7") as packs,
    ):

        def put(thread: int) -> None:
            for number in range(10):
                before_ms, name = time.time_ns() // 1_000_000, f"{thread}-{number}"
                placed = packs.put(name, name.encode())
                after_ms = time.time_ns() // 1_000_000
                window_ms = int(placed.key.removeprefix("w/").removesuffix(".tar"))
                assert window_ms % 2000 == 0
                assert before_ms - 2000 < window_ms <= after_ms
                assert placed.body == placed.header + 512
                found.append(placed)

        threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 40
        assert found[0].batch.wait().key == found[0].key
        packs.delete("0-0")
        packs.flush()
        for placed in found:
            assert range_get(client, placed) == placed.name.encode()


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_a_bucket_that_is_not_there_is_told_by_every_way(
    s3_server: S3Server, settings: dict[str, Any]
) -> None:
    async def main() -> None:
        async with s3mount.open("s3://no-such-bucket-of-anybody", **settings) as opened:
            packs = s3mount.PackWriter(opened, files=1)
            for number in range(UNDER_WAY_MAX):
                placed = packs.try_put(f"{number}", b"x")
            with pytest.raises((PackFullError, StoreError)):
                packs.try_put("more", b"x")
            with pytest.raises(NoSuchBucketError):
                await placed.batch.wait()
            with pytest.raises(NoSuchBucketError):
                await packs.close()

    async def bounded() -> None:
        with trio.fail_after(60):
            await main()

    # What was never sent is told at the end, too.
    with pytest.raises(NoSuchBucketError):
        trio.run(bounded)

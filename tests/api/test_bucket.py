"""The Python API on real servers: up, down, across, listed, deleted, and what a program is told when it fails."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import s3mount
from s3mount.bulk.report import Outcome
from s3mount.errors import (
    LocationError,
    NoCredentialsError,
    NoSuchBucketError,
    NoSuchKeyError,
    PreconditionFailedError,
    UsageError,
)
from s3mount.refs import Condition
from s3mount.s3.http.perf_log import RequestRecord
from tests.servers import S3Server

MIB = 1 << 20


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


@pytest.fixture
def in_bucket(
    bucket: str, settings: dict[str, Any]
) -> Callable[[Callable[[s3mount.Bucket], Awaitable[None]]], None]:
    """Run a coroutine function on the bucket's prefix ``p/``."""

    def run(body: Callable[[s3mount.Bucket], Awaitable[None]]) -> None:
        async def main() -> None:
            with trio.fail_after(120):
                async with s3mount.open(f"s3://{bucket}/p", **settings) as opened:
                    await body(opened)

        trio.run(main)

    return run


InBucket = Callable[[Callable[[s3mount.Bucket], Awaitable[None]]], None]


async def chunks(*given: bytes) -> AsyncIterator[bytes]:
    for each in given:
        await trio.lowlevel.checkpoint()
        yield each


def test_files_folders_bytes_and_streams_go_up_and_come_back(
    in_bucket: InBucket, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a.txt").write_bytes(b"a")
    (tree / "sub" / "b").write_bytes(os.urandom(3 * MIB))
    (tmp_path / "single.csv").write_bytes(b"1,2\n")
    large = os.urandom(13 * MIB + 5)
    told: list[Outcome] = []

    async def progress(outcome: Outcome) -> None:
        await trio.lowlevel.checkpoint()
        told.append(outcome)

    async def body(bucket: s3mount.Bucket) -> None:
        own = s3mount.ObjectHeaders(content_type="text/x-own", metadata={"who": "me"})
        summary = await bucket.upload(
            [
                tree,
                tmp_path / "single.csv",
                s3mount.Upload(b"in memory", "data/memory", own),
                s3mount.Upload(chunks(large[:7], b"", large[7:]), "data/stream"),
                s3mount.Upload(chunks(), "data/empty"),
                s3mount.Upload(str(tmp_path / "single.csv"), "other.csv"),
            ],
            headers=s3mount.ObjectHeaders(cache_control="no-cache"),
            progress=progress,
        )
        assert (summary.objects, summary.failed) == (7, 0)
        assert summary.bytes == 1 + 3 * MIB + 4 + 9 + len(large) + 4
        assert len(told) == 7
        assert all(outcome.success for outcome in told)
        keys = [item.key async for item in bucket.list()]
        names = "data/empty data/memory data/stream other.csv single.csv tree/a.txt tree/sub/b"
        assert keys == [f"p/{name}" for name in names.split()]
        assert await bucket.get("data/stream") == large
        assert await bucket.get("data/empty") == b""
        headers = (await bucket.head("data/memory")).headers
        assert headers is not None
        assert (headers.content_type, headers.cache_control) == ("text/x-own", "no-cache")
        assert headers.metadata["who"] == "me"
        headers = (await bucket.head("tree/a.txt")).headers
        assert headers is not None
        assert headers.content_type == "text/plain"
        got = tmp_path / "got"
        await bucket.download(["tree/", "single.csv"], got)
        assert (got / "a.txt").read_bytes() == b"a"
        assert (got / "sub" / "b").read_bytes() == (tree / "sub" / "b").read_bytes()
        assert (got / "single.csv").read_bytes() == b"1,2\n"
        await bucket.list("tree/").download(tmp_path / "again")
        assert (tmp_path / "again" / "sub" / "b").exists()

    in_bucket(body)


def test_objects_are_copied_moved_and_deleted_by_the_hundred(in_bucket: InBucket) -> None:
    async def body(bucket: s3mount.Bucket) -> None:
        await bucket.upload(
            [s3mount.Upload(b"%d" % number, f"from/{number:03}") for number in range(120)]
        )
        copied = await bucket.list("from/").copy("copy")
        assert (copied.objects, copied.failed) == (120, 0)
        moved = await bucket.list("copy/00").move("moved/")
        assert moved.objects == 10
        assert [item.name for item in await bucket.list("moved/").all()] == [
            f"{number:03}" for number in range(10)
        ]
        assert len(await bucket.list("copy/").all()) == 110
        assert await bucket.list("from/").map(lambda item: bucket.get(item.key[2:])) == [
            b"%d" % number for number in range(120)
        ]
        await bucket.copy(["from/000"], "single")
        await bucket.move(["from/001"], f"s3://{bucket.name}/outside")
        assert await bucket.get("single/000") == b"0"
        await bucket.delete(["single/000", "none"])
        deleted = await bucket.list("", exclude=["/from/"]).delete()
        assert deleted.objects == 120
        assert len(await bucket.list().all()) == 119
        assert (await bucket.list().delete()).objects == 119
        assert await bucket.list().all() == []

    in_bucket(body)


def test_a_listing_that_is_left_early_or_fails_ends(in_bucket: InBucket) -> None:
    async def body(bucket: s3mount.Bucket) -> None:
        await bucket.upload([s3mount.Upload(b"", f"many/{n:04}") for n in range(1200)])
        async for item in bucket.list("many/"):
            assert item.name == "0000"
            break

        async def fail(item: object) -> None:
            await trio.lowlevel.checkpoint()
            raise KeyError("mine")

        with pytest.raises(BaseExceptionGroup) as raised:
            await bucket.list("many/").map(fail)
        assert raised.group_contains(KeyError)
        assert len(await bucket.list("many/").all()) == 1200

    in_bucket(body)


def test_an_object_is_a_file_of_one_version(in_bucket: InBucket) -> None:
    data = os.urandom(20 * MIB + 3)

    async def body(bucket: s3mount.Bucket) -> None:
        await bucket.upload([s3mount.Upload(data, "large")])
        file = await bucket.open("large")
        assert file.size == len(data)
        assert await file.read(5) == data[:5]
        assert await file.read(100) == data[5:105]
        assert file.tell() == 105
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert await file.read() == data[-10:]
        assert await file.read() == await file.read(3) == b""
        file.seek(7)
        assert await file.read(17 * MIB) == data[7 : 7 + 17 * MIB]
        assert await file.read_at(MIB, 2 * MIB) == data[MIB : 3 * MIB]
        assert file.seek(2 * len(data)) == 2 * len(data)
        assert await file.read(1) == b""
        with pytest.raises(ValueError, match="before the start"):
            file.seek(-1)
        await bucket.put("large", b"other")
        file.seek(0)
        with pytest.raises(PreconditionFailedError):
            await file.read_at(0, 5 * MIB)

    in_bucket(body)


def test_failures_are_told_one_by_one_and_raised_at_the_end(
    in_bucket: InBucket, tmp_path: Path
) -> None:
    async def body(bucket: s3mount.Bucket) -> None:
        (tmp_path / "file").write_bytes(b"x")
        told: list[Outcome] = []
        with pytest.raises(s3mount.SomeFailedError, match="1 of 2 failed") as raised:
            await bucket.upload([tmp_path / "none", tmp_path / "file"], progress=told.append)
        assert raised.value.summary.objects == 2
        assert [failure.source for failure in raised.value.failures] == [str(tmp_path / "none")]
        assert sorted(outcome.success for outcome in told) == [False, True]
        assert await bucket.get("file") == b"x"
        with pytest.raises(s3mount.SomeFailedError):
            await bucket.upload([tmp_path / "file"], exists="fail")
        assert (await bucket.upload([tmp_path / "file"], exists="skip")).skipped == 1
        with pytest.raises(s3mount.SomeFailedError):
            await bucket.download(["none"], tmp_path / "got")
        with pytest.raises(NoSuchKeyError):
            await bucket.open("none")
        with pytest.raises(PreconditionFailedError):
            await bucket.put("file", b"y", condition=Condition(if_absent=True))
        with pytest.raises(UsageError):
            await bucket.put("file", bytes(2 * MIB))

    in_bucket(body)


def test_what_cannot_be_opened_is_told_plainly(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main(url: str, **more: Any) -> None:
        async with s3mount.open(url, **settings, **more) as bucket:
            await bucket.head("key")

    with pytest.raises(LocationError):
        trio.run(main, "http://example.com")
    with pytest.raises(UsageError, match="speed"):
        trio.run(lambda: main("s3://bucket", speed=1))
    with pytest.raises((NoSuchBucketError, NoSuchKeyError)):
        trio.run(main, "s3://no-such-bucket-of-anybody")
    with pytest.raises(AttributeError):
        _ = s3mount.nothing
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(NoCredentialsError):
        trio.run(main, "s3://bucket")


def test_what_the_program_raises_comes_out_as_it_is(bucket: str, settings: dict[str, Any]) -> None:
    async def main() -> None:
        async with s3mount.open(f"s3://{bucket}", **settings) as opened:
            async for _ in opened.list():
                pass
            raise KeyError("mine")

    with pytest.raises(KeyError):
        trio.run(main)

    def front() -> None:
        with s3mount.open_sync(f"s3://{bucket}", **settings) as opened:
            assert list(opened.list()) == []
            raise KeyError("mine")

    with pytest.raises(KeyError):
        front()


def test_every_request_is_told(bucket: str, settings: dict[str, Any]) -> None:
    records: list[RequestRecord] = []

    async def main() -> None:
        async with s3mount.open(f"s3://{bucket}", on_request=records.append, **settings) as opened:
            await opened.put("key", b"x")
            await opened.get("key")

    trio.run(main)
    assert [record.kind for record in records] == ["put", "head", "get"]
    assert {record.key for record in records} == {"key"}


def test_the_front_without_trio(bucket: str, settings: dict[str, Any], tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("member", "inside " * 200_000)
    (tmp_path / "file").write_bytes(b"from a file")
    with s3mount.open_sync(f"s3://{bucket}", **settings) as opened:
        opened.upload([s3mount.Upload(archive.getvalue(), "a.zip"), tmp_path / "file"])
        with opened.open("a.zip") as file, zipfile.ZipFile(file) as zipped:
            assert zipped.read("member") == b"inside " * 200_000
        assert [item.key for item in opened.list()] == ["a.zip", "file"]
        assert opened.get("file") == b"from a file"
        opened.put("small", b"s")
        opened.copy(["small"], "below")
        opened.move(["small"], "moved")
        opened.download(["moved/"], tmp_path / "got")
        assert (tmp_path / "got" / "small").read_bytes() == b"s"
        assert opened.head("below/small").size == 1
        opened.delete(["below/small"])
        with pytest.raises(NoSuchKeyError):
            opened.get("below/small")
    with pytest.raises(LocationError), s3mount.open_sync("nothing"):
        pass

"""What stores do differently about parts, on real servers."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio

from s3mount.config import StoreConfig
from s3mount.errors import RejectedError
from s3mount.flow.parts import PartPlan
from s3mount.refs import ContentRef, FileSlice, ObjectHeaders
from s3mount.s3.client import S3Store
from s3mount.transfer.digest import etag_if_parts, etag_if_put
from s3mount.transfer.download import download_file
from s3mount.transfer.upload import MultipartUpload, upload_file
from tests.servers import S3Server

PART = 5 << 20
HEADERS = ObjectHeaders(metadata={"mtime": "1.5"})


@pytest.fixture
def config(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> StoreConfig:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return StoreConfig(bucket=bucket, endpoint_url=s3_server.endpoint_url, path_style=True)


def make(folder: Path, size: int) -> tuple[str, bytes]:
    data = random.Random(size).randbytes(size)
    (folder / "file").write_bytes(data)
    return str(folder / "file"), data


@pytest.mark.parametrize("size", [0, 7, PART, 2 * PART + 3])
def test_files_go_and_come_with_the_foretold_etag(
    config: StoreConfig, tmp_path: Path, size: int
) -> None:
    path, data = make(tmp_path, size)

    async def main() -> None:
        slots = trio.CapacityLimiter(4)
        async with S3Store(config) as store:
            result = await upload_file(
                store, path, size, "k", HEADERS, part_bytes=PART, slots=slots
            )
            if size > PART:
                assert result.etag == await etag_if_parts(path, size, PartPlan(PART))
            else:
                assert result.etag == await etag_if_put(path, size)
            back = str(tmp_path / "back")
            source = ContentRef("k", result.etag, size, result.version_id)
            await download_file(store, source, back, slots=slots, range_bytes=PART)

    trio.run(main)
    assert (tmp_path / "back").read_bytes() == data


def test_a_file_that_shrinks_while_it_is_sent(config: StoreConfig, tmp_path: Path) -> None:
    """S3 leaves parts out that are not named; Ceph refuses, and the upload begins anew."""
    path, data = make(tmp_path, 3 * PART)
    size = PART + 100

    async def main() -> None:
        async with S3Store(config) as store:
            upload = MultipartUpload(store, "k", PartPlan(PART))
            await upload.begin(HEADERS)
            for index in range(3):
                await upload.send_part(index, FileSlice(path, index * PART, PART))
            assert upload.ledger.superfluous(size) == [2]
            await upload.send_part(1, FileSlice(path, PART, 100))
            refused = ""
            try:
                await upload.complete(size)
            except RejectedError as error:
                refused = error.code
            if refused:
                assert refused == "InvalidPart"
                assert await upload.reconcile(size) == []
                await upload.abort()
                await upload.begin(HEADERS)
                assert upload.ledger.missing(size) == [0, 1]
                await upload.send_part(0, FileSlice(path, 0, PART))
                await upload.send_part(1, FileSlice(path, PART, 100))
                await upload.complete(size)
            info = await store.head("k")
            source = ContentRef("k", info.etag, info.size, info.version_id)
            await download_file(
                store, source, str(tmp_path / "back"), slots=trio.CapacityLimiter(2)
            )

    trio.run(main)
    assert (tmp_path / "back").read_bytes() == data[:size]


def test_an_upload_is_resumed_with_the_parts_that_still_hold(
    config: StoreConfig, tmp_path: Path
) -> None:
    path, data = make(tmp_path, 3 * PART)

    async def first_run() -> str:
        async with S3Store(config) as store:
            upload = MultipartUpload(store, "k", PartPlan(PART))
            await upload.begin(HEADERS)
            await upload.send_part(0, FileSlice(path, 0, PART))
            await upload.send_part(2, b"not what the file holds")
            return upload.upload_id

    async def second_run(upload_id: str) -> None:
        async with S3Store(config) as store:
            upload = MultipartUpload(store, "k", PartPlan(PART))
            assert sorted(await upload.resume(upload_id)) == [0, 2]
            assert await upload.verify(path, len(data)) == [1, 2]
            for index in (1, 2):
                await upload.send_part(index, FileSlice(path, index * PART, PART))
            await upload.complete(len(data))
            assert (await store.head("k")).etag == await etag_if_parts(
                path, len(data), PartPlan(PART)
            )

    trio.run(second_run, trio.run(first_run))

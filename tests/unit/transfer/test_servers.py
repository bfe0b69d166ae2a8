"""What stores do differently about parts, on real servers."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio

from s3mount.config import StoreConfig
from s3mount.flow.parts import PartPlan
from s3mount.refs import ByteRange, FileSlice, ObjectHeaders, PartInfo
from s3mount.s3.client import S3Store
from s3mount.transfer.digest import etag_if_parts, etag_if_put
from s3mount.transfer.download import download_file
from s3mount.transfer.fetching import Fetching, Wanted
from s3mount.transfer.multipart import adopt, bring_missing, confirm
from s3mount.transfer.parts import PartsUpload
from s3mount.transfer.upload import upload_file
from tests.servers import S3Server

pytestmark = pytest.mark.each_server

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
            wanted = Wanted("k", result.etag, size, result.version_id)
            fetching = Fetching(lambda n: None, slots=slots)
            await download_file(fetching, store, wanted, back, range_bytes=PART)

    trio.run(main)
    assert (tmp_path / "back").read_bytes() == data


def test_an_upload_is_resumed_with_the_parts_that_still_hold(
    config: StoreConfig, tmp_path: Path
) -> None:
    path, data = make(tmp_path, 3 * PART)
    noted: list[PartInfo] = []

    def body_of(span: ByteRange) -> FileSlice:
        return FileSlice(path, span.start, span.length)

    async def main() -> None:
        async with S3Store(config) as store:
            upload = PartsUpload("k", PartPlan(PART))
            upload.upload_id = await store.create_multipart("k", HEADERS)
            await store.upload_part("k", upload.upload_id, 1, body_of(ByteRange(0, PART)))
            await store.upload_part("k", upload.upload_id, 3, b"not what the file holds")
            upload.sent[1] = PartInfo(2, "noted but not there", PART)
            there, is_all = await confirm(store, upload)
            assert not is_all
            await adopt(upload, there, len(data), body_of, noted.append)
            assert upload.unsent(len(data)) == [1, 2]
            assert [part.number for part in noted] == [1]

            async def bring(index: int) -> None:
                body = body_of(upload.span(index, len(data)))
                part = await store.upload_part("k", upload.upload_id, index + 1, body)
                upload.arrived(index, part)

            await bring_missing(upload, len(data), bring, trio.CapacityLimiter(2))
            parts = upload.finished_parts(len(data))
            assert parts is not None
            await store.complete_multipart("k", upload.upload_id, parts)
            assert (await store.head("k")).etag == await etag_if_parts(
                path, len(data), PartPlan(PART)
            )

    trio.run(main)

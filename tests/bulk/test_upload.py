"""``s3mount upload`` and ``download``: s3am's words and exit statuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bulk.moving import MIB, Moving, random_bytes
from tests.servers import S3Server

DATA = random_bytes(12 * MIB + 345)


@pytest.fixture
def moving(s3_server: S3Server, bucket: str, tmp_path: Path) -> Moving:
    moving = Moving(s3_server, bucket, tmp_path)
    moving.write("file", DATA)
    return moving


def begin(moving: Moving, data: bytes, *numbers: int) -> None:
    """An unfinished upload of another tool, with parts of 6 MiB."""
    place = {"Bucket": moving.bucket, "Key": "k"}
    upload = moving.client.create_multipart_upload(**place)["UploadId"]
    for number in numbers:
        body = data[(number - 1) * 6 * MIB : number * 6 * MIB]
        moving.client.upload_part(**place, UploadId=upload, PartNumber=number, Body=body)


def test_an_object_that_is_there(moving: Moving) -> None:
    moving.put("k", b"there")
    for options, status, is_new in (
        ((), 3, False),
        (("--exists", "skip"), 0, False),
        (("--exists", "overwrite"), 0, True),
    ):
        told = moving.told("upload", *options, "file", f"{moving.s3}/k", status=status)
        assert (moving.get("k") == DATA) is is_new
        assert (told[0]["skipped"] is not None) is ("skip" in options)


def test_unfinished_uploads_of_others(moving: Moving) -> None:
    begin(moving, DATA, 1)
    told = moving.told("upload", "--resume", "file", f"{moving.s3}/k")
    # What S3 had is not sent again.
    assert told[-1]["bytes"] == len(DATA) - 6 * MIB
    assert moving.get("k") == DATA
    assert moving.uploads() == []
    begin(moving, DATA[::-1], 1)
    moving.told("upload", "--exists", "overwrite", "file", f"{moving.s3}/k", status=4)
    begin(moving, DATA, 1)
    moving.told("upload", "--exists", "overwrite", "file", f"{moving.s3}/k", status=13)
    assert len(moving.uploads()) == 2
    moving.told("upload", "--exists", "overwrite", "--force", "file", f"{moving.s3}/k")
    assert moving.uploads() == []
    assert moving.get("k") == DATA


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_a_file_that_is_there(moving: Moving) -> None:
    moving.put("k", b"new")
    for options, status, is_new in (
        ((), 11, False),
        (("--file-exists", "skip"), 0, False),
        (("--file-exists", "overwrite", "--download-slots", "2"), 0, True),
    ):
        moving.told("download", *options, f"{moving.s3}/k", "file", status=status)
        assert (moving.folder / "file").read_bytes() == (b"new" if is_new else DATA)
    moving.told("download", f"{moving.s3}/k", "./")
    assert (moving.folder / "k").read_bytes() == b"new"
    for arguments, status in (
        ((f"{moving.s3}/k", "a.partial"), 6),
        ((f"{moving.s3}/none", "b"), 5),
        (("file", "b"), 7),
        ((f"{moving.s3}/k", "b", "--resume", "--force"), 2),
    ):
        done = moving.run("download", *arguments)
        assert done.returncode == status, done.stderr
        assert b"Traceback" not in done.stderr

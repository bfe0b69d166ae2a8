"""What stores keep beside an object's bytes, as far as each has it: enough to prove them, or nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from s3mount.errors import NoSuchKeyError
from s3mount.refs import FileSlice, ObjectHeaders
from s3mount.s3.calls import digests as s3_digests
from s3mount.s3.store import Store
from s3mount.transfer.proving import proven
from tests.contract.subjects import Subject

MIB = 1 << 20
LENGTHS = (5 * MIB + 4321, 5 * MIB, 17)
DATA = hashlib.shake_256(b"digests").digest(sum(LENGTHS))
DAMAGED = DATA[:-1] + bytes([DATA[-1] ^ 1])


async def put_parts(store: Store, folder: Path) -> None:
    """DATA as ``key``, in parts that no tool makes."""
    source = folder / "source"
    source.write_bytes(DATA)
    upload = await store.create_multipart("key", ObjectHeaders())
    parts, start = [], 0
    for number, length in enumerate(LENGTHS, 1):
        body = FileSlice(str(source), start, length)
        parts.append(await store.upload_part("key", upload, number, body))
        start += length
    await store.complete_multipart("key", upload, parts)


def put_composite(subject: Subject, algorithm: str) -> None:
    """The same by boto3, with a checksum of the parts' checksums."""
    assert subject.server is not None
    client = subject.server.boto3_client()
    place = {"Bucket": subject.bucket(False), "Key": "key"}
    upload: Any = client.create_multipart_upload(**place, ChecksumAlgorithm=algorithm)
    place["UploadId"] = upload["UploadId"]
    parts, start = [], 0
    for number, length in enumerate(LENGTHS, 1):
        body = DATA[start : start + length]
        told = client.upload_part(
            **place, PartNumber=number, Body=body, ChecksumAlgorithm=algorithm
        )
        checksum = {name: value for name, value in told.items() if name.startswith("Checksum")}
        parts.append({"PartNumber": number, "ETag": told["ETag"], **checksum})
        start += length
    client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})


def test_bytes_are_proven_by_what_the_store_keeps(subject: Subject, tmp_path: Path) -> None:
    async def body(store: Store) -> None:
        await put_parts(store, tmp_path)
        told = await store.digests("key")
        info = await store.head("key")
        assert (told.size, told.etag) == (len(DATA), info.etag)
        can_tell = not subject.name.startswith("ceph")
        assert proven(DATA, told.etag, None, told) is (True if can_tell else None)
        assert proven(DAMAGED, told.etag, None, told) is (False if can_tell else None)
        await store.put("plain", b"abc", ObjectHeaders())
        plain = await store.digests("plain")
        assert proven(b"abc", plain.etag, None, plain) is True
        assert proven(b"abd", plain.etag, None, plain) is False
        with pytest.raises(NoSuchKeyError):
            await store.digests("nothing")

    subject.run(body)


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "SHA1", "SHA256"])
def test_checksums_of_the_parts_checksums(subject: Subject, algorithm: str) -> None:
    if subject.name != "localstack":
        pytest.skip("one store that keeps them is enough")
    put_composite(subject, algorithm)

    async def body(store: Store) -> None:
        told = await store.digests("key")
        assert (told.is_composite, told.part_lengths) == (True, LENGTHS)
        assert list(told.checksums) == [algorithm.lower()]
        assert proven(DATA, "opaque", None, told) is True
        assert proven(DAMAGED, "opaque", None, told) is False

    subject.run(body)


@pytest.mark.parametrize("heads_max", [200, 2])
def test_lengths_of_parts_are_asked_for_one_by_one(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads_max: int
) -> None:
    """As of objects from before stores kept checksums."""
    if subject.name != "localstack":
        pytest.skip("of the stores here one tells them")
    monkeypatch.setattr(s3_digests, "told_checksums", lambda answer: ({}, False))
    monkeypatch.setattr(s3_digests, "PART_HEADS_MAX", heads_max)

    async def body(store: Store) -> None:
        await put_parts(store, tmp_path)
        told = await store.digests("key")
        assert told.first_part_bytes == LENGTHS[0]
        assert told.part_lengths == (LENGTHS if heads_max > len(LENGTHS) else ())
        assert proven(DATA, told.etag, None, told) is (True if told.part_lengths else None)

    subject.run(body)

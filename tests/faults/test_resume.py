"""A large upload that is cut in the middle goes on where it was; what S3 has is not sent again."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.fuse.bucket_contents import OWN_PREFIX, S3Contents, wait_until
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Decision, Fault, Relay, Request

MIB = 1 << 20
PART_BYTES = 5 * MIB
PARTS = 100
PARTS_AT_ONCE = 9
"""So many parts of such a file are on their way at once, though more uploads may be: those are cut off."""


class CutAfter:
    """Lets so many parts pass; all others hang until they are cut off, every second one after it arrived."""

    def __init__(self, parts: int) -> None:
        self._left = parts
        self.hung = 0

    def __call__(self, request: Request) -> Decision:
        """What befalls ``request``."""
        if not is_part(request):
            return None
        self._left -= 1
        if self._left >= 0:
            return None
        self.hung += 1
        return Fault.HANG if self.hung % 2 else Fault.HANG_AFTER


def is_part(request: Request) -> bool:
    """Is it an UploadPart of the file?"""
    is_put = request.method == "PUT" and request.path.endswith("/large")
    return is_put and "partNumber=" in request.query


def write_marked(path: Path) -> None:
    """A file of PARTS parts, zeros but for a few bytes in each part, so that it takes no disk."""
    rng = random.Random(1)
    with path.open("wb", buffering=0) as file:
        file.truncate(PARTS * PART_BYTES)
        for number in range(PARTS):
            os.pwrite(file.fileno(), rng.randbytes(100), number * PART_BYTES + 1000)


def digest_of(file: Any) -> str:
    digest = hashlib.md5()
    while data := file.read(MIB):
        digest.update(data)
    return digest.hexdigest()


def number_of(request: Request) -> int:
    """The part that an UploadPart is about."""
    return int(parse_qs(request.query)["partNumber"][0])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)
def test_an_upload_cut_at_part_60_of_100_goes_on(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Killed when 60% of the parts were confirmed: of those on their way S3 gets what did not reach it."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    with Relay(s3_server.endpoint_url) as relay:
        mount = mount_factory(bucket, "--part-size", "5M", endpoint_url=relay.url)
        relay.decide = cut = CutAfter(PARTS * 6 // 10)
        write_marked(mount.path / "large")
        # A part's place is taken by the next only when it was confirmed and is in the journal.
        wait_until(
            lambda: cut.hung >= PARTS_AT_ONCE, "60% confirmed, the others hang", timeout_s=100
        )
        there = PARTS * 6 // 10 + PARTS_AT_ONCE // 2
        wait_until(lambda: len(parts_in(contents)) == there, "they are in S3", timeout_s=100)
        mount.kill9()
        relay.decide = lambda request: None
        before = [request for request in relay.requests("PUT") if is_part(request)]
        had = parts_in(contents)
        mount.mount()
        mount.wait(200)
        sent = [request for request in relay.requests("PUT") if is_part(request)]
        assert len(sent) < 110
        assert {number_of(request) for request in sent[len(before) :]}.isdisjoint(had)
        assert len({request.query for request in sent}) == PARTS, "it is the same upload"
        creates = [
            request
            for request in relay.requests("POST")
            if request.query == "uploads=" and request.path.endswith("/large")
        ]
        assert len(creates) == 1
        with (mount.path / "large").open("rb") as file:
            wanted = digest_of(file)
    stored = contents.client.get_object(Bucket=bucket, Key="large")
    assert stored["ContentLength"] == PARTS * PART_BYTES
    assert digest_of(stored["Body"]) == wanted
    sparse = hashlib.md5()
    rng = random.Random(1)
    for _ in range(PARTS):
        sparse.update(bytes(1000) + rng.randbytes(100) + bytes(PART_BYTES - 1100))
    assert wanted == sparse.hexdigest()


def parts_in(contents: S3Contents) -> set[int]:
    """The numbers of the parts that S3 has of the one file that is being sent."""
    client, bucket = contents.client, contents.bucket
    numbers = set()
    for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        if upload["Key"].startswith(OWN_PREFIX):
            continue  # the probe's, which may be over by now
        parts = client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        numbers |= {part["PartNumber"] for part in parts.get("Parts", [])}
    return numbers


def test_a_file_cut_shorter_than_what_was_sent_of_it_arrives(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """S3 has parts behind the file's end, which not every store lets go."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    mount = mount_factory(bucket, "--part-size", "5M")
    wanted = random.Random(2).randbytes(2 * PART_BYTES - 7)
    with (mount.path / "large").open("wb", buffering=0) as file:
        file.write(wanted)
        os.pwrite(file.fileno(), bytes(5 * PART_BYTES), len(wanted))
        os.fsync(file.fileno())
        wait_until(lambda: len(parts_in(contents)) >= 4, "parts leave before the file is closed")
        file.truncate(len(wanted))
    mount.wait()
    assert contents.client.get_object(Bucket=bucket, Key="large")["Body"].read() == wanted
    assert "Uploads" not in contents.client.list_multipart_uploads(Bucket=bucket)

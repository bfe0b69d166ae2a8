"""A sparse file on a real mount: what travels is its data, and what arrives has every byte."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from s3mount.config import MIB
from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import pending_of, status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.faulty import FaultyRelay
from tests.servers.habits import Habit, HabitRelay

SIZE = 120 * MIB + 5
PLACE = 60 * MIB + 1000
DATA = os.urandom(MIB)
SENT_MAX = 4 * 5 * MIB
"""One or two parts of data, one of zeros, and the end."""
Made = Callable[..., Mount]


def write_sparse(mount: Mount) -> None:
    """As ``truncate -s``, and a MiB written in the middle, once it is known what the store can do."""
    wait_until(lambda: bool(status_of(mount)["store_honours"]), "the probe ended")
    with (mount.path / "sparse").open("wb") as file:
        file.truncate(SIZE)
        os.pwrite(file.fileno(), DATA, PLACE)


def must_be_right(contents: S3Contents) -> None:
    """The object has all bytes, and nothing temporary is left, in no version and in no upload."""
    found = contents.read("sparse")
    assert len(found) == SIZE
    assert found[PLACE : PLACE + MIB] == DATA
    assert not found[:PLACE].strip(b"\0")
    assert not found[PLACE + MIB :].strip(b"\0")
    client, name = contents.client, contents.bucket
    told = client.list_object_versions(Bucket=name)
    keys = {each["Key"] for each in told.get("Versions", []) + told.get("DeleteMarkers", [])}
    # The trials of the weekly probe, which may still go on, have names with an end of their own.
    temporary = {key for key in keys if not key.endswith((".first", ".dated"))}
    assert temporary <= {"sparse", ".s3mount/"}
    assert not client.list_multipart_uploads(Bucket=name).get("Uploads")


@pytest.mark.parametrize("kind", ["bucket", "versioned_bucket"])
def test_of_a_sparse_file_only_the_data_travels(
    kind: str,
    request: pytest.FixtureRequest,
    relay: FaultyRelay,
    mount_factory: Made,
    s3_server: S3Server,
) -> None:
    name = request.getfixturevalue(kind)
    mount = mount_factory(name, "--part-size", "5M", "--no-dedupe", endpoint_url=relay.url)
    relay.forget()
    write_sparse(mount)
    mount.wait()
    assert sum(each.length for each in relay.requests("PUT")) < SENT_MAX
    must_be_right(S3Contents(s3_server.boto3_client(), name))


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_encrypted_zeros_are_copied(
    relay: FaultyRelay, bucket: str, mount_factory: Made, s3_server: S3Server
) -> None:
    """What is asked for of every object is asked for of the zeros, too: some policies demand it."""
    options = ("--part-size", "5M", "--no-dedupe", "--sse", "AES256")
    mount = mount_factory(bucket, *options, endpoint_url=relay.url)
    relay.forget()
    write_sparse(mount)
    mount.wait()
    assert sum(each.length for each in relay.requests("PUT")) < SENT_MAX
    contents = S3Contents(s3_server.boto3_client(), bucket)
    must_be_right(contents)
    told = contents.client.head_object(Bucket=bucket, Key="sparse")
    assert told["ServerSideEncryption"] == "AES256"


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
@pytest.mark.parametrize(
    ("habit", "is_sent"),
    [
        (Habit.NO_CHECKSUMS_OF_COPIES, False),
        (Habit.NO_PART_COPIES, True),
        (Habit.KEEPS_ALL, True),
    ],
    ids=lambda value: value.name if isinstance(value, Habit) else "",
)
def test_what_the_store_lacks_costs_bytes_and_nothing_else(
    habit: Habit, is_sent: bool, bucket: str, mount_factory: Made, s3_server: S3Server
) -> None:
    """Zeros are copied into an upload without checksums, or are sent where they could not be copied or removed."""
    with HabitRelay(s3_server.endpoint_url, [habit]) as relay:
        mount = mount_factory(bucket, "--part-size", "5M", "--no-dedupe", endpoint_url=relay.url)
        write_sparse(mount)
        mount.wait()
        sent = sum(each.length for each in relay.requests("PUT"))
        assert sent > SIZE if is_sent else sent < SENT_MAX
        must_be_right(S3Contents(s3_server.boto3_client(), bucket))
        mount.unmount()


def test_status_tells_the_bytes_that_are_to_be_sent(
    bucket: str, relay: FaultyRelay, mount_factory: Made
) -> None:
    """Of a pending sparse file: not its length, in whatever command, mounted or not."""
    mount = mount_factory(bucket, endpoint_url=relay.url)
    write_sparse(mount)
    relay.stop()
    with (mount.path / "sparse").open("r+b") as file:
        file.truncate(2 * SIZE)
    assert MIB <= pending_of(mount)["bytes"] < 2 * MIB
    said = mount.command("status", str(mount.path)).stdout
    assert "(1.0 MiB)" in said, said
    state = str(mount.state_dir)
    assert "(1.0 MiB)" in mount.command("recover", "--dry-run", state).stdout
    relay.start()
    mount.wait()

"""No byte is sent twice: copies, rewrites and small changes of large objects, by the bytes that really travelled."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig

from tests.fuse.bucket_contents import S3Contents
from tests.fuse.mounts import status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Relay

pytestmark = pytest.mark.needs_s3
MIB = 1 << 20
PART = 8 * MIB
LARGE = 50 * MIB + 12_345


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[Relay]:
    """A relay in front of the server."""
    with Relay(s3_server.endpoint_url) as running:
        yield running


@pytest.fixture
def contents(s3_server: S3Server, bucket: str) -> S3Contents:
    """The bucket, not by way of the relay."""
    return S3Contents(s3_server.boto3_client(), bucket)


@pytest.fixture
def mount(bucket: str, relay: Relay, mount_factory: Callable[..., Mount]) -> Mount:
    """A mount that reaches the server through the relay."""
    return mount_factory(bucket, endpoint_url=relay.url)


def sent_bytes(relay: Relay) -> int:
    """What bodies of requests took since ``forget``."""
    return sum(request.length for request in relay.requests() if request.method == "PUT")


def fetched_bytes(mount: Mount) -> int:
    """What was downloaded into the cache."""
    return int(status_of(mount)["cache"]["cache_fetched_bytes"])


def saved_bytes(mount: Mount) -> int:
    """What the status says was not sent because S3 had it."""
    return int(status_of(mount)["uploads"]["saved_bytes"])


def seed_large(s3_server: S3Server, bucket: str, folder: Path, key: str) -> bytes:
    """An object that another tool uploaded in parts of 8 MiB."""
    content = random.Random(key).randbytes(LARGE)
    local = folder / "seed"
    local.write_bytes(content)
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
    s3_server.boto3_client().upload_file(str(local), bucket, key, Config=config)
    local.unlink()
    return content


def test_cp_r_of_what_is_in_the_bucket_sends_next_to_nothing(
    s3_server: S3Server,
    bucket: str,
    mount: Mount,
    relay: Relay,
    contents: S3Contents,
    tmp_path: Path,
) -> None:
    """A cold tree that others made, with a large file, is copied inside S3: under 1% travels."""
    rng = random.Random(1)
    wanted = {"tree/large": seed_large(s3_server, bucket, tmp_path, "tree/large")}
    for number in range(12):
        key = f"tree/sub{number % 3}/file{number}"
        wanted[key] = rng.randbytes(rng.choice([30_000, 700_000, 3 * MIB]))
        contents.put(key, wanted[key])
    total = sum(map(len, wanted.values()))
    relay.forget()
    subprocess.run(["cp", "-r", mount.path / "tree", mount.path / "copy"], check=True)
    mount.wait()
    assert sent_bytes(relay) < total / 100
    assert saved_bytes(mount) == total
    for key, content in wanted.items():
        copy = "copy" + key.removeprefix("tree")
        assert contents.read(copy) == content
        assert (mount.path / copy).read_bytes() == content


def test_the_same_file_again_sends_next_to_nothing(
    mount: Mount, relay: Relay, contents: S3Contents, tmp_path: Path
) -> None:
    """Rewritten in place, by a temporary name, and under another name: also after the next start."""
    content = random.Random(2).randbytes(LARGE)
    local = tmp_path / "local"
    local.write_bytes(content)
    shutil.copyfile(local, mount.path / "file")
    mount.wait()
    assert sent_bytes(relay) > LARGE
    mount.unmount()
    mount.mount()
    relay.forget()
    shutil.copyfile(local, mount.path / "file")
    mount.wait()
    shutil.copyfile(local, mount.path / ".file.tmp")
    os.rename(mount.path / ".file.tmp", mount.path / "file")
    shutil.copyfile(local, mount.path / "other")
    mount.wait()
    assert sent_bytes(relay) < LARGE / 100
    assert saved_bytes(mount) == 3 * LARGE
    assert contents.read("file") == content
    assert contents.read("other") == content
    assert not list(contents.listing(".file"))


def test_a_file_that_differs_in_one_byte_is_sent(
    mount: Mount, relay: Relay, contents: S3Contents
) -> None:
    """At its very end, when everything before was like what S3 has."""
    content = bytearray(random.Random(3).randbytes(20 * MIB))
    (mount.path / "file").write_bytes(content)
    mount.wait()
    content[-1] ^= 1
    (mount.path / "other").write_bytes(content)
    mount.wait()
    assert contents.read("other") == bytes(content)
    assert saved_bytes(mount) == 0


@pytest.mark.parametrize("change", ["middle", "append", "cut", "grow"])
def test_a_small_change_of_a_large_cold_object(
    s3_server: S3Server,
    bucket: str,
    mount: Mount,
    relay: Relay,
    contents: S3Contents,
    tmp_path: Path,
    change: str,
) -> None:
    """About one part is sent, the rest is copied inside S3; no more than that part is fetched."""
    content = bytearray(seed_large(s3_server, bucket, tmp_path, "large"))
    path = mount.path / "large"
    assert path.stat().st_size == LARGE
    relay.forget()
    if change == "middle":
        content[LARGE // 2 : LARGE // 2 + 4096] = b"4" * 4096
        with path.open("r+b") as file:
            file.seek(LARGE // 2)
            file.write(b"4" * 4096)
    elif change == "append":
        content += b"more"
        with path.open("ab") as file:
            file.write(b"more")
    elif change == "cut":
        del content[LARGE // 2 :]
        os.truncate(path, LARGE // 2)
    else:
        content += bytes(1000)
        os.truncate(path, LARGE + 1000)
    mount.wait()
    assert sent_bytes(relay) <= PART + 4096
    assert fetched_bytes(mount) <= PART + MIB
    parts = [
        each for each in relay.requests("PUT", path_part="large") if "partNumber" in each.query
    ]
    assert sum(each.length > 0 for each in parts) <= 1
    assert len(parts) == (len(content) + PART - 1) // PART
    assert contents.read("large") == bytes(content)
    assert path.read_bytes() == bytes(content)

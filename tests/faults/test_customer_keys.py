"""A mount whose objects are encrypted with a key of its user (SSE-C)."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.load import change, held, make, shown
from tests.fuse.bucket_contents import S3Contents
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.opaque import Kind, OpaqueRelay

KEY = bytes(range(1, 33))
OTHER = bytes(range(101, 133))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    return path


@pytest.fixture
def contents(bucket: str, s3_server: S3Server) -> S3Contents:
    """The bucket, read with the key alone."""
    client = s3_server.boto3_client()

    def with_key(params: dict[str, Any], **_: object) -> None:
        params["SSECustomerAlgorithm"], params["SSECustomerKey"] = "AES256", KEY

    for call in ("GetObject", "HeadObject", "PutObject"):
        # Before botocore spells it out.
        client.meta.events.register_first(f"before-parameter-build.s3.{call}", with_key)
    return S3Contents(client, bucket)


def no_key_in(folder: Path) -> None:
    """Not in the log, the settings, the journal, what was put, nor the cache's tables."""
    spelt = (KEY, base64.b64encode(KEY), KEY.hex().encode())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert not any(each in data for each in spelt), path


def test_a_life_with_a_key(
    bucket: str,
    s3_server: S3Server,
    key_file: Path,
    contents: S3Contents,
    mount_factory: Callable[..., Mount],
) -> None:
    """Made, changed, in parts too, moved, removed: all of it is encrypted, and reads back."""
    options = ("--part-size", "5M", "--log-level", "debug")
    mount = mount_factory(bucket, *options, "--sse-c-key-file", str(key_file))
    wanted = make(mount.path, 7)
    mount.wait()
    wanted = change(mount.path, wanted)
    mount.wait()
    assert held(contents) == wanted
    for key in contents.listing():
        answer = contents.client.head_object(Bucket=bucket, Key=key)
        assert answer.get("SSECustomerAlgorithm") == "AES256", key
    no_key_in(mount.state_dir)
    no_key_in(mount.cache_dir)
    assert base64.b64encode(KEY).decode() not in mount.log
    mount.remount(fresh_state=True, fresh_cache=True)
    assert shown(mount.path) == wanted


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_etags_that_are_no_md5s(
    bucket: str,
    s3_server: S3Server,
    key_file: Path,
    contents: S3Contents,
    mount_factory: Callable[..., Mount],
) -> None:
    """As AWS gives them."""
    with OpaqueRelay(s3_server.endpoint_url, Kind.CUSTOMER) as relay:
        options = ("--part-size", "5M", "--sse-c-key-file", str(key_file))
        mount = mount_factory(bucket, *options, endpoint_url=relay.url)
        wanted = make(mount.path, 3)
        (mount.path / "twin").write_bytes(wanted["middle0"])
        mount.wait()
        wanted = change(mount.path, wanted | {"twin": wanted["middle0"]})
        mount.wait()
        assert held(contents) == wanted
        mount.remount(fresh_state=True, fresh_cache=True)
        assert shown(mount.path) == wanted


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_another_key_is_refused_at_the_file(
    bucket: str, key_file: Path, contents: S3Contents, mount_factory: Callable[..., Mount]
) -> None:
    contents.put("a", b"bytes")
    contents.client.put_object(Bucket=bucket, Key="b", Body=b"others")
    key_file.write_bytes(OTHER)
    mount = mount_factory(bucket, "--sse-c-key-file", str(key_file))
    assert sorted(os.listdir(mount.path)) == ["a", "b"]
    with pytest.raises(PermissionError):
        (mount.path / "a").read_bytes()
    (mount.path / "c").write_bytes(b"of the other key")
    mount.wait()
    assert (mount.path / "c").read_bytes() == b"of the other key"

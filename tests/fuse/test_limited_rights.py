"""Credentials that may work below one prefix alone: S3 refuses what is absent, and lists of all else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import parked_in, pending_of, status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import WRITING, Answer, Relay, Request

pytestmark = [pytest.mark.needs_s3, pytest.mark.each_server]
MIB = 1 << 20
DENIED = Answer(403, "AccessDenied")


class PolicyOfOnePrefix:
    """What a policy allows that has ``s3:ListBucket`` with ``s3:prefix`` of ``mine/*``, and objects below it."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        self._client = server.boto3_client()
        self._bucket = bucket

    def decide(self, request: Request) -> Answer | None:
        key = request.path.removeprefix(f"/{self._bucket}").removeprefix("/")
        asked = parse_qs(request.query, keep_blank_values=True)
        if not key:
            prefix = asked.get("prefix", [""])[0]
            is_listing = request.method == "GET" and not {"versioning", "lifecycle"} & asked.keys()
            return None if is_listing and prefix.startswith("mine/") else DENIED
        if not key.startswith("mine/"):
            return DENIED
        is_read = request.method in ("HEAD", "GET") and "uploadId" not in asked
        return DENIED if is_read and not self._is_there(key) else None

    def _is_there(self, key: str) -> bool:
        listed = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
        return any(each["Key"] == key for each in listed.get("Contents", []))


def test_files_are_made_moved_and_removed(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    client = s3_server.boto3_client()
    contents = S3Contents(client, bucket)
    contents.put("mine/there", b"there")
    contents.put("theirs/x", b"not ours")
    with Relay(s3_server.endpoint_url) as relay:
        relay.decide = PolicyOfOnePrefix(s3_server, bucket).decide
        mount = mount_factory(f"s3://{bucket}/mine", endpoint_url=relay.url)
        large = random.Random(3).randbytes(20 * MIB)
        (mount.path / "large").write_bytes(large)
        (mount.path / "small").write_bytes(b"small")
        (mount.path / "there").rename(mount.path / "moved")
        mount.wait()
        (mount.path / "large").rename(mount.path / "grown")
        with (mount.path / "grown").open("ab") as file:
            file.write(b"more")
        (mount.path / "small").unlink()
        assert not (mount.path / "none").exists()
        mount.wait()
        assert pending_of(mount)["changes"] == 0
    held = {key: contents.read(key) for key in contents.listing() if not key.endswith("/")}
    assert held == {"mine/grown": large + b"more", "mine/moved": b"there", "theirs/x": b"not ours"}


@pytest.mark.parametrize(
    ("is_denied", "options", "is_said"),
    [
        (True, (), True),
        (True, ("--snapshots",), True),
        (True, ("--read-only",), False),
        (False, (), False),
    ],
)
def test_the_command_tells_of_keys_that_may_not_write(
    bucket: str,
    tmp_path: Path,
    s3_server: S3Server,
    is_denied: bool,
    options: tuple[str, ...],
    is_said: bool,
) -> None:
    """Asked for while the bucket is, by a request that leaves nothing."""
    with Relay(s3_server.endpoint_url) as relay:
        relay.decide = lambda request: DENIED if is_denied and request.method in WRITING else None
        mount = Mount(s3_server, bucket, tmp_path)
        where = ("--endpoint-url", relay.url, "--path-style")
        try:
            done = mount.command("mount", bucket, str(mount.path), *where, *options)
            assert done.returncode == 0, done.stderr
            assert ("lets these credentials write nothing" in done.stdout) == is_said, done.stdout
            assert mount.command("unmount", str(mount.path)).returncode == 0
        finally:
            mount.close()
    assert S3Contents(s3_server.boto3_client(), bucket).listing(with_own=True) == {}


def test_keys_that_may_not_write_are_told_before_anything_waits(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """By the log and status, once the mount has tried; a refused file says which right it lacks."""
    with Relay(s3_server.endpoint_url) as relay:
        relay.decide = lambda request: DENIED if request.method in WRITING else None
        mount = mount_factory(bucket, endpoint_url=relay.url)
        wait_until(
            lambda: status_of(mount)["store_honours"].get("may_write") is False, "it is found out"
        )
        text = mount.command("status", str(mount.path)).stdout
        assert "lets these credentials write nothing" in text
        assert "--read-only" in text
        (mount.path / "f").write_bytes(b"kept here")
        wait_until(lambda: bool(parked_in(mount)), "it is refused")
        text = mount.command("status", str(mount.path)).stdout
        assert f"s3:PutObject for the key 'f' in the bucket '{bucket}'" in text
        relay.decide = lambda request: None
        mount.command("retry", str(mount.path))
        mount.wait()


def test_what_may_not_be_read_is_listed_and_not_replaced(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Keys that may list and write, but read no object: what an edit would have to keep cannot be known."""
    client = s3_server.boto3_client()
    contents = S3Contents(client, bucket)
    kept = {"Metadata": {"owner": "someone"}, "ContentType": "text/x-theirs"}
    for key in ("there", "folder/"):
        client.put_object(Bucket=bucket, Key=key, Body=b"", **kept)

    def decide(request: Request) -> Answer | None:
        is_object = bool(request.path.removeprefix(f"/{bucket}").removeprefix("/"))
        return DENIED if is_object and request.method in ("HEAD", "GET") else None

    with Relay(s3_server.endpoint_url) as relay:
        relay.decide = decide
        mount = mount_factory(bucket, endpoint_url=relay.url)
        assert {each.name for each in mount.path.iterdir()} == {"there", "folder"}
        with pytest.raises(PermissionError):
            (mount.path / "there").write_bytes(b"ours")
        for name in ("there", "folder"):
            with pytest.raises(PermissionError):
                (mount.path / name).chmod(0o600)
        (mount.path / "folder" / "new").write_bytes(b"new")
        (mount.path / "sub").mkdir()
        (mount.path / "sub" / "x").write_bytes(b"x")
        assert sorted(each.name for each in mount.path.iterdir()) == ["folder", "sub", "there"]
        mount.wait()
        assert pending_of(mount)["changes"] == 0
    assert contents.read("folder/new") == b"new"
    assert contents.read("sub/x") == b"x"
    for key in ("there", "folder/"):
        there = client.head_object(Bucket=bucket, Key=key)
        assert there["Metadata"] == kept["Metadata"]
        assert there["ContentType"] == kept["ContentType"]

"""A mount whose server is gone for a while, as programs see it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import status_of
from tests.fuse.outcomes import outcome
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Relay

pytestmark = pytest.mark.needs_s3


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[Relay]:
    """A relay in front of the server."""
    with Relay(s3_server.endpoint_url) as running:
        yield running


def is_away(mount: Mount) -> bool:
    return bool(status_of(mount)["outage"])


def test_local_work_goes_on_and_arrives(
    bucket: str, relay: Relay, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Known folders are listed, listed files are replaced, moved and removed; a read fails, and says so."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    for number in range(6):
        contents.put(f"theirs/f{number}", b"%d" % number)
    mount = mount_factory(bucket, "--offline-wait", "0", endpoint_url=relay.url)
    theirs = mount.path / "theirs"
    (theirs / "new").write_bytes(b"new")
    mount.wait()
    names = sorted(path.name for path in theirs.iterdir())
    relay.stop()
    (mount.path / "more").write_bytes(b"more")
    wait_until(lambda: is_away(mount), "the outage is noticed")
    for _ in range(3):
        assert sorted(path.name for path in theirs.iterdir()) == names
    assert outcome((theirs / "f0").read_bytes) == "EIO"
    assert not (theirs / "none").exists()
    (theirs / "f1").write_bytes(b"replaced")
    (theirs / "f2").rename(theirs / "moved")
    (theirs / "f3").unlink()
    assert (theirs / "f1").read_bytes() == b"replaced"
    text = mount.command("status", str(mount.path)).stdout
    assert "S3 cannot be reached: cannot connect to 127.0.0.1" in text
    relay.start()
    mount.wait()
    held = {key: contents.read(key) for key in contents.listing() if not key.endswith("/")}
    assert held == {
        "more": b"more",
        "theirs/new": b"new",
        "theirs/f0": b"0",
        "theirs/f1": b"replaced",
        "theirs/moved": b"2",
        "theirs/f4": b"4",
        "theirs/f5": b"5",
    }
    assert not is_away(mount)


def test_a_read_waits_as_long_as_it_was_told_to(
    bucket: str, relay: Relay, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    S3Contents(s3_server.boto3_client(), bucket).put("f", b"content")
    mount = mount_factory(bucket, "--offline-wait", "5m", endpoint_url=relay.url)
    assert (mount.path / "f").stat().st_size == 7
    relay.stop()
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((mount.path / "f").read_bytes()))
    reader.start()
    try:
        wait_until(lambda: is_away(mount), "the outage is noticed")
        assert not read
    finally:
        relay.start()
        reader.join(60)
    assert read == [b"content"]

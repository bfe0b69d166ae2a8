"""``s3mount restore`` of archived objects, by URL and through a mount."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError

from tests.bulk.places import Places
from tests.fuse.outcomes import outcome
from tests.mounting import Mount

pytestmark = [pytest.mark.each_server, pytest.mark.timeout(180)]


@pytest.fixture
def archived(places: Places) -> Places:
    """Objects in an archive, and one beside them."""
    try:
        places.put("d/a", "d/b", "e", StorageClass="GLACIER")
        places.client.get_object(Bucket=places.bucket, Key="e")
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidObjectState":
            pytest.skip(f"no archive there: {error}")
    else:
        pytest.skip("what is archived can be read there")
    places.put("d/plain")
    return places


def test_archived_objects_come_back_for_some_days(archived: Places) -> None:
    (told,) = archived.told("restore", "{b}/e", "--dry-run")
    assert told == {"url": f"s3://{archived.bucket}/e", "state": "archived", "until": None}
    assert archived.run("cat", "{b}/e", status=1).stdout == b""
    (told,) = archived.told("restore", "{b}/e", "--days", "3", "--tier", "Bulk", "--wait")
    assert told["state"] == "restored"
    until = time.mktime(time.strptime(told["until"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert 2 * 86400 < until - time.time() < 5 * 86400
    assert archived.lines("cat", "{b}/e") == ["e"]
    lines = archived.lines("restore", "{b}/d", "{b}/d/plain")
    assert [(line.split()[0], line.rpartition("/")[2]) for line in sorted(lines)] == [
        ("readable", "plain"),
        ("restored", "a"),
        ("restored", "b"),
    ]
    assert "nothing lies below" in archived.error("restore", "{b}/none", status=5)


def test_a_mount_tells_what_is_archived_and_reads_it_once_it_is_back(
    archived: Places, mount_factory: Callable[..., Mount]
) -> None:
    mount = mount_factory(archived.bucket, "--xattr")
    file = mount.path / "d" / "a"
    assert outcome(file.read_bytes) == "EIO"
    assert os.getxattr(file, "s3mount.restore") == b"archived"
    assert outcome(lambda: os.getxattr(mount.path / "d/plain", "s3mount.restore")) == "ENODATA"
    assert "s3mount.restore" not in os.listxattr(file)
    told = mount.command("status", str(mount.path)).stdout
    assert "1 file cannot be read" in told
    assert "d/a: the object is archived: s3mount restore brings it back" in told
    done = mount.command("restore", "--wait", str(mount.path / "d"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("restored until") == 2
    assert os.getxattr(file, "s3mount.restore").startswith(b"restored until ")
    assert file.read_bytes() == b"d/a"
    assert "cannot be read" not in mount.command("status", str(mount.path)).stdout

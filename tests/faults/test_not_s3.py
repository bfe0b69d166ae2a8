"""A mount while something else answers in S3's place, and while its bucket is gone."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Behind
from tests.faults.load import held
from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.fuse.mounts import parked_in
from tests.fuse.outcomes import outcome
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Answer, Decide
from tests.servers.faulty import Fate, FaultyRelay
from tests.servers.lies import LIES, XML, Lie

pytestmark = pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
TTL_S = 1.0
FILES = {"a": b"first", "d/b": b"second", "d/e/c": b"third", "f": b"fourth" * 1000}
EMPTY_LIST = (
    b'<?xml version="1.0"?><ListBucketResult><KeyCount>4</KeyCount>'
    b"<IsTruncated>false</IsTruncated></ListBucketResult>"
)
NO_BUCKET = Answer(404, "NoSuchBucket")

OUTAGES: dict[str, Decide] = {
    "no bucket": lambda request: NO_BUCKET,
    "no access": lambda request: Answer(403, "AccessDenied"),
    "a false 404": lambda request: LIES["404 html"],
    "a false 404 without a body": lambda request: LIES["404 empty"],
    "a false 403": lambda request: LIES["403 html"],
    "a page in its place": lambda request: LIES["200 html with an etag"],
    "a cut list": lambda request: LIES["200 truncated list"],
    "a list without its keys": lambda request: Lie(200, XML, EMPTY_LIST),
    "no back end": lambda request: LIES["502 html"],
    "reset": lambda request: Fate.LOSE_ANSWER,
}


def tree(root: Path) -> dict[str, bytes]:
    """Every file below ``root``."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def rsync(mount: Mount, backup: Path) -> subprocess.CompletedProcess[str]:
    """``rsync -a --delete`` from the mount."""
    command = ["rsync", "-a", "--delete", f"{mount.path}/", f"{backup}/"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture
def impatient(
    bucket: str, relay: FaultyRelay, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> Behind:
    """A mount whose reads wait for the end of no outage."""
    mount = mount_factory(bucket, "--offline-wait", "0", endpoint_url=relay.url)
    return mount, S3Contents(s3_server.boto3_client(), bucket)


def test_no_outage_lets_rsync_empty_a_backup(
    impatient: Behind, relay: FaultyRelay, tmp_path: Path
) -> None:
    """Whatever is answered, no file of the destination goes; afterwards everything is as it was."""
    mount, contents = impatient
    backup = tmp_path / "backup"
    backup.mkdir()
    for key, content in FILES.items():
        contents.put(key, content)
    assert rsync(mount, backup).returncode == 0
    assert tree(backup) == FILES
    for name, decide in OUTAGES.items():
        assert mount.command("refresh", str(mount.path)).returncode == 0
        relay.decide = decide
        done = rsync(mount, backup)
        assert tree(backup) == FILES, name
        listed = outcome(lambda: os.listdir(mount.path))
        assert done.returncode == 0 or done.stderr, name
        assert listed not in ("ENOENT", "[]"), name
        relay.decide = lambda request: None
        wait_until(lambda: outcome(lambda: (mount.path / "d/e/c").read_bytes()) == "done", name)
    assert rsync(mount, backup).returncode == 0
    assert tree(backup) == FILES


def test_no_bucket_is_no_empty_folder(behind: Behind, relay: FaultyRelay) -> None:
    """Neither a list nor a name is answered as if the folder were empty, before and after it was seen."""
    mount, contents = behind
    contents.put("folder/file", b"content")
    relay.decide = lambda request: NO_BUCKET
    listed = subprocess.run(["ls", str(mount.path)], capture_output=True, text=True, check=False)
    assert listed.returncode != 0
    assert "Input/output error" in listed.stderr
    assert outcome(lambda: (mount.path / "folder").stat()) == "EIO"
    relay.decide = lambda request: None
    assert os.listdir(mount.path / "folder") == ["file"]
    time.sleep(TTL_S + 0.3)
    relay.decide = lambda request: NO_BUCKET
    assert outcome(lambda: os.listdir(mount.path / "folder")) == "EIO"
    assert outcome(lambda: (mount.path / "folder/other").stat()) == "EIO"
    found = subprocess.run(["find", str(mount.path)], capture_output=True, text=True, check=False)
    assert found.returncode != 0


LIARS = {
    "200 empty": LIES["200 empty"],
    "404 page": LIES["404 html"],
    "204 after it was done": Lie(204, is_done=True),
}


def test_nothing_is_dropped_or_shown_for_a_liar(impatient: Behind, relay: FaultyRelay) -> None:
    """New, changed, removed and renamed files wait while a liar answers, and arrive when it is gone."""
    mount, contents = impatient
    for number, (name, lie) in enumerate(LIARS.items()):
        folder = mount.path / f"{number}"
        folder.mkdir()
        for key in ("changed", "removed", "moved"):
            (folder / key).write_bytes(key.encode())
        mount.wait()
        relay.decide = always(lie)
        (folder / "new").write_bytes(b"new")
        (folder / "changed").write_bytes(b"by us")
        (folder / "removed").unlink()
        (folder / "moved").rename(folder / "renamed")
        told = f"{lie.status} "
        wait_until(lambda told=told: told in errors(mount), f"{name} is told", timeout_s=60)  # type: ignore[misc]
        assert "not an answer of S3" in errors(mount)
        assert parked_in(mount) == []
        assert (folder / "new").read_bytes() == b"new"
        relay.decide = lambda request: None
        assert mount.command("retry", str(mount.path)).returncode == 0
        mount.wait()
        wanted = {"changed": b"by us", "new": b"new", "renamed": b"moved"}
        kept = {key: body for key, body in held(contents).items() if key.startswith(f"{number}/")}
        assert kept == {f"{number}/{key}": body for key, body in wanted.items()}, name
        assert tree(folder) == wanted


def always(lie: Lie) -> Decide:
    """Nothing else is answered."""
    return lambda request: lie


def errors(mount: Mount) -> str:
    """What status says of the changes that wait."""
    return mount.command("status", str(mount.path)).stdout

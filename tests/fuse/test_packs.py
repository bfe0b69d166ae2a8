"""Packs in a mount: small files go to S3 as a few tar files, and what packs hold is shown as files."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3mount.crashpoints import VARIABLE
from tests.fuse.bucket_contents import S3Contents, wait_until
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Relay

pytestmark = [pytest.mark.needs_s3, pytest.mark.timeout(180)]
PACKS = ("--pack-below", "64K")
FILES = {f"d{n % 4}/{n:03}": b"file %d " % n * (n % 200) for n in range(300)}


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[Relay]:
    """A relay in front of the server."""
    with Relay(s3_server.endpoint_url) as running:
        yield running


def fill(root: Path) -> None:
    for name, data in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below ``root``."""
    return {
        os.path.relpath(os.path.join(folder, name), root): Path(folder, name).read_bytes()
        for folder, _, names in os.walk(root)
        for name in names
    }


def plain_keys(contents: S3Contents) -> list[str]:
    """All objects that are neither packs nor markers."""
    return [key for key in contents.listing() if not key.endswith(("/", ".tar", ".tar.idx"))]


def pack_keys(contents: S3Contents) -> list[str]:
    return [key for key in contents.listing() if key.endswith(".tar")]


def test_small_files_are_a_few_tar_files_and_another_mount_changes_them(
    bucket: str, s3_server: S3Server, mount_factory: Callable[..., Mount], relay: Relay
) -> None:
    contents = S3Contents(s3_server.boto3_client(), bucket)
    mount = mount_factory(bucket, *PACKS, endpoint_url=relay.url)
    fill(mount.path)
    (mount.path / "d0/000").chmod(0o600)
    os.utime(mount.path / "d1/001", ns=(1, 1_500_000_000_123_456_789))
    large = os.urandom(100_000)
    (mount.path / "large").write_bytes(large)
    mount.wait()
    puts = [each for each in relay.requests("PUT") if "/.s3mount/probe-" not in each.path]
    wanted = FILES | {"large": large}
    assert tree(mount.path) == wanted
    assert plain_keys(contents) == ["large"]
    packs = pack_keys(contents)
    # 300 files by less than 40 PUTs: packs, their indexes and the folders.
    assert len(packs) <= 12
    assert len(puts) < 40
    for key in packs:
        with tarfile.open(fileobj=io.BytesIO(contents.read(key))) as tar:
            assert tar.getmembers()[-1].name == ".s3mount-pack-index.jsonl.gz"
    other = mount_factory(bucket, *PACKS, "--metadata-ttl", "0.2")
    assert tree(other.path) == wanted
    assert (other.path / "d0/000").stat().st_mode & 0o777 == 0o600
    assert (other.path / "d1/001").stat().st_mtime_ns == 1_500_000_000_123_456_789
    (other.path / "d0/004").write_bytes(b"written anew")
    (other.path / "d1/005").unlink()
    (other.path / "d2/006").rename(other.path / "d3/moved")
    (other.path / "d3/007").write_bytes(large)
    with (other.path / "d0/008").open("ab") as file:
        file.write(b"more")
    (other.path / "d1").rename(other.path / "e1")
    other.wait()
    wanted |= {"d0/004": b"written anew", "d3/moved": wanted["d2/006"], "d3/007": large}
    wanted["d0/008"] += b"more"
    del wanted["d1/005"], wanted["d2/006"]
    wanted = {name.replace("d1/", "e1/"): data for name, data in wanted.items()}
    assert tree(other.path) == wanted
    wait_until(lambda: tree(mount.path) == wanted, "the first mount shows it")
    assert sorted(plain_keys(contents)) == ["d3/007", "large"]
    for made in (mount, other):
        made.unmount()
    listed = other.command(
        "pack", "ls", f"s3://{bucket}/", "--endpoint-url", s3_server.endpoint_url
    )
    assert set(listed.stdout.splitlines()) == wanted.keys() - {"d3/007", "large"}


@pytest.mark.parametrize("step", ["pack: tar put", "pack: index put", "put: answered:5"])
def test_a_kill_between_the_steps_loses_nothing_and_makes_nothing_twice(
    bucket: str, s3_server: S3Server, mount_factory: Callable[..., Mount], step: str
) -> None:
    contents = S3Contents(s3_server.boto3_client(), bucket)
    mount = mount_factory(bucket, *PACKS, environment={VARIABLE: step})
    written = {f"f{n}": b"%d" % n * 100 for n in range(40)}
    for name, data in list(written.items()):
        try:
            (mount.path / name).write_bytes(data)
        except OSError:
            # It was not closed when the mount was killed.
            del written[name]
    wait_until(lambda: not mount.runs, "the mount is killed", timeout_s=60)
    there = pack_keys(contents)
    assert there
    mount.kill9()
    del mount.environment[VARIABLE]
    mount.mount()
    shown = tree(mount.path)
    assert shown | written == shown
    mount.wait()
    assert tree(mount.path) == shown
    mount.unmount()
    assert plain_keys(contents) == []
    names: list[str] = []
    for key in pack_keys(contents):
        with tarfile.open(fileobj=io.BytesIO(contents.read(key))) as tar:
            names += tar.getnames()[:-1]
    assert sorted(names) == sorted(shown)


def test_a_tar_file_of_others_and_a_pack_that_is_compacted_are_read(
    bucket: str, s3_server: S3Server, mount_factory: Callable[..., Mount], tmp_path: Path
) -> None:
    contents = S3Contents(s3_server.boto3_client(), bucket)
    source = tmp_path / "src"
    (source / "in/deep").mkdir(parents=True)
    (source / "in/deep/file").write_bytes(b"by tar")
    (source / "in/link").symlink_to("deep/file")
    (source / "in/large").write_bytes(os.urandom(3 << 20))
    os.utime(source / "in/deep/file", (1, 1_500_000_000))
    subprocess.run(["tar", "cf", tmp_path / "x.tar", "-C", source, "in"], check=True, timeout=60)
    contents.put("x.tar", (tmp_path / "x.tar").read_bytes())
    mount = mount_factory(bucket, *PACKS)
    at = ("--endpoint-url", s3_server.endpoint_url)
    assert mount.command("pack", "index", f"s3://{bucket}/x.tar", *at).returncode == 0
    wait_until(lambda: (mount.path / "in").is_dir(), "what is in the tar file is shown")
    assert tree(mount.path / "in") == tree(source / "in")
    assert (mount.path / "in/deep/file").stat().st_mtime == 1_500_000_000
    assert os.readlink(mount.path / "in/link") == "deep/file"
    (mount.path / "in/deep/file").unlink()
    for n in range(50):
        (mount.path / f"f{n}").write_bytes(b"%d" % n * 1000)
    mount.wait()
    for n in range(40):
        (mount.path / f"f{n}").unlink()
    mount.wait()
    before = sum(len(contents.read(key)) for key in pack_keys(contents))
    with (mount.path / "f45").open("rb") as held:
        done = mount.command("pack", "compact", f"s3://{bucket}/", "--live-below", "0.9", *at)
        assert done.returncode == 0, done.stderr
        assert held.read() == b"45" * 1000
    after = sum(len(contents.read(key)) for key in pack_keys(contents))
    assert after < before
    left = {f"f{n}": b"%d" % n * 1000 for n in range(40, 50)}
    other = mount_factory(bucket, "--packs", "--read-only")
    for each in (mount, other):
        shown = {
            path.name: path.read_bytes() for path in each.path.iterdir() if path.name[0] == "f"
        }
        assert shown == left
        assert not (each.path / "in/deep/file").exists()

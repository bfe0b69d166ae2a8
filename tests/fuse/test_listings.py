"""Walks through a tree and ``s3mount refresh`` on real mounts: what programs see, and by how many LISTs."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import S3Contents
from tests.fuse.mounts import counter
from tests.fuse.seeding import put_many
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Relay

pytestmark = [pytest.mark.needs_s3, pytest.mark.each_server]
BODY = b"content"
LONG_TTL = ("--metadata-ttl", "3600")
FOLDERS = 120
FILES = 5


def keys_of_a_tree() -> list[str]:
    """Folders of different depth with neighbours whose names sort around the slash."""
    keys = [f"top/d{folder:03}/f{number}" for folder in range(FOLDERS) for number in range(FILES)]
    keys += [f"top/d{folder:03}/sub/g" for folder in range(0, FOLDERS, 3)]
    keys += [f"top/d{folder:03}.x/h" for folder in range(0, FOLDERS, 5)]
    return keys


def run(mount: Mount, command: str) -> list[str]:
    """The lines that a command prints, started at the top of the mount."""
    words = shlex.split(command)
    done = subprocess.run(words, cwd=mount.path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def lists(relay: Relay) -> int:
    """How many LISTs were sent."""
    return len([each for each in relay.requests("GET") if "list-type=2" in each.query])


def directories_of(keys: list[str]) -> set[str]:
    """Every directory above one of the keys."""
    return {str(above) for key in keys for above in Path(key).parents} - {"."}


@pytest.mark.parametrize("command", ["find top", "find top -size -9 -printf '%p\\n'"])
def test_a_walk_is_listed_in_flat_pages(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server, command: str
) -> None:
    """Everything is found, by far fewer LISTs than there are directories."""
    keys = keys_of_a_tree()
    put_many(s3_server, bucket, keys, BODY)
    with Relay(s3_server.endpoint_url) as relay:
        mount = mount_factory(bucket, endpoint_url=relay.url)
        relay.forget()
        found = run(mount, command)
        assert sorted(found) == sorted(directories_of(keys) | set(keys))
        assert lists(relay) < len(directories_of(keys)) / 5
        assert relay.requests("HEAD", path_part="/top/") == []
        assert counter(mount, "ahead_used") > FOLDERS / 2


def test_a_walk_sees_what_was_changed_here_while_it_runs(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """What is written, removed and renamed ahead of the walk is found as it is, though it was listed before."""
    keys = [f"top/d{folder:03}/f{number}" for folder in range(FOLDERS) for number in range(FILES)]
    put_many(s3_server, bucket, keys, BODY)
    mount = mount_factory(bucket, *LONG_TTL)
    top = mount.path / "top"
    seen = []
    for number, folder in enumerate(sorted(os.listdir(top))):
        if number == 20:
            (top / "d060/new").write_bytes(BODY)
            (top / "d070/f0").unlink()
            (top / "d080").rename(top / "d080-moved")
            (top / "d090/made").mkdir()
            mount.wait()
        if folder != "d080":
            seen += [f"{folder}/{name}" for name in os.listdir(top / folder)]
    expected = {key.removeprefix("top/") for key in keys if "/d080/" not in key}
    expected = (expected | {"d060/new", "d090/made"}) - {"d070/f0"}
    assert sorted(seen) == sorted(expected)
    assert sorted(os.listdir(top / "d080-moved")) == [f"f{number}" for number in range(FILES)]


def test_refresh_shows_what_others_did(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """With a long TTL nothing is asked again, until a person says so; the kernel's answers go too."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    put_many(s3_server, bucket, ["t/a", "t/sub/b", "u/c"], BODY)
    mount = mount_factory(bucket, *LONG_TTL)
    t, u = mount.path / "t", mount.path / "u"
    assert (t / "a").read_bytes() == BODY
    assert os.listdir(t / "sub") == ["b"]
    assert not (t / "late").exists()
    assert os.listdir(u) == ["c"]
    contents.put("t/a", b"another, longer")
    contents.put("t/late", BODY)
    contents.put("t/sub/late", BODY)
    contents.delete("u/c")
    contents.put("u/d", BODY)
    assert (t / "a").read_bytes() == BODY
    assert not (t / "late").exists()
    done = mount.command("refresh", str(t))
    assert (done.returncode, done.stderr) == (0, "")
    assert (t / "a").read_bytes() == b"another, longer"
    assert (t / "late").read_bytes() == BODY
    assert sorted(os.listdir(t / "sub")) == ["b", "late"]
    assert os.listdir(u) == ["c"], "only what was named"
    assert mount.command("refresh", str(mount.path)).returncode == 0
    assert os.listdir(u) == ["d"]


def test_refresh_keeps_what_is_not_in_s3_yet(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    put_many(s3_server, bucket, ["t/a"], BODY)
    with Relay(s3_server.endpoint_url) as relay:
        mount = mount_factory(bucket, *LONG_TTL, endpoint_url=relay.url)
        with relay.holding("PUT"):
            (mount.path / "t/ours").write_bytes(b"ours")
            with (mount.path / "t/open").open("wb", buffering=0) as file:
                file.write(b"being written")
                assert mount.command("refresh", str(mount.path)).returncode == 0
                assert sorted(os.listdir(mount.path / "t")) == ["a", "open", "ours"]
                assert os.fstat(file.fileno()).st_size == len(b"being written")
            assert (mount.path / "t/ours").read_bytes() == b"ours"
        mount.wait()


def test_refresh_of_what_is_in_no_mount(
    tmp_path: Path, bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    mount = mount_factory(bucket)
    done = mount.command("refresh", str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path) in done.stderr


def test_attributes_after_a_refresh(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """A mode that another mount changed, which changes no byte."""
    first = mount_factory(bucket)
    (first.path / "d").mkdir()
    (first.path / "d/file").write_bytes(BODY)
    (first.path / "d/file").chmod(0o600)
    first.wait()
    second = mount_factory(bucket, *LONG_TTL)
    assert stat.S_IMODE((second.path / "d/file").stat().st_mode) == 0o600
    (first.path / "d/file").chmod(0o640)
    first.wait()
    assert second.command("refresh", str(second.path / "d/file")).returncode == 0
    assert stat.S_IMODE((second.path / "d/file").stat().st_mode) == 0o640

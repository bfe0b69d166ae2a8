"""What a running mount is told to do: text and JSON of each command, and what it does, on one mount."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import own_bucket
from tests.mounting import Mount
from tests.servers import S3Server

pytestmark = pytest.mark.needs_s3  # not for the plain folder

KIB = 1 << 10
LARGE = 3 << 20


class Steered:
    """A mount, and what its person tells it."""

    def __init__(self, mount: Mount, server: S3Server) -> None:
        self.mount = mount
        self.path = mount.path
        self.client = server.boto3_client()

    def run(self, command: str, *arguments: object) -> str:
        done = self.mount.command(command, *map(str, arguments))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.rstrip("\n")

    def json(self, command: str, *arguments: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(command, *arguments, "--json"))
        return found

    def refused(self, command: str, *arguments: object) -> str:
        done = self.mount.command(command, *map(str, arguments))
        assert done.returncode == 1, done.stdout
        return done.stderr.rstrip("\n")

    def status(self) -> dict[str, Any]:
        return self.json("status", self.path)

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.mount.bucket, Key=key, Body=data)

    def keys(self, prefix: str) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.mount.bucket, Prefix=prefix)
        return [each["Key"] for each in found.get("Contents", [])]

    def fetched(self) -> float:
        return float(self.status()["cache"]["cache_fetched_bytes"])

    def tree(self, name: str) -> tuple[int, int]:
        """A folder in S3 that the mount has not looked at; files and bytes in it."""
        files = {f"{name}/small-{number}": os.urandom(9 * KIB) for number in range(40)}
        files[f"{name}/deeper/large"] = os.urandom(LARGE)
        for key, data in files.items():
            self.put(key, data)
        return len(files), sum(map(len, files.values()))


@pytest.fixture(scope="module")
def steered(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    for bucket in own_bucket(s3_server, versioned=False):
        mount = Mount(s3_server, bucket, tmp_path_factory.mktemp("steered"))
        mount.mount()
        try:
            yield Steered(mount, s3_server)
        finally:
            mount.close()
        assert "Traceback" not in mount.log, mount.log


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def test_paused_nothing_is_sent_until_it_goes_on(steered: Steered) -> None:
    assert steered.run("pause", steered.path) == "uploads are paused"
    (steered.path / "held").write_text("held back")
    assert steered.status()["paused"] is True
    told = f"uploads are paused: s3mount resume {steered.path}"
    assert told in steered.run("status", steered.path)
    assert steered.refused("wait", steered.path) == f"s3mount: {told}"
    assert steered.keys("held") == []
    assert steered.json("resume", steered.path) == {
        "mountpoint": str(steered.path),
        "paused": False,
    }
    steered.run("wait", steered.path)
    assert steered.keys("held") == ["held"]
    assert steered.run("resume", steered.path) == "uploads go on"


def test_the_log_level_changes_in_both_processes(steered: Steered) -> None:
    assert steered.run("loglevel", steered.path, "debug") == "log level is debug"
    (steered.path / "loud").write_bytes(b"l")
    steered.run("wait", steered.path)
    until(lambda: " DEBUG s3mount." in steered.mount.log)
    assert steered.json("loglevel", steered.path, "info")["log_level"] == "info"


def test_a_tree_is_prefetched_and_evicted(steered: Steered) -> None:
    files, size_bytes = steered.tree("warm")
    assert f"{files} files in the cache (" in steered.run("prefetch", steered.path / "warm")
    fetched = steered.fetched()
    again = steered.json("prefetch", steered.path / "warm")
    assert again == {
        "mountpoint": str(steered.path),
        "files": files,
        "size_bytes": size_bytes,
        "files_total": files,
        "bytes_total": size_bytes,
        "failed": 0,
        "error": "",
    }
    assert len((steered.path / "warm/deeper/large").read_bytes()) == LARGE
    assert steered.fetched() == fetched
    with open(steered.path / "warm/small-0", "rb") as held:
        assert held.read(1)
        evicted = steered.json("evict", steered.path / "warm")
    assert (evicted["files"], evicted["in_use"], evicted["pinned"]) == (files - 1, 1, 0)
    assert evicted["size_bytes"] >= LARGE
    (steered.path / "warm/deeper").stat()
    steered.run("prefetch", steered.path / "warm/deeper/large")
    assert steered.fetched() == fetched + LARGE
    nothing = steered.run("evict", steered.path / "warm/small-1")
    assert nothing == "0 files evicted (0 B)"


def test_what_cannot_be_prefetched_is_told(steered: Steered) -> None:
    assert steered.refused("prefetch", steered.path / "nowhere") == (
        "s3mount: nowhere: no such file in the mount"
    )
    assert steered.refused("evict", steered.path / "nowhere").endswith("no such file in the mount")
    assert steered.refused("unpin", steered.path / "nowhere") == "s3mount: nowhere is not pinned"


def test_a_pinned_tree_stays_also_in_the_next_mount(steered: Steered) -> None:
    files, size_bytes = steered.tree("pinned")
    assert f"{files} files pinned (" in steered.run("pin", steered.path / "pinned")
    expected = [{"path": "pinned", "files": files, "size_bytes": size_bytes, "error": ""}]
    assert steered.status()["pinned"] == expected
    assert f"pinned in the cache: pinned: {files} files" in steered.run("status", steered.path)
    steered.mount.remount()
    until(lambda: steered.status()["pinned"] == expected)
    assert steered.fetched() == 0
    evicted = steered.json("evict", steered.path / "pinned")
    assert (evicted["files"], evicted["pinned"]) == (0, files)
    # What is written below it is pinned as well, once S3 has it.
    (steered.path / "pinned/mine").write_bytes(b"m" * 5000)
    steered.run("wait", steered.path)
    until(lambda: steered.status()["pinned"][0]["files"] == files + 1)
    assert steered.json("evict", steered.path / "pinned")["files"] == 0
    assert steered.run("unpin", steered.path) == f"{steered.path}/pinned"
    assert steered.status()["pinned"] == []
    until(lambda: steered.json("evict", steered.path / "pinned")["files"] == files + 1)

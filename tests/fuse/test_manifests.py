"""``s3mount manifest`` and ``s3mount wait --manifest`` on real servers."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from s3mount.app import manifests
from s3mount.cli.commands import main
from s3mount.manifest.formats.reading import read_entries
from s3mount.manifest.times import format_time
from tests.contract.subjects import set_credentials
from tests.fuse.bucket_contents import wait_until
from tests.manifest_access import open_in_this_process
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Fault, Relay, Request

pytestmark = [pytest.mark.needs_s3, pytest.mark.each_server]

ODD_KEYS = [
    'say "hi"',
    "new\nline",
    "car\rriage",
    "per%cent",
    "a+b c",
    "\x01\x7f",
    "é/日本",
    "k" * 1024,
]


class Outcome(NamedTuple):
    """How a command ended and what it wrote."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Lab:
    """A bucket of one's own with versions, and commands that reach it."""

    def __init__(
        self,
        server: S3Server,
        monkeypatch: pytest.MonkeyPatch,
        captured: pytest.CaptureFixture[bytes],
        *,
        versioned: bool = True,
    ) -> None:
        self.server = server
        self._monkeypatch = monkeypatch
        self._captured = captured
        set_credentials(monkeypatch, server)
        monkeypatch.setattr(manifests.Access, "open_store", open_in_this_process)
        self.bucket = server.make_bucket(versioned=versioned)
        self.client = server.boto3_client()

    def put(self, key: str, data: bytes) -> str:
        return str(self.client.put_object(Bucket=self.bucket, Key=key, Body=data).get("VersionId"))

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def modified_ns(self, key: str) -> int:
        moment = self.client.head_object(Bucket=self.bucket, Key=key)["LastModified"]
        return int(moment.timestamp()) * 10**9

    def held(self) -> dict[str, bytes]:
        found = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for entry in page.get("Contents", []):
                answer = self.client.get_object(Bucket=self.bucket, Key=entry["Key"])
                found[entry["Key"]] = answer["Body"].read()
        return found

    def run(self, *arguments: str, given: bytes = b"") -> Outcome:
        """``s3mount manifest ARGUMENTS``, in this process: a start takes a second, and these are many."""
        self._captured.readouterr()
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        status = main(["manifest", *arguments, *self.options])
        told = self._captured.readouterr()
        return Outcome(status, told.out, told.err)

    @property
    def options(self) -> list[str]:
        return ["--endpoint-url", self.server.endpoint_url, "--path-style"]

    def create(self, path: Path, *more: str) -> Path:
        done = self.run("create", f"s3://{self.bucket}", "-o", str(path), *more)
        assert done.returncode == 0, done.stderr
        return path

    def close(self) -> None:
        if self.server.lasting:
            self.server.remove_bucket(self.bucket)


@pytest.fixture
def lab(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Iterator[Lab]:
    with contextlib.closing(Lab(s3_server, monkeypatch, capsysbinary)) as made:
        yield made


def keys_of(path: Path) -> list[str]:
    return [entry.key for entry in read_entries(path)]


def test_odd_keys_versions_and_deletions_come_as_they_were(lab: Lab, tmp_path: Path) -> None:
    expected = {}
    for number, key in enumerate(ODD_KEYS):
        lab.put(key, b"first")
        expected[key] = (lab.put(key, b"x" * number), number)
    lab.put("gone", b"1")
    lab.delete("gone")
    path = lab.create(tmp_path / "now.csv")
    found = list(read_entries(path))
    assert [entry.key for entry in found] == sorted(ODD_KEYS, key=str.encode)
    assert {entry.key: (entry.version_id, entry.size) for entry in found} == expected
    for entry in found:
        head = lab.client.head_object(Bucket=lab.bucket, Key=entry.key, VersionId=entry.version_id)
        assert entry.etag == head["ETag"].strip('"')
        assert entry.last_modified_ns is not None
        assert entry.last_modified_ns // 10**9 == int(head["LastModified"].timestamp())
    for output_format in ("legacy", "batch", "parquet"):
        other = lab.create(tmp_path / output_format, "--format", output_format, "--quiet")
        again = list(read_entries(other, bucket=lab.bucket))
        assert [(e.bucket, e.key, e.version_id) for e in again] == [
            (e.bucket, e.key, e.version_id) for e in found
        ]
        done = lab.run("diff", str(path), str(other), "--bucket", lab.bucket)
        assert done.returncode == 0, (done.stdout, done.stderr)
    done = lab.run("verify", "--content", str(path))
    assert (done.returncode, done.stdout) == (0, b""), done.stderr


def test_the_same_past_gives_the_same_bytes_while_others_write(lab: Lab, tmp_path: Path) -> None:
    for number in range(40):
        lab.put(f"{number:02d}", b"then")
    lab.delete("07")
    then_ns = max(lab.modified_ns(f"{number:02d}") for number in range(40) if number != 7)
    versions = lab.client.list_object_versions(Bucket=lab.bucket)
    marker = versions["DeleteMarkers"][0]["LastModified"]
    then_ns = max(then_ns, int(marker.timestamp()) * 10**9) + 10**9 - 1
    first_of_now = f"first/{os.getpid()}"
    # Dates have whole seconds: what is written from here on must fall into a later one.
    while True:
        lab.put(first_of_now, b"now")
        if lab.modified_ns(first_of_now) > then_ns:
            break
    lab.client.delete_objects(
        Bucket=lab.bucket,
        Delete={
            "Objects": [
                {"Key": each["Key"], "VersionId": each["VersionId"]}
                for each in lab.client.list_object_versions(Bucket=lab.bucket, Prefix=first_of_now)[
                    "Versions"
                ]
            ]
        },
    )
    at = ("--at", format_time(then_ns))
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            lab.put(f"{number % 60:02d}", b"now")
            if number % 7 == 0:
                lab.delete(f"{number % 60:02d}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        first = lab.create(tmp_path / "first.csv", *at).read_bytes()
        second = lab.create(tmp_path / "second.csv", *at).read_bytes()
    finally:
        ended.set()
        writer.join()
    assert first == second == lab.create(tmp_path / "third.csv", *at).read_bytes()
    assert keys_of(tmp_path / "first.csv") == [f"{n:02d}" for n in range(40) if n != 7]
    assert {entry.size for entry in read_entries(tmp_path / "first.csv")} == {4}
    done = lab.run("create", f"s3://{lab.bucket}", "--at", "2199-01-01")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"has not come yet" in done.stderr


def test_null_versions_before_after_and_without_versions(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
    tmp_path: Path,
) -> None:
    made = Lab(s3_server, monkeypatch, capsysbinary, versioned=False)
    with contextlib.closing(made) as lab:
        for key in ("old", "rewritten"):
            lab.put(key, b"null")
        assert [e.version_id for e in read_entries(lab.create(tmp_path / "0"))] == ["null"] * 2
        for status, key in (("Enabled", "rewritten"), ("Suspended", "new")):
            lab.client.put_bucket_versioning(
                Bucket=lab.bucket, VersioningConfiguration={"Status": status}
            )
            lab.put(key, status.encode())
        lab.delete("old")
        path = lab.create(tmp_path / "1")
        found = {entry.key: (entry.version_id, entry.size) for entry in read_entries(path)}
        assert found.keys() == {"new", "rewritten"}
        assert found["new"] == ("null", len("Suspended"))
        assert found["rewritten"][0] != "null"
        done = lab.run("restore", str(tmp_path / "0"), "--yes", "--delete")
        assert done.returncode == 2
        assert b"enable versioning first" in done.stderr
        assert lab.held().keys() == {"new", "rewritten"}


def test_differences_and_the_way_back(lab: Lab, tmp_path: Path) -> None:
    for number in range(6):
        lab.put(f"d/{number}", b"then %d" % number)
    lab.put(ODD_KEYS[1], b"odd")
    then = lab.held()
    path = lab.create(tmp_path / "then.csv")
    live = f"s3://{lab.bucket}"
    assert lab.run("diff", str(path), live).returncode == 0
    lab.put("d/0", b"now")
    lab.delete("d/1")
    lab.delete(ODD_KEYS[1])
    lab.put("d/new", b"now")
    done = lab.run("diff", str(path), live, "--json")
    assert done.returncode == 1
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1] == {"added": 1, "removed": 2, "changed": 1}
    assert {each["key"]: each["kind"] for each in lines[:-1]} == {
        "d/0": "changed",
        "d/1": "removed",
        "d/new": "added",
        ODD_KEYS[1]: "removed",
    }
    done = lab.run("restore", str(path))
    assert done.returncode == 2
    assert b"--yes" in done.stderr
    done = lab.run("restore", str(path), "--dry-run")
    assert b"1 more keys are there that the manifest does not name; they stay" in done.stderr
    assert b"0 to delete" in done.stderr
    done = lab.run("restore", str(path), "--dry-run", "--delete")
    assert done.returncode == 0
    assert b"3 keys to restore" in done.stderr
    assert b"1 to delete" in done.stderr
    assert b"delete d/new" in done.stdout
    assert lab.run("diff", str(path), live, "--quiet").returncode == 1
    done = lab.run("restore", str(path), "--yes", "--json", "--delete")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["copied"], told["deleted"], told["failed"], told["done"]) == (3, 1, 0, True)
    assert lab.held() == then
    assert lab.run("diff", "--content", str(path), live).returncode == 0
    assert lab.run("restore", str(path), "--yes", "--delete").returncode == 0


def test_a_restore_that_is_killed_again_and_again_can_be_repeated(
    s3_server: S3Server, lab: Lab, tmp_path: Path
) -> None:
    for number in range(6):
        lab.put(f"{number}", b"then")
    then = lab.held()
    manifest = f"s3://{lab.bucket}/lists/then.csv"
    assert lab.run("create", f"s3://{lab.bucket}", "-o", manifest).returncode == 0
    listed = {"lists/then.csv": lab.held()["lists/then.csv"]}
    for number in range(6):
        lab.put(f"{number}", b"now")
        lab.put(f"lists/new-{number}", b"now")
    command = [
        sys.executable,
        "-m",
        "s3mount",
        "manifest",
        "restore",
        manifest,
        "--yes",
        "--delete",
    ]
    with Relay(s3_server.endpoint_url) as relay:
        command += ["--endpoint-url", relay.url, "--path-style"]
        for method, let_through in (("PUT", 2), ("POST", 0)):
            passed = itertools.count()

            def decide(request: Request) -> Fault | None:
                is_late = request.method == method and next(passed) >= let_through  # noqa: B023
                return Fault.HANG if is_late else None

            relay.forget()
            relay.decide = decide
            process = subprocess.Popen(
                command,
                env=s3_server.environment(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            wait_until(lambda: bool(relay.faulted()), "the restore is under way", timeout_s=60)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
    done = lab.run("restore", manifest, "--yes", "--delete")
    assert done.returncode == 0, done.stderr
    assert lab.held() == then | listed


def test_a_prefix_means_a_folder_and_must_be_there(lab: Lab, tmp_path: Path) -> None:
    for key in ("data/a", "data2/a"):
        lab.put(key, b"then")
    path = tmp_path / "m.csv"
    for written in ("data", "data/", "/data", "/data/"):
        done = lab.run("create", f"s3://{lab.bucket}/{written}", "-o", str(path))
        assert done.returncode == 0, done.stderr
        assert keys_of(path) == ["data/a"]
    for wrong in ("dat", "data/a"):
        done = lab.run("create", f"s3://{lab.bucket}/{wrong}", "-o", str(tmp_path / "none"))
        assert done.returncode == 2
        assert b"no key lies below s3://" in done.stderr
        assert not (tmp_path / "none").exists()
    # What is deleted since was there: that is no wrong spelling.
    lab.delete("data2/a")
    assert lab.run("create", f"s3://{lab.bucket}/data2", "-o", str(path)).returncode == 0
    assert keys_of(path) == []


def test_a_manifest_may_come_through_a_pipe_or_lie_in_s3(lab: Lab, tmp_path: Path) -> None:
    lab.put("a", b"1")
    gone = lab.put("b", b"22")
    there = f"s3://{lab.bucket}/lists/now.csv"
    assert lab.run("create", f"s3://{lab.bucket}", "-o", there).returncode == 0
    done = lab.run("show", there, "--json")
    told = json.loads(done.stdout)
    assert (told["count"], told["size_bytes"], told["format"]) == (2, 3, "csv")
    absent = lab.run("diff", there, f"s3://{lab.bucket}/lists/then.csv")
    assert absent.returncode == 2
    assert f"s3://{lab.bucket}/lists/then.csv does not exist".encode() in absent.stderr
    piped = lab.run("create", f"s3://{lab.bucket}", "--format", "legacy", "-q").stdout
    assert [line.split(b",")[0] for line in piped.splitlines()] == [b"a", b"b", b"lists/now.csv"]
    lab.client.delete_object(Bucket=lab.bucket, Key="b", VersionId=gone)
    done = lab.run("verify", "-", "--bucket", lab.bucket, given=piped)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"s3://{lab.bucket}/b {gone} is not there any more".encode()
    ]
    done = lab.run("verify", "-", given=piped)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"--bucket" in done.stderr


def test_exactly_what_a_mount_has_put_is_listed_through_a_kill(
    lab: Lab, mount_factory: Callable[..., Mount], tmp_path: Path
) -> None:
    lab.put("foreign", b"not ours")
    mount = mount_factory(lab.bucket)
    root = mount.path
    for name in ("kept", "changed", "removed", "moved", "run.sh"):
        (root / name).write_bytes(name.encode())
    (root / "run.sh").chmod(0o755)
    (root / "folder").mkdir()
    mount.wait()
    (root / "changed").write_bytes(b"changed once more")
    (root / "late").write_bytes(b"sent by the next process")
    mount.kill9()
    mount.mount()
    (root / "removed").unlink()
    (root / "moved").rename(root / "folder" / "moved")
    path = tmp_path / "put.csv"
    done = mount.command("wait", str(root), "--manifest", str(path))
    assert done.returncode == 0, done.stderr
    entries = {entry.key: entry for entry in read_entries(path)}
    assert entries.keys() == {"changed", "folder/", "folder/moved", "kept", "late", "run.sh"}
    for key, entry in entries.items():
        head = lab.client.head_object(Bucket=lab.bucket, Key=key)
        assert entry.version_id == head["VersionId"], key
        assert (entry.size, entry.etag) == (head["ContentLength"], head["ETag"].strip('"'))
    assert entries["run.sh"].mode == 0o100755
    assert entries["kept"].mtime_ns == (root / "kept").stat().st_mtime_ns
    done = mount.command("wait", str(root), "folder", "--manifest", "-")
    assert [line.split(",")[1] for line in done.stdout.splitlines()[1:]] == [
        "folder/",
        "folder/moved",
    ]
    assert lab.run("verify", "--content", str(path)).returncode == 0
    refused = lab.run("restore", str(path), "--yes", "--delete")
    assert refused.returncode == 2
    assert b"what one mount has put" in refused.stderr
    assert lab.held()["foreign"] == b"not ours"
    mount.unmount()
    mount.mount()
    done = mount.command("wait", str(root), "--manifest", "-")
    assert len(done.stdout.splitlines()) == 1, "the last mount ended well"


def test_an_interrupted_command_says_so_in_one_line_and_leaves_nothing(
    s3_server: S3Server, lab: Lab, tmp_path: Path
) -> None:
    lab.put("a", b"1")
    with Relay(s3_server.endpoint_url) as relay, relay.holding("GET"):
        command = [sys.executable, "-m", "s3mount", "manifest", "create", f"s3://{lab.bucket}"]
        process = subprocess.Popen(
            [*command, "-o", str(tmp_path / "m.csv"), "--endpoint-url", relay.url, "--path-style"],
            env=s3_server.environment(),
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        wait_until(lambda: bool(relay.requests("GET")), "the command asks", timeout_s=60)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told.strip()) == (130, b"s3mount: interrupted")
    assert list(tmp_path.iterdir()) == []

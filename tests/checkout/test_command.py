"""``s3mount checkout`` on real servers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from s3mount.checkout.paths import HIDDEN
from s3mount.manifest.model import Entry
from s3mount.manifest.times import format_time
from tests.checkout.command import Checkout
from tests.fuse.bucket_contents import wait_until
from tests.fuse.pasts import store_time_ns
from tests.servers import S3Server
from tests.servers.counting import Answer, Decision, Fault, Relay, Request

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


def content_of(number: int) -> bytes:
    return random.Random(number).randbytes(number * 7919 % 60_000)


@pytest.fixture
def relay(s3_server: S3Server) -> Iterator[Relay]:
    with Relay(s3_server.endpoint_url) as running:
        yield running


def gets(relay: Relay) -> list[Request]:
    return relay.requests("GET")


def test_fresh_then_nothing_then_only_what_differs(checkout: Checkout, relay: Relay) -> None:
    wanted = [checkout.put(f"d{n % 5}/f{n}", content_of(n)) for n in range(60)]
    for n in range(0, 60, 10):
        checkout.put(f"d{n % 5}/f{n}", b"newer")
    large = random.Random(1).randbytes(11 * MIB)
    wanted.append(checkout.put_parts("large", large, 5 * MIB))
    wanted.append(checkout.put("späße/+&?%20 ~'()", b"odd"))
    checkout.write_manifest(wanted)
    told = checkout.summary(endpoint_url=relay.url)
    assert (told["files"], told["downloaded"], told["right"]) == (62, 62, 0)
    assert told["unproven"] == 0
    expected = {f"d{n % 5}/f{n}": content_of(n) for n in range(60)}
    expected |= {"large": large, "späße/+&?%20 ~'()": b"odd"}
    assert checkout.files() == expected
    assert len(gets(relay)) == 61 + 2

    relay.forget()
    told = checkout.summary(endpoint_url=relay.url)
    assert (told["right"], told["hashed"]) == (62, 0)
    assert relay.requests() == []

    (checkout.folder / "d1/f1").unlink()
    (checkout.folder / "large").write_bytes(large[:-1] + b"!")
    told = checkout.summary(endpoint_url=relay.url)
    assert (told["right"], told["downloaded"]) == (60, 2)
    assert checkout.files() == expected | {"large.orig": large[:-1] + b"!"}
    assert told["asides"] == {"large": "large.orig"}


def test_a_folder_that_another_tool_filled(checkout: Checkout, relay: Relay) -> None:
    """Its files are known by their ETags, those of multipart uploads too."""
    contents = {f"f{n}": content_of(n) for n in range(10)}
    wanted = [checkout.put(key, data) for key, data in contents.items()]
    for part_mib, size in ((5, 12 * MIB), (6, 13 * MIB + 5), (8, 9 * MIB)):
        key = f"parts-of-{part_mib}"
        contents[key] = random.Random(part_mib).randbytes(size)
        wanted.append(checkout.put_parts(key, contents[key], part_mib * MIB))
    checkout.folder.mkdir()
    for name, data in contents.items():
        (checkout.folder / name).write_bytes(data)
    checkout.write_manifest(wanted)
    told = checkout.summary(endpoint_url=relay.url)
    assert (told["right"], told["hashed"], told["downloaded"]) == (13, 13, 0)
    assert relay.requests() == []
    assert checkout.summary()["hashed"] == 0


def test_text_and_exit_statuses(checkout: Checkout) -> None:
    checkout.write_manifest([checkout.put("f", b"12345")])
    done = checkout.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 files, 0 right already, 1 downloaded (5 B)")
    assert checkout.run("--quiet").stdout == ""
    checkout.manifest.write_text("bucket,key,version_id\nb,,\n")
    done = checkout.run()
    assert done.returncode == 1
    assert "line 2" in done.stderr
    checkout.manifest.unlink()
    done = checkout.run()
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_two_columns_with_the_bucket_by_option(checkout: Checkout) -> None:
    entries = [checkout.put(f"f{n}", content_of(n)) for n in range(5)] + [checkout.put("e", b"")]
    for entry in entries:
        checkout.put(entry.key, b"newer")
    lines = [f"{entry.key},{entry.version_id}\n" for entry in entries]
    checkout.manifest.write_text("".join(lines))
    done = checkout.run()
    assert done.returncode != 0
    assert "--bucket" in done.stderr
    assert checkout.summary("--bucket", checkout.bucket)["downloaded"] == 6
    assert checkout.files() == {f"f{n}": content_of(n) for n in range(5)} | {"e": b""}
    assert checkout.summary("--bucket", checkout.bucket)["right"] == 6


def test_missing_and_deleted_versions_fail_alone(checkout: Checkout) -> None:
    kept, removed = checkout.put("kept", b"1"), checkout.put("removed", b"2")
    checkout.client.delete_object(
        Bucket=checkout.bucket, Key="removed", VersionId=removed.version_id
    )
    hidden = checkout.put("behind-a-marker", b"3")
    marker = checkout.client.delete_object(Bucket=checkout.bucket, Key="behind-a-marker")
    a_marker = msgspec.structs.replace(
        hidden, key="behind-a-marker", version_id=marker["VersionId"]
    )
    checkout.write_manifest([kept, removed, hidden])
    told = checkout.summary(status=1)
    assert [failure["key"] for failure in told["failures"]] == ["removed"]
    assert checkout.files() == {"kept": b"1", "behind-a-marker": b"3"}
    done = checkout.run()
    assert done.returncode == 1
    assert "removed: " in done.stderr
    checkout.write_manifest([a_marker])
    (checkout.folder / "behind-a-marker").unlink()
    assert checkout.summary(status=1)["failed"] == 1


def test_killed_and_resumed(checkout: Checkout, relay: Relay) -> None:
    """kill -9 at any time: what was made is whole, only the rest is fetched, leftovers go."""
    wanted = [checkout.put(f"d{n % 3}/f{n}", content_of(n)) for n in range(120)]
    large = random.Random(2).randbytes(3 * MIB)
    wanted.append(checkout.put("large", large))
    checkout.write_manifest(wanted)

    def decide(request: Request) -> Decision:
        if request.path.endswith("/large"):
            return Fault.HANG_INSIDE
        return Fault.HANG if request.path.endswith("5") else None

    relay.decide = decide
    process = checkout.start(endpoint_url=relay.url)
    temporary = checkout.folder / HIDDEN

    def has_begun() -> bool:
        made = sum(1 for path in checkout.folder.glob("d*/f*"))
        return made >= 108 and temporary.is_dir() and any(temporary.iterdir())

    try:
        wait_until(has_begun, "some files are there", timeout_s=60)
    finally:
        process.kill()
        process.communicate()
    expected = {f"d{n % 3}/f{n}": content_of(n) for n in range(120)} | {"large": large}
    there = {name: data for name, data in checkout.files().items() if HIDDEN not in name}
    assert there.items() <= expected.items()
    assert len(there) < 121
    relay.decide = lambda request: None
    relay.forget()
    told = checkout.summary(endpoint_url=relay.url)
    assert (told["right"], told["downloaded"]) == (len(there), 121 - len(there))
    assert told["leftovers"] >= 1
    assert len(gets(relay)) == 121 - len(there)
    assert checkout.files() == expected
    assert not temporary.exists()


def test_interrupted_by_the_keyboard(checkout: Checkout, relay: Relay) -> None:
    checkout.write_manifest([checkout.put(f"f{n}", b"%d" % n) for n in range(20)])
    relay.decide = lambda request: Fault.HANG if request.path.endswith("9") else None
    process = checkout.start(endpoint_url=relay.url)
    try:
        wait_until(
            lambda: len(list(checkout.folder.glob("f*"))) >= 18, "most are there", timeout_s=60
        )
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert told.strip() == "s3mount: interrupted"
    assert not (checkout.folder / HIDDEN).exists()
    assert checkout.summary()["right"] >= 18


def test_delete_and_rehearsal(checkout: Checkout, relay: Relay) -> None:
    wanted = [checkout.put(f"d/f{n}", content_of(n)) for n in range(5)]
    checkout.write_manifest(wanted)
    (checkout.folder / "old/er").mkdir(parents=True)
    (checkout.folder / "old/er/f").write_bytes(b"old")
    (checkout.folder / "old.tmp").write_bytes(b"kept")
    done = checkout.run("--dry-run", "--delete", "--exclude", "*.tmp", endpoint_url=relay.url)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[:-1] == [f"would download d/f{n}" for n in range(5)] + ["would delete old/er/f"]
    assert relay.requests() == []
    assert checkout.files() == {"old/er/f": b"old", "old.tmp": b"kept"}
    told = checkout.summary("--delete", "--exclude", "*.tmp")
    assert (told["downloaded"], told["deleted"]) == (5, 1)
    assert checkout.files() == {f"d/f{n}": content_of(n) for n in range(5)} | {"old.tmp": b"kept"}
    assert not (checkout.folder / "old").exists()


def test_encrypted_with_a_key_of_ones_own_is_refused_and_other_opaque_etags_are_remembered(
    checkout: Checkout,
) -> None:
    """Without the key S3 refuses; an ETag that is no MD5 (here: altered) leaves the digest to decide."""
    key = base64.b64encode(bytes(range(32))).decode()
    md5 = base64.b64encode(hashlib.md5(bytes(range(32))).digest()).decode()
    secret = checkout.put(
        "secret",
        b"x" * 100,
        SSECustomerAlgorithm="AES256",
        SSECustomerKey=key,
        SSECustomerKeyMD5=md5,
    )
    plain = msgspec.structs.replace(checkout.put("plain", b"y" * 100), etag="")
    checkout.write_manifest([secret, plain])
    told = checkout.summary(status=1)
    assert [failure["key"] for failure in told["failures"]] == ["secret"]
    os.utime(checkout.folder / "plain")
    checkout.write_manifest([plain])
    told = checkout.summary()
    assert (told["right"], told["hashed"], told["downloaded"]) == (1, 1, 0)


def test_throttled_and_broken_answers_are_asked_for_again(checkout: Checkout, relay: Relay) -> None:
    wanted = [checkout.put(f"f{n}", content_of(n)) for n in range(30)]
    checkout.write_manifest(wanted)
    seen: set[str] = set()

    def decide(request: Request) -> Decision:
        if request.path in seen:
            return None
        seen.add(request.path)
        return (Answer(503, "SlowDown"), Fault.RESET, None)[len(seen) % 3]

    relay.decide = decide
    assert checkout.summary(endpoint_url=relay.url)["downloaded"] == 30
    assert checkout.files() == {f"f{n}": content_of(n) for n in range(30)}


# Targets.


@pytest.mark.parametrize("place", ["/", "/usr", "/home", "/proc/self", "~"])
def test_dangerous_targets_are_refused(checkout: Checkout, place: str) -> None:
    checkout.write_manifest([Entry("b", "k", "v", 1)])
    checkout.folder = Path(place)
    done = checkout.run("--delete", "--dry-run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_what_is_no_folder_is_refused(checkout: Checkout) -> None:
    checkout.write_manifest([Entry("b", "k", "v", 1)])
    checkout.folder.write_bytes(b"mine")
    done = checkout.run()
    assert (done.returncode, "is no folder" in done.stderr) == (2, True)
    assert checkout.folder.read_bytes() == b"mine"


def test_a_mount_is_no_target(checkout: Checkout, bucket: str, mount_factory: Any) -> None:
    mount = mount_factory(bucket)
    checkout.write_manifest([Entry("b", "k", "v", 1)])
    for folder in (mount.path, mount.path / "below", mount.path.parent):
        checkout.folder = folder
        done = checkout.run("--delete")
        assert (done.returncode, "mount" in done.stderr) == (2, True), done.stderr


@needs_root
def test_a_read_only_target(checkout: Checkout, tmp_path: Path) -> None:
    """Nothing to do is no trouble there; something to do is one line."""
    wanted = [checkout.put("f", b"1")]
    checkout.write_manifest(wanted)
    checkout.folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", checkout.folder], check=True)
    try:
        checkout.summary()
        subprocess.run(["mount", "-o", "remount,ro", checkout.folder], check=True)
        assert checkout.summary()["right"] == 1
        checkout.write_manifest([*wanted, checkout.put("g", b"2")])
        done = checkout.run()
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "Read-only file system" in done.stderr
    finally:
        subprocess.run(["umount", "-l", checkout.folder], check=True)


@needs_root
def test_a_full_disk(checkout: Checkout) -> None:
    """One line that says so, no half file, and with more room the rest."""
    contents = {f"f{n:02}": random.Random(n).randbytes(400_000 + n) for n in range(30)}
    wanted = [checkout.put(key, data) for key, data in contents.items()]
    checkout.write_manifest(wanted)
    checkout.folder.mkdir()
    size = "size=4m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", checkout.folder], check=True)
    try:
        told = checkout.summary(status=1)
        assert "No space left" in told["stopped"]
        there = checkout.files()
        assert there.items() <= contents.items()
        assert 0 < len(there) < 30
        assert not (checkout.folder / HIDDEN).exists()
        subprocess.run(["mount", "-o", "remount,size=32m", checkout.folder], check=True)
        told = checkout.summary()
        assert (told["right"], told["downloaded"]) == (len(there), 30 - len(there))
        assert checkout.files() == contents
    finally:
        subprocess.run(["umount", "-l", checkout.folder], check=True)


def test_a_bucket_that_is_not_there(checkout: Checkout) -> None:
    checkout.write_manifest([Entry("no-such-bucket-anywhere", "k", "v", 1)])
    told = checkout.summary(status=1)
    assert len(told["failures"]) == 1
    assert "no-such-bucket-anywhere" in json.dumps(told["failures"])


def test_nobody_listens(checkout: Checkout) -> None:
    checkout.write_manifest([Entry("b", f"k{n}", "v", 1) for n in range(50)])
    told = checkout.summary(status=1, endpoint_url="http://127.0.0.1:1")
    assert told["stopped"]
    assert told["downloaded"] == 0


def test_a_manifest_in_s3_and_on_standard_input(checkout: Checkout) -> None:
    checkout.write_manifest([checkout.put(f"f{n}", content_of(n)) for n in range(3)])
    checkout.client.upload_file(str(checkout.manifest), checkout.bucket, "lists/today.csv")
    local = checkout.manifest
    checkout.source = f"s3://{checkout.bucket}/lists/today.csv"
    assert checkout.summary()["downloaded"] == 3
    checkout.source = "-"
    told = checkout.summary(stdin=local.read_text())
    assert (told["right"], told["downloaded"]) == (3, 0)


def test_what_manifest_create_made(checkout: Checkout) -> None:
    old = {f"d/f{n}": content_of(n) for n in range(5)}
    for key, data in old.items():
        checkout.put(key, data)
    checkout.client.delete_object(Bucket=checkout.bucket, Key="d/f3")
    checkout.create_manifest()
    checkout.put("d/f1", b"newer")
    assert checkout.summary()["downloaded"] == 4
    assert checkout.files() == {key: data for key, data in old.items() if key != "d/f3"}


def test_a_bucket_as_it_was(checkout: Checkout) -> None:
    for key, data in (("d/a", b"1"), ("d/b", b"22"), ("e", b"3")):
        checkout.put(key, data)
    at_ns = store_time_ns(checkout.client, checkout.bucket)
    while store_time_ns(checkout.client, checkout.bucket) <= at_ns:
        continue
    checkout.put("d/a", b"changed")
    checkout.put("d/new", b"new")
    checkout.source = f"s3://{checkout.bucket}/d"
    assert checkout.summary("--at", format_time(at_ns))["downloaded"] == 2
    assert checkout.files() == {"d/a": b"1", "d/b": b"22"}
    checkout.source = f"s3://{checkout.bucket}/"
    done = checkout.run()
    assert done.returncode == 2
    assert f"s3://{checkout.bucket}/manifest.json, or a time with --at" in done.stderr

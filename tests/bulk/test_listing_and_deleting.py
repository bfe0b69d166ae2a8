"""ls, du, cat and rm on real servers."""

from __future__ import annotations

import random
import signal
import subprocess

import pytest

from tests.bulk.places import Places
from tests.fuse.bucket_contents import wait_until
from tests.servers.counting import Relay

pytestmark = pytest.mark.each_server

MIB = 1 << 20
KEYS = ["a", "a/b", "a/c/d.txt", "a/c/e.tmp", "ab", "x y*", "späße/+&?%20 ~'()"]


def test_ls_shows_folders_trees_patterns_and_buckets(places: Places) -> None:
    places.put(*KEYS)
    assert places.lines("ls", "{b}") == ["a", "a/", "ab", "späße/", "x y*"]
    assert places.lines("ls", "{b}/a/") == ["b", "c/"]
    assert places.lines("ls", "{b}/a") == ["a", "a/"]
    assert places.lines("ls", "-R", "{b}") == sorted(KEYS)
    assert places.lines("ls", "-R", "{b}/a") == ["a", "a/b", "a/c/d.txt", "a/c/e.tmp"]
    assert places.lines("ls", "{b}/*/c/*.t?t") == ["a/c/d.txt"]
    assert places.lines("ls", "{b}/x y*", "--raw") == ["x y*"]
    assert places.lines("ls", "-R", "{b}", "--exclude", "a/") == [
        "a",
        "ab",
        "späße/+&?%20 ~'()",
        "x y*",
    ]
    assert f"s3://{places.bucket}" in places.lines("ls")
    (told,) = places.told("ls", "-R", "{b}/a/b")
    head = places.client.head_object(Bucket=places.bucket, Key="a/b")
    assert (told["url"], told["bytes"]) == (f"s3://{places.bucket}/a/b", 3)
    assert told["etag"] == head["ETag"].strip('"')
    (line,) = places.lines("ls", "-l", "-e", "{b}/a/b")
    assert line.split() == [
        head["LastModified"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "3",
        "STANDARD",
        told["etag"],
        "b",
    ]


def test_ls_of_what_is_not_there_or_not_in_s3(places: Places) -> None:
    assert places.lines("ls", "{b}") == []
    assert "nothing lies below" in places.error("ls", "{b}/none/", status=5)
    assert "nothing fits" in places.error("ls", "{b}/*.none", status=5)
    assert "is a local path, for which ls itself" in places.error("ls", "/tmp", status=7)
    assert "names no bucket" in places.error("ls", "s3:///k", status=7)


def test_ls_and_du_tell_versions(versioned: Places) -> None:
    versioned.put("k", body=b"1")
    versioned.put("k", body=b"22")
    versioned.client.delete_object(Bucket=versioned.bucket, Key="k")
    versioned.put("k2", body=b"333")
    assert versioned.lines("ls", "{b}") == ["k2"]
    told = versioned.told("ls", "--versions", "{b}")
    assert [each["type"] for each in told] == ["delete marker", "version", "version", "version"]
    assert {each["version_id"] for each in told} == {each for _, each in versioned.versions()}
    assert len(versioned.lines("ls", "--versions", "{b}/k")) == 3
    (sums,) = versioned.told("du", "--versions", "{b}")
    assert (sums["objects"], sums["bytes"]) == (3, 6)
    assert sums["storage_classes"] == {"STANDARD": {"objects": 3, "bytes": 6}}
    assert versioned.lines("du", "-g", "{b}")[1].split()[:3] == ["3", "1", "objects"]


def test_cat_writes_objects_in_order(places: Places) -> None:
    data = random.Random(1).randbytes(21 * MIB + 5)
    places.put("large", body=data)
    places.put("empty", body=b"")
    places.put(*(f"d/{n:02}" for n in range(30)))
    assert places.run("cat", "{b}/large", "{b}/empty", "{b}/d/*").stdout == data + b"".join(
        f"d/{n:02}".encode() for n in range(30)
    )
    assert "none is not there; a folder needs" in places.error("cat", "{b}/none", status=5)
    piped = subprocess.Popen(
        places.argv("cat", "{b}/large"),
        env=places.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert piped.stdout is not None
    assert piped.stdout.read(10) == data[:10]
    piped.stdout.close()
    assert piped.wait(timeout=60) == 1
    assert piped.stderr is not None
    assert piped.stderr.read() == b""
    piped.stderr.close()


def test_cat_of_a_version(versioned: Places) -> None:
    old = versioned.client.put_object(Bucket=versioned.bucket, Key="k", Body=b"old")["VersionId"]
    versioned.put("k", body=b"new")
    assert versioned.run("cat", "{b}/k").stdout == b"new"
    assert versioned.run("cat", "--version-id", old, "{b}/k").stdout == b"old"


def test_rm_deletes_what_is_named_and_no_more(places: Places) -> None:
    places.put(*KEYS)
    for refused in (["rm", "{b}"], ["rm", "{b}/*"], ["rm", "{b}/a/"]):
        assert "-r" in places.error(*refused, status=2)
    assert places.keys() == sorted(KEYS)
    assert places.lines("rm", "{b}/a/c/*.tmp") == [f"rm s3://{places.bucket}/a/c/e.tmp"]
    assert places.told("rm", "-r", "{b}/a")[-1]["objects"] == 3
    assert places.keys() == ["ab", "späße/+&?%20 ~'()", "x y*"]
    # As with S3 itself, what is not there is gone.
    assert places.lines("rm", "-q", "{b}/never", "--raw", "{b}/x y*") == []
    assert places.keys() == ["ab", "späße/+&?%20 ~'()"]
    assert "nothing lies below" in places.error("rm", "-r", "{b}/none", status=5)
    places.run("rm", "-r", "{b}")
    assert places.keys() == []


def test_a_dry_run_of_rm_changes_nothing_and_can_be_run(places: Places) -> None:
    places.put(*KEYS)
    lines = places.lines("rm", "-r", "-n", "{b}")
    assert len(lines) == len(KEYS)
    assert f"rm --raw 's3://{places.bucket}/x y*'" in lines
    assert places.keys() == sorted(KEYS)


def test_rm_takes_names_from_a_file(places: Places) -> None:
    places.put("d/a", "d/b c", "d/e\nf", "d/g")
    places.run("rm", "--files-from", "-", "{b}/d/", stdin=b"a\nb c\r\n")
    assert places.keys() == ["d/e\nf", "d/g"]
    places.run("rm", "--files-from0", "-", "{b}/d/", stdin=b"e\nf\0")
    assert places.keys() == ["d/g"]


def test_rm_of_versions(versioned: Places) -> None:
    for _ in range(3):
        versioned.put("k", "k2", "d/x")
    versioned.run("rm", "{b}/k", "{b}/d/x")
    assert versioned.keys() == ["k2"]
    assert len(versioned.versions()) == 11
    versioned.run("rm", "--versions", "{b}/k")
    assert {key for key, _ in versioned.versions()} == {"k2", "d/x"}
    victim = next(each for key, each in versioned.versions() if key == "k2")
    versioned.run("rm", "--version-id", victim, "{b}/k2")
    assert victim not in {each for _, each in versioned.versions()}
    versioned.run("rm", "-r", "--versions", "{b}")
    assert versioned.versions() == []


@pytest.mark.timeout(240)
def test_many_keys_go_by_few_requests(places: Places) -> None:
    """2,500 keys: three DeleteObjects, and a list that is read while they go."""
    names = [f"many/{n:05}" for n in range(2500)]
    with Relay(places.server.endpoint_url) as relay:
        stdin = "\n".join(name.removeprefix("many/") for name in names).encode()
        places.run(
            "rm", "-q", "--files-from", "-", "{b}/many/", stdin=stdin, endpoint_url=relay.url
        )
        assert len(relay.requests("POST")) == 3


def test_interrupted_rm_says_so(places: Places) -> None:
    places.put("a", "b")
    with Relay(places.server.endpoint_url) as relay, relay.holding("POST"):
        running = subprocess.Popen(
            places.argv("rm", "-r", "{b}", endpoint_url=relay.url),
            env=places.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: bool(relay.requests("POST")), "the command deletes", timeout_s=60)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.strip().splitlines()[-1] == "s3mount: interrupted"

"""``s3mount pack`` on real servers: what is packed is read by anybody's range GET, and survives a kill at any step."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.bulk.places import Places
from tests.fuse.bucket_contents import wait_until
from tests.servers import S3Server
from tests.servers.counting import Decision, Fault, Relay, Request


def tree(folder: Path, count: int) -> dict[str, bytes]:
    """Small files; what they hold by name."""
    made = {f"sub{n % 3}/{n:04} é": b"%d " % n * (n % 50) for n in range(count)}
    for name, data in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o640)
        os.utime(path, ns=(1, 1_500_000_000_123_456_789))
    return made


def read_alone(places: Places, about: dict[str, Any]) -> bytes:
    """What a plain range GET brings of a member."""
    if not about["size"]:
        return b""
    span = f"bytes={about['body']}-{about['body'] + about['size'] - 1}"
    more = {"VersionId": about["version_id"]} if about.get("version_id") else {}
    answer = places.client.get_object(
        Bucket=about["bucket"], Key=about["key"], Range=span, IfMatch=about["etag"], **more
    )
    data: bytes = answer["Body"].read()
    return data


def test_packed_files_are_listed_located_and_read_by_anybody(
    places: Places, tmp_path: Path
) -> None:
    made = tree(tmp_path / "src", 120)
    told = places.told("pack", "create", "src/", "{b}/in/", "--pack-files", "50")
    assert told[-1]["success"]
    assert (told[-1]["objects"], told[-1]["bytes"]) == (120, sum(map(len, made.values())))
    keys = places.keys()
    packs = [key for key in keys if key.endswith(".tar")]
    assert len(packs) == 3
    assert keys == sorted(packs + [f"{key}.idx" for key in packs])
    assert {line["destination"] for line in told[:-1]} == {
        f"s3://{places.bucket}/{key}" for key in packs
    }
    assert places.lines("pack", "ls", "{b}/in/") == sorted(made, key=str.encode)
    listed = {line["name"]: line for line in places.told("pack", "ls", "{b}/in/")}
    assert (listed["sub1/0001 é"]["mode"], listed["sub1/0001 é"]["mtime"]) == (
        *("0640", "1500000000.123456789"),
    )
    for name in list(made)[::10]:
        assert read_alone(places, listed[name]) == made[name]
    located = places.lines("pack", "locate", "{b}/in/", "sub1/0001 é", "sub2/0005 é")
    assert len(located) == 2
    assert "no pack" in places.error("pack", "locate", "{b}/in/", "none", status=5)
    for pack in packs:
        places.client.download_file(places.bucket, pack, str(tmp_path / "one.tar"))
        done = subprocess.run(
            ["tar", "tf", tmp_path / "one.tar"], check=True, capture_output=True, timeout=30
        )
        assert done.stderr == b""


def test_a_later_pack_replaces_and_single_files_keep_their_name(
    versioned: Places, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "b").write_bytes(b"b")
    versioned.run("pack", "create", "a", "src", "{b}/in/")
    (tmp_path / "a").write_bytes(b"newer")
    versioned.run("pack", "create", "a", "{b}/in/")
    assert versioned.lines("pack", "ls", "{b}/in/") == ["a", "src/b"]

    (line,) = versioned.lines("pack", "locate", "{b}/in/", "a")
    about = json.loads(line)
    assert about["version_id"]
    assert read_alone(versioned, about) == b"newer"
    alive = {
        each["key"]: each["live"] for each in versioned.told("pack", "ls", "--packs", "{b}/in/")
    }
    assert sorted(alive.values()) == [1, 1]


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_what_cannot_be_packed_is_told_and_the_rest_is_packed(
    places: Places, tmp_path: Path
) -> None:
    src = tmp_path / "src"
    tree(src, 3)
    os.mkfifo(src / "pipe")
    told = places.told("pack", "create", "src/", "missing", "{b}/in/", status=1)
    assert {line["source"] for line in told[:-1] if not line["success"]} == {"src/pipe", "missing"}
    assert len(places.lines("pack", "ls", "{b}/in/")) == 3
    dry = places.told("pack", "create", "-n", "src/", "{b}/dry/", status=1)
    assert dry[-1]["dry_run"]
    present = places.keys()
    assert not [key for key in present if key.startswith("dry/")]
    assert "slash" in places.error("pack", "create", "src/", "{b}/in", status=6)
    assert "no pack lies" in places.error("pack", "ls", "{b}/none/", status=5)
    assert "local" in places.error("pack", "create", "{b}/x", "{b}/in/", status=5)


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_a_kill_between_the_pack_and_its_index_loses_nothing(
    places: Places, s3_server: S3Server, tmp_path: Path
) -> None:
    made = tree(tmp_path / "src", 30)
    with Relay(s3_server.endpoint_url) as relay:
        hung: list[str] = []

        def decide(request: Request) -> Decision:
            if request.method == "PUT" and request.path.endswith(".idx"):
                hung.append(request.path)
                return Fault.HANG
            return None

        relay.decide = decide
        process = subprocess.Popen(
            places.argv("pack", "create", "src/", "{b}/in/", endpoint_url=relay.url),
            env=places.environment(),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: bool(hung), "the index was sent", timeout_s=60)
        finally:
            process.kill()
            process.wait()
    (pack,) = places.keys()
    assert pack.endswith(".tar")
    listed = places.told("pack", "ls", "{b}/in/")
    assert {each["name"] for each in listed} == set(made)
    assert all(read_alone(places, each) == made[each["name"]] for each in listed)
    # Done again, nothing is twice.
    places.run("pack", "create", "src/", "{b}/in/")
    assert places.lines("pack", "ls", "{b}/in/") == sorted(made, key=str.encode)


@pytest.mark.timeout(300)
def test_packs_are_unpacked_as_they_were_and_compacted(versioned: Places, tmp_path: Path) -> None:
    made = tree(tmp_path / "src", 60)
    versioned.run("pack", "create", "src/", "{b}/in/", "--pack-files", "30")
    told = versioned.told("pack", "unpack", "{b}/in/", "got")
    assert (told[-1]["objects"], told[-1]["failed"]) == (60, 0)
    for name, data in made.items():
        about = (tmp_path / "got" / name).stat()
        assert (tmp_path / "got" / name).read_bytes() == data
        assert (about.st_mode & 0o777, about.st_mtime_ns) == (0o640, 1_500_000_000_123_456_789)
    versioned.run("pack", "unpack", "{b}/in/", "{b}/out/", "sub1/0001 é", "sub2/0005 é")
    head = versioned.client.head_object(Bucket=versioned.bucket, Key="out/sub1/0001 é")
    assert head["Metadata"]["mtime"] == "1500000000.123456789"
    present = versioned.keys()
    assert sorted(key for key in present if key.startswith("out/")) == [
        *("out/sub1/0001 é", "out/sub2/0005 é"),
    ]
    # All but a few are replaced: their packs are written anew, and the old ones are gone for good.
    for name in list(made)[5:]:
        (tmp_path / "src" / name).write_bytes(b"new")
        made[name] = b"new"
    versioned.run("pack", "create", "src/", "{b}/in/", "--exclude", "*/0000 é")
    present = versioned.keys()
    old = {key for key in present if key.endswith(".tar")}
    dry = versioned.told("pack", "compact", "-n", "{b}/in/")
    assert dry[-1]["objects"] == 2
    told = versioned.told("pack", "compact", "{b}/in/")
    assert (told[-1]["objects"], told[-1]["failed"]) == (2, 0)
    gone = {line["source"].partition(f"{versioned.bucket}/")[2] for line in told[:-1]}
    assert len(gone & old) == 2
    assert not {key for key, _ in versioned.versions()} & gone
    versioned.run("pack", "unpack", "{b}/in/", "again")
    for name, data in made.items():
        assert (tmp_path / "again" / name).read_bytes() == data
    assert versioned.told("pack", "compact", "{b}/in/")[-1]["objects"] == 0


@pytest.mark.timeout(300)
def test_a_tar_file_of_gnu_tar_gets_an_index(places: Places, tmp_path: Path) -> None:
    made = tree(tmp_path / "src", 20)
    subprocess.run(
        ["tar", "-C", tmp_path / "src", "-cf", tmp_path / "g.tar", "."], check=True, timeout=30
    )
    places.put("a/g.tar", body=(tmp_path / "g.tar").read_bytes())
    assert "no index" in places.error("pack", "ls", "{b}/a/g.tar", status=1)
    places.run("pack", "index", "{b}/a/g.tar")
    listed = {line["name"]: line for line in places.told("pack", "ls", "{b}/a/g.tar")}
    assert {name for name, line in listed.items() if line["type"] == "file"} == set(made)
    for name in list(made)[:5]:
        assert read_alone(places, listed[name]) == made[name]
    assert "--force" in places.error("pack", "index", "{b}/a/g.tar", status=3)
    places.run("pack", "index", "--force", "{b}/a/g.tar")
    places.run("pack", "unpack", "{b}/a/g.tar", "got")
    assert (tmp_path / "got" / "sub1/0001 é").read_bytes() == made["sub1/0001 é"]
    places.put("a/z.tar", body=b"\x1f\x8b" + bytes(2000))
    assert "gzip" in places.error("pack", "index", "{b}/a/z.tar", status=1)


def test_members_are_objects_to_commands_that_read(places: Places, tmp_path: Path) -> None:
    made = tree(tmp_path / "src", 30)
    places.run("pack", "create", "src/", "{b}/in/", "--pack-files", "20")
    places.put("in/plain")
    packs = ("--packs", "{b}/in/")
    names = places.lines("ls", "-r", *packs, "{b}/in/")
    assert sorted(names) == sorted([*made, "plain"])
    assert places.lines("ls", *packs, "{b}/in/") == ["plain", "sub0/", "sub1/", "sub2/"]
    shown = places.run("cat", *packs, "{b}/in/sub1/0007 é")
    assert shown.stdout == made["sub1/0007 é"]
    (tmp_path / "src/plain").write_bytes(b"in/plain")
    told = places.told("verify", *packs, "src/", "{b}/in/")
    assert (told[-1]["objects"], told[-1]["failed"]) == (31, 0)
    (tmp_path / "src/sub1/0007 é").write_bytes(made["sub1/0007 é"][::-1])
    told = places.told("verify", *packs, "src/", "{b}/in/", status=1)
    assert (told[-1]["objects"], told[-1]["failed"]) == (31, 1)

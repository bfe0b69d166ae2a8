"""``s3mount cp`` and ``mv`` as users call them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bulk.moving import MIB, Moving, random_bytes
from tests.bulk.places import Places
from tests.conftest import own_bucket
from tests.servers import S3Server

pytestmark = pytest.mark.each_server

LARGE = random_bytes(12 * MIB + 345)


@pytest.fixture
def moving(s3_server: S3Server, bucket: str, tmp_path: Path) -> Moving:
    return Moving(s3_server, bucket, tmp_path)


@pytest.fixture
def other(s3_server: S3Server) -> Iterator[str]:
    """Another bucket."""
    yield from own_bucket(s3_server, versioned=False)


@pytest.fixture
def source_bucket(localstack: S3Server) -> Iterator[str]:
    """A bucket of another store."""
    yield from own_bucket(localstack, versioned=False)


def test_a_folder_goes_up_and_comes_back_as_it_was(moving: Moving) -> None:
    files = {"a.txt": b"hello", "sub/é.html": b"", "sub/deep/large": LARGE}
    for name, data in files.items():
        path = moving.write(f"src/{name}", data)
        path.chmod(0o640)
        os.utime(path, ns=(1, 1_500_000_000_123_456_789))
    lines = moving.told("cp", "-r", "src", f"{moving.s3}/in/", "--part-size", "5M")
    assert lines[-1]["objects"] == 3
    assert lines[-1]["bytes"] == sum(map(len, files.values()))
    assert {line["destination"] for line in lines[:-1]} == {
        f"{moving.s3}/in/src/{name}" for name in files
    }
    assert moving.keys() == sorted((f"in/src/{name}" for name in files), key=str.encode)
    head = moving.client.head_object(Bucket=moving.bucket, Key="in/src/sub/é.html")
    assert head["ContentType"] == "text/html"
    assert head["Metadata"]["mtime"] == "1500000000.123456789"
    moving.told("cp", f"{moving.s3}/in/src/", "back")
    for name, data in files.items():
        path = moving.folder / "back" / name
        assert path.read_bytes() == data
        assert path.stat().st_mtime_ns == 1_500_000_000_123_456_789
        assert path.stat().st_mode & 0o777 == 0o640
    assert moving.uploads() == []


@pytest.mark.parametrize(
    ("source", "destination", "key"),
    [
        (("src/a",), "", "a"),
        (("src/a",), "/into/", "into/a"),
        (("src/a",), "/b", "b"),
        (("-r", "src"), "/new", "new/a"),
        (("-r", "src"), "", "src/a"),
        (("src/",), "/into/", "into/a"),
        (("-r", "src", "--exclude", "*", "src/a"), "/into/", "into/a"),
    ],
)
@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_a_trailing_slash_means_into_and_what_lies_in(
    moving: Moving, source: tuple[str, ...], destination: str, key: str
) -> None:
    moving.write("src/a", b"a")
    told = moving.told("cp", *source, moving.s3 + destination)
    assert told[-1]["success"]
    assert moving.keys() == [key]


def test_what_is_stored_beside_the_bytes_is_said_and_goes_along(moving: Moving, other: str) -> None:
    moving.write("page", b"<html>")
    options = (
        "--metadata",
        "Color=grün",
        "--content-type",
        "text/html",
        "--cache-control",
        "no-store",
    )
    moving.told("cp", "page", f"{moving.s3}/page", *options, "--tagging", "a=1&b=2")
    moving.told("cp", f"{moving.s3}/page", f"s3://{other}/x/", "--metadata", "more=1")
    moving.told("cp", f"{moving.s3}/page", f"{moving.s3}/copy", "--content-type", "text/plain")
    for bucket, key, kind in (
        (other, "x/page", "text/html"),
        (moving.bucket, "copy", "text/plain"),
    ):
        head = moving.client.head_object(Bucket=bucket, Key=key)
        assert head["ContentType"] == kind
        assert head["CacheControl"] == "no-store"
        assert head["Metadata"]["color"].encode("latin-1").decode() == "grün"
        assert head["Metadata"].get("more") == ("1" if bucket == other else None)
        assert "mtime" in head["Metadata"]
        tags = moving.client.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {"a": "1", "b": "2"}


@pytest.mark.parametrize("size", [0, 5 * MIB, 12 * MIB + 345])
def test_a_stream_of_unknown_length(moving: Moving, size: int) -> None:
    told = moving.told("cp", "--part-size", "5M", "-", f"{moving.s3}/s", stdin=LARGE[:size])
    assert told[0]["bytes"] == size
    assert moving.get("s") == LARGE[:size]
    done = moving.run("cp", f"{moving.s3}/s", "-")
    assert (done.returncode, done.stdout) == (0, LARGE[:size]), done.stderr
    assert moving.uploads() == []


def test_moving_deletes_what_was_moved(
    s3_server: S3Server, versioned_bucket: str, tmp_path: Path
) -> None:
    moving = Moving(s3_server, versioned_bucket, tmp_path)
    moving.write("f", LARGE)
    moving.told("mv", "f", f"{moving.s3}/f", "--part-size", "5M")
    assert not (tmp_path / "f").exists()
    moving.told("mv", f"{moving.s3}/f", f"{moving.s3}/g")
    assert moving.keys() == ["g"]
    first = moving.put("g", b"second")["VersionId"]
    moving.told("mv", f"{moving.s3}/g", "back")
    assert (tmp_path / "back").read_bytes() == b"second"
    assert moving.keys() == []
    versions = moving.client.list_object_versions(Bucket=moving.bucket)
    assert len(versions["Versions"]) == 3
    assert len(versions["DeleteMarkers"]) == 2
    moving.told("mv", f"{moving.s3}/g", "old", "--version-id", first)
    versions = moving.client.list_object_versions(Bucket=moving.bucket)["Versions"]
    assert first not in {each["VersionId"] for each in versions}


def test_a_folders_marker_becomes_a_folder_and_bytes_below_such_a_name_stay(
    s3_server: S3Server, versioned_bucket: str, tmp_path: Path
) -> None:
    moving = Moving(s3_server, versioned_bucket, tmp_path)
    moving.put("d/empty/", b"")
    moving.put("d/full/", b"bytes")
    lines = moving.told("mv", "-r", f"{moving.s3}/d/", "here", status=1)
    assert [line["success"] for line in sorted(lines[:-1], key=lambda line: line["source"])] == [
        True,
        False,
    ]
    assert (tmp_path / "here" / "empty").is_dir()
    assert moving.keys() == ["d/full/"]


@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("nowhere", "{s3}/x"), 5, "No such file"),
        ((".", "{s3}/x"), 5, "needs -r"),
        (("{s3}/nothing", "x"), 5, "is not there"),
        (("{s3}/nothing/", "x"), 5, "nothing lies below"),
        (("{s3}/a", "."), 0, ""),
        (("{s3}/a", "file/x"), 6, "a file is in the way"),
        (("{s3}/../b", "into/"), 0, ""),
        (("-r", "{s3}/", "into/"), 1, "would lead out"),
        (("s3:///a", "x"), 7, "names no bucket"),
        (("{s3}/" + "k" * 1025, "x"), 7, "S3 takes 1024"),
        (("file", "{s3}/x", "--part-size", "4M"), 8, "5 MiB to 5 GiB"),
        (("{s3}/a", "{s3}/a"), 6, "the same object"),
        (("file", "file", "{s3}/x"), 2, "need a folder"),
        (("file", "other"), 2, "has to be in S3"),
        (("file",), 2, "a source and a destination"),
        (("file", "http://example.com/x"), 6, "nothing can be written there"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    moving: Moving, arguments: tuple[str, ...], status: int, message: str
) -> None:
    moving.put("a", b"a")
    moving.put("../b", b"b")
    moving.write("file", b"f")
    done = moving.run("cp", *(each.format(s3=moving.s3) for each in arguments))
    told = done.stderr.decode()
    assert done.returncode == status, told
    assert message in told
    assert "Traceback" not in told
    assert sorted(moving.keys()) == ["../b", "a"]


def test_a_dry_run_tells_what_run_would_take(moving: Moving) -> None:
    moving.write("src/a b", b"a")
    done = moving.run("cp", "-n", "-r", "src", f"{moving.s3}/*/", "--content-type", "text/plain")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines() == [
        f"cp --raw --content-type text/plain 'src/a b' '{moving.s3}/*/src/a b'"
    ]
    assert moving.keys() == []


@pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)
def test_between_two_stores_the_bytes_come_through_here(
    moving: Moving, localstack: S3Server, source_bucket: str, tmp_path: Path
) -> None:
    source = Moving(localstack, source_bucket, tmp_path)
    source.put("large", LARGE, Metadata={"mtime": "1.5"}, ContentType="text/plain")
    source.put("small", b"s")
    (tmp_path / "config").write_text("[profile there]\n")
    keys = localstack.environment()
    (tmp_path / "credentials").write_text(
        f"[there]\naws_access_key_id={keys['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key={keys['AWS_SECRET_ACCESS_KEY']}\n"
    )
    done = moving.run(
        "mv",
        *("-r", f"{source.s3}/", f"{moving.s3}/in/", "--part-size", "5M"),
        *("--source-endpoint-url", localstack.endpoint_url, "--source-profile", "there"),
        AWS_CONFIG_FILE=str(tmp_path / "config"),
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"),
    )
    assert done.returncode == 0, done.stderr
    assert moving.get("in/large") == LARGE
    assert moving.get("in/small") == b"s"
    head = moving.client.head_object(Bucket=moving.bucket, Key="in/large")
    assert (head["ContentType"], head["Metadata"]["mtime"]) == ("text/plain", "1.5")
    assert source.keys() == []


def test_of_several_sources_called_alike_the_last_one_stays(places: Places) -> None:
    names = [f"{number}" for number in range(24)]
    for name in names:
        (places.folder / name).mkdir()
        (places.folder / name / "same").write_text(name)
        (places.folder / f"own-{name}").write_text(name)
    places.run("cp", *(f"{name}/same" for name in names), "{b}/alike/")
    places.run("cp", *(f"own-{name}" for name in names), "{b}/own/")
    assert places.keys() == ["alike/same", *sorted(f"own/own-{name}" for name in names)]
    body = places.client.get_object(Bucket=places.bucket, Key="alike/same")["Body"].read()
    assert body == names[-1].encode()
    copied = [f"{{b}}/own/own-{name}" for name in names]
    places.run("cp", *copied, "back/")
    assert {path.read_text() for path in (places.folder / "back").iterdir()} == set(names)

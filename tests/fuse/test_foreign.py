"""A bucket that others write to as well: what the mount shows of it, when, and what it leaves alone."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from botocore.exceptions import ClientError

from tests.conftest import LONG
from tests.fuse.bucket_contents import OWN_PREFIX, S3Contents, wait_until
from tests.fuse.mounts import status_of
from tests.fuse.outcomes import outcome
from tests.fuse.places import Place
from tests.fuse.seeding import put_many
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import WRITING, Relay, Request

pytestmark = [pytest.mark.needs_s3, pytest.mark.each_server]
MIB = 1 << 20
SECOND_NS = 1_000_000_000
TTL_S = 1.0
"""The default of --metadata-ttl."""


def after_the_ttl() -> None:
    """Let what is known of the bucket become old."""
    time.sleep(TTL_S + 0.3)


def test_new_objects_appear(place: Place) -> None:
    """A name that was missing, an entry of a folder that was listed, a folder that nobody made."""
    (place.path / "folder").mkdir()
    (place.path / "folder/own").write_bytes(b"own")
    place.mount.wait()
    assert outcome(lambda: (place.path / "file").stat()) == "ENOENT"
    assert os.listdir(place.path / "folder") == ["own"]
    place.contents.put(f"{place.prefix}file", b"foreign")
    place.contents.put(f"{place.prefix}folder/new", b"new")
    place.contents.put(f"{place.prefix}implied/deep/file", b"deep")
    after_the_ttl()
    assert (place.path / "file").read_bytes() == b"foreign"
    assert sorted(os.listdir(place.path / "folder")) == ["new", "own"]
    assert sorted(os.listdir(place.path)) == ["file", "folder", "implied"]
    assert (place.path / "implied/deep/file").read_bytes() == b"deep"


@pytest.mark.parametrize("new", [b"second", b"another length", b""])
def test_overwritten_object_is_seen_on_the_next_open(place: Place, new: bytes) -> None:
    """Also one of the same size, written in the same second."""
    place.contents.put(f"{place.prefix}file", b"first!")
    wait_until((place.path / "file").exists, "the file appears")
    assert (place.path / "file").read_bytes() == b"first!"
    before = (place.path / "file").stat()
    place.contents.put(f"{place.prefix}file", new)
    after_the_ttl()
    assert (place.path / "file").read_bytes() == new
    assert (place.path / "file").stat().st_size == len(new)
    assert (place.path / "file").stat().st_ino != before.st_ino


def test_own_file_overwritten_by_others(place: Place) -> None:
    """What was written through the mount and then replaced by others is theirs then."""
    (place.path / "file").write_bytes(b"mine")
    place.mount.wait()
    place.contents.put(f"{place.prefix}file", b"theirs")
    after_the_ttl()
    assert (place.path / "file").read_bytes() == b"theirs"
    with (place.path / "file").open("ab") as file:
        file.write(b" and mine")
    assert place.in_bucket("file") == b"theirs and mine"


def _read_on(handle: int, size: int, start: int) -> tuple[bytes, str]:
    """Read from ``start`` to the end in pieces: what came, and how it ended."""
    got = b""
    while start + len(got) < size:
        try:
            piece = os.pread(handle, 128 * 1024, start + len(got))
        except OSError as error:
            return got, os.strerror(error.errno or 0)
        if not piece:
            return got, "end"
        got += piece
    return got, "complete"


@pytest.mark.parametrize("change", ["overwritten", "deleted"])
def test_open_handle_shows_one_version(place: Place, change: str) -> None:
    """From the first byte to the last of it, or an error where S3 no longer has it: never a mixture."""
    size = 20 * MIB
    old, new = b"old!" * (size // 4), b"new!" * (size // 4)
    place.contents.put(f"{place.prefix}file", old)
    wait_until((place.path / "file").exists, "the file appears")
    handle = os.open(place.path / "file", os.O_RDONLY)
    try:
        assert os.pread(handle, 4096, 0) == old[:4096]
        if change == "overwritten":
            place.contents.put(f"{place.prefix}file", new)
        else:
            place.contents.delete(f"{place.prefix}file")
        after_the_ttl()
        got, ended = _read_on(handle, size, 4096)
        assert got == old[4096 : 4096 + len(got)]
        assert ended in ("complete", os.strerror(5), os.strerror(116))
        if change == "overwritten":
            assert (place.path / "file").read_bytes() == new
        else:
            assert outcome((place.path / "file").stat) == "ENOENT"
        assert os.pread(handle, 4096, 0) == old[:4096]
    finally:
        os.close(handle)


@pytest.mark.parametrize("change", ["overwritten", "deleted"])
def test_open_handle_keeps_its_version(
    versioned_bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server, change: str
) -> None:
    """Where the bucket keeps versions, the handle reads its own to the last byte."""
    contents = S3Contents(s3_server.boto3_client(), versioned_bucket)
    size = 20 * MIB
    old, new = b"old!" * (size // 4), b"new!" * (size // 4)
    contents.put("file", old)
    mount = mount_factory(versioned_bucket)
    with (mount.path / "file").open("rb", buffering=0) as file:
        assert file.read(4096) == old[:4096]
        if change == "overwritten":
            contents.put("file", new)
        else:
            contents.delete("file")
        after_the_ttl()
        assert _read_on(file.fileno(), size, 4096) == (old[4096:], "complete")
        if change == "overwritten":
            assert (mount.path / "file").read_bytes() == new


def test_deleted_objects_vanish(place: Place) -> None:
    """From the listing and by name; a folder that only they implied vanishes with them."""
    for key in ("file", "folder/one", "folder/two", "implied/only"):
        place.contents.put(place.prefix + key, b"content")
    wait_until((place.path / "implied").exists, "the folder appears")
    assert sorted(os.listdir(place.path / "folder")) == ["one", "two"]
    assert (place.path / "file").read_bytes() == b"content"
    for key in ("file", "folder/one", "implied/only"):
        place.contents.delete(place.prefix + key)
    after_the_ttl()
    assert outcome((place.path / "file").stat) == "ENOENT"
    assert outcome((place.path / "file").read_bytes) == "ENOENT"
    assert os.listdir(place.path / "folder") == ["two"]
    assert os.listdir(place.path) == ["folder"]


def test_a_name_changes_its_kind(place: Place) -> None:
    """A file becomes a folder in the bucket, and a folder a file."""
    place.contents.put(f"{place.prefix}one", b"file")
    place.contents.put(f"{place.prefix}two/file", b"in a folder")
    wait_until((place.path / "two/file").exists, "the file appears")
    assert (place.path / "one").is_file()
    place.contents.delete(f"{place.prefix}one")
    place.contents.delete(f"{place.prefix}two/file")
    place.contents.put(f"{place.prefix}one/file", b"now a folder")
    place.contents.put(f"{place.prefix}two", b"now a file")
    after_the_ttl()
    assert (place.path / "one/file").read_bytes() == b"now a folder"
    assert (place.path / "two").read_bytes() == b"now a file"


def test_folders_without_and_with_markers(place: Place) -> None:
    """Implied by keys, or there by an empty object whose key ends in a slash."""
    place.contents.put(f"{place.prefix}implied/a/b/file", b"x")
    place.contents.put(f"{place.prefix}marked/", b"")
    place.contents.put(f"{place.prefix}both/", b"")
    place.contents.put(f"{place.prefix}both/file", b"y")
    wait_until((place.path / "both").exists, "the folder appears")
    seen = sorted(
        str(Path(folder, name).relative_to(place.path))
        for folder, folders, files in os.walk(place.path)
        for name in (*folders, *files)
    )
    assert seen == [
        "both",
        "both/file",
        "implied",
        "implied/a",
        "implied/a/b",
        "implied/a/b/file",
        "marked",
    ]
    (place.path / "marked/new").write_bytes(b"new")
    (place.path / "both/file").unlink()
    (place.path / "both").rmdir()
    assert place.keys_in_bucket() - {"implied/", "implied/a/", "implied/a/b/"} == {
        "implied/a/b/file",
        "marked/",
        "marked/new",
    }


class Dialect(NamedTuple):
    """One object as another tool stores it, and what it must look like."""

    metadata: dict[str, str]
    mode: int
    owner: tuple[int, int]
    mtime_ns: int | None
    body: bytes = b"content"


DIALECTS = {
    "s3fs": Dialect(
        {"mode": str(stat.S_IFREG | 0o640), "uid": "1001", "gid": "1002", "mtime": "1600000000"},
        stat.S_IFREG | 0o640,
        (1001, 1002),
        1_600_000_000 * SECOND_NS,
    ),
    "s3fs with nanoseconds": Dialect(
        {
            "mode": str(stat.S_IFREG | 0o4711),
            "uid": "7",
            "gid": "8",
            "mtime": "1600000000.123456789",
        },
        stat.S_IFREG | 0o4711,
        (7, 8),
        1_600_000_000_123_456_789,
    ),
    "s3fs link": Dialect(
        {"mode": str(stat.S_IFLNK | 0o777), "uid": "7", "gid": "8", "mtime": "1600000000"},
        stat.S_IFLNK | 0o777,
        (7, 8),
        1_600_000_000 * SECOND_NS,
        b"target",
    ),
    "rclone": Dialect(
        {"mtime": "1600000000.5"},
        stat.S_IFREG | 0o644,
        (os.getuid(), os.getgid()),
        1_600_000_000_500_000_000,
    ),
    "rclone with nanoseconds": Dialect(
        {"mtime": "1600000000.000000007"},
        stat.S_IFREG | 0o644,
        (os.getuid(), os.getgid()),
        1_600_000_000_000_000_007,
    ),
    "aws": Dialect(
        {
            "file-permissions": "0100664",
            "file-owner": "500",
            "file-group": "501",
            "file-mtime": "1600000000123456789ns",
        },
        stat.S_IFREG | 0o664,
        (500, 501),
        1_600_000_000_123_456_789,
    ),
    "nonsense": Dialect(
        {"mode": "rw-r--r--", "uid": "root", "gid": "-5", "mtime": "yesterday"},
        stat.S_IFREG | 0o644,
        (os.getuid(), os.getgid()),
        None,
    ),
}


def test_attributes_that_other_tools_wrote(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """s3fs's, rclone's and AWS's, and nonsense, which is as good as none."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    for name, dialect in DIALECTS.items():
        contents.put(name, dialect.body, dialect.metadata)
    folder_mode = {"mode": str(stat.S_IFDIR | 0o710), "uid": "5", "gid": "6", "mtime": "1500000000"}
    contents.put("s3fs folder/", b"", folder_mode)
    mount = mount_factory(bucket, "--attributes", "always")
    seen = {}
    for name in os.listdir(mount.path):
        status = (mount.path / name).lstat()
        seen[name] = (status.st_mode, (status.st_uid, status.st_gid), status.st_mtime_ns)
    folder = seen.pop("s3fs folder")
    assert folder == (stat.S_IFDIR | 0o710, (5, 6), 1_500_000_000 * SECOND_NS)
    assert seen.pop("nonsense")[:2] == DIALECTS["nonsense"][1:3]
    assert seen == {
        name: (dialect.mode, dialect.owner, dialect.mtime_ns)
        for name, dialect in DIALECTS.items()
        if dialect.mtime_ns is not None
    }
    assert os.readlink(mount.path / "s3fs link") == "target"
    for name, dialect in DIALECTS.items():
        if not stat.S_ISLNK(dialect.mode):
            assert (mount.path / name).read_bytes() == dialect.body


def test_other_metadata_survives_changes(place: Place) -> None:
    """What others stored with an object is still there after a chmod and a rename of it."""
    place.contents.put(f"{place.prefix}file", b"content", {"project": "x", "mtime": "1600000000.5"})
    wait_until((place.path / "file").exists, "the file appears")
    (place.path / "file").chmod(0o600)
    place.mount.wait()
    assert place.contents.metadata(f"{place.prefix}file")["project"] == "x"
    (place.path / "file").rename(place.path / "renamed")
    place.mount.wait()
    kept = place.contents.metadata(f"{place.prefix}renamed")
    assert kept["project"] == "x"
    assert int(kept["mode"]) == stat.S_IFREG | 0o600
    assert place.contents.read(f"{place.prefix}renamed") == b"content"


NO_PATHS = [
    "a//b",
    "a///",
    "/leading",
    "//",
    ".",
    "..",
    "./file",
    "../file",
    "b/./file",
    "b/../file",
    "b/..",
    "clash",
    "clash/inner",
    "n" * 300,
    "n" * 300 + "/file",
    "c/" + "n" * 256,
]


@pytest.fixture
def odd_bucket(bucket: str, s3_server: S3Server) -> S3Contents:
    """A bucket with keys that are no paths, as far as the server keeps them, among others that are."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    for key in NO_PATHS:
        with contextlib.suppress(ClientError):
            contents.put(key, key.encode())
    for key in ("good", "a/good", "b/good", "c/good"):
        contents.put(key, key.encode())
    assert len(set(NO_PATHS) & set(contents.listing())) > 10
    return contents


def test_keys_that_are_no_paths(
    odd_bucket: S3Contents, mount_factory: Callable[..., Mount]
) -> None:
    """They break nothing and are left alone, whatever is done around them."""
    kept = {key: held for key, held in odd_bucket.listing().items() if not key.endswith("good")}
    mount = mount_factory(odd_bucket.bucket)
    root = mount.path
    seen = set()
    for folder, folders, files in os.walk(root):
        assert len(folders + files) == len({*folders, *files})
        for name in (*folders, *files):
            path = Path(folder, name)
            seen.add(str(path.relative_to(root)))
            assert path.lstat().st_mode
            if path.is_file():
                assert path.read_bytes()
    assert {"good", "a", "a/good", "b", "b/good", "c", "c/good", "clash"} <= seen
    assert not [name for name in seen if ".." in name.split("/") or len(name) > 200]
    for folder in ("a", "b", "c"):
        assert (root / folder / "good").read_bytes() == f"{folder}/good".encode()
        (root / folder / "new").write_bytes(b"new")
        (root / folder / "good").unlink()
        (root / folder / "new").unlink()
    assert outcome(lambda: (root / "c").rmdir()) in ("done", "ENOTEMPTY")
    mount.unmount()
    after = {key: held for key, held in odd_bucket.listing().items() if key in kept}
    assert after == kept


def test_renaming_a_folder_with_keys_that_are_no_paths(
    odd_bucket: S3Contents, mount_factory: Callable[..., Mount]
) -> None:
    """Refused, or moved with them, or without: in no case is one of them lost."""
    bodies = sorted(odd_bucket.read(key) for key in odd_bucket.listing())
    mount = mount_factory(odd_bucket.bucket)
    for folder in ("a", "b", "c"):
        outcome(lambda folder=folder: (mount.path / folder).rename(mount.path / f"{folder}2"))  # type: ignore[misc]
    mount.unmount()
    after = [odd_bucket.read(key) for key in odd_bucket.listing()]
    assert sorted(body for body in after if body) == bodies


def test_second_mount_reads_what_the_first_wrote(
    bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    """Two machines, one bucket, in turns: each sees the other's last state, attributes too."""
    one, two = mount_factory(bucket), mount_factory(bucket)
    assert os.listdir(two.path) == []
    writer, reader = one, two
    for turn in range(4):
        (writer.path / "shared").write_bytes(b"turn %d" % turn)
        (writer.path / f"folder{turn}").mkdir(mode=0o711)
        (writer.path / f"folder{turn}/file").write_bytes(b"x" * turn)
        (writer.path / f"folder{turn}/file").chmod(0o600)
        writer.wait()
        after_the_ttl()
        assert (reader.path / "shared").read_bytes() == b"turn %d" % turn
        assert len(os.listdir(reader.path)) == turn + 2
        assert stat.S_IMODE((reader.path / f"folder{turn}").stat().st_mode) == 0o711
        file = (reader.path / f"folder{turn}/file").stat()
        assert (stat.S_IMODE(file.st_mode), file.st_size) == (0o600, turn)
        writer, reader = reader, writer


def test_nobody_is_overwritten_silently(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Changed here and there at once: both contents are kept, and the conflict is told."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    contents.put("file", b"base")
    contents.put("deleted there", b"base")
    with Relay(s3_server.endpoint_url) as relay:
        mount = mount_factory(bucket, endpoint_url=relay.url)
        assert (mount.path / "file").read_bytes() == b"base"
        assert (mount.path / "deleted there").read_bytes() == b"base"
        with relay.holding(*WRITING):
            (mount.path / "file").write_bytes(b"mine")
            (mount.path / "new").write_bytes(b"my new one")
            contents.put("file", b"theirs")
            contents.put("new", b"their new one")
        mount.command("wait", str(mount.path), "--timeout", "20")
        held = {key: contents.read(key) for key in contents.listing()}
        assert held["file"] == b"theirs"
        assert held["new"] == b"their new one"
        wait_until(
            lambda: {b"mine", b"my new one"} <= set(_all_bodies(contents)), "mine are kept too"
        )
        told = mount.log + str(status_of(mount))
        assert "conflict" in told
        after_the_ttl()
        assert (mount.path / "file").read_bytes() == b"theirs"


def _all_bodies(contents: S3Contents) -> list[bytes]:
    return [contents.read(key) for key in contents.listing()]


FLAT_ENTRIES = 20_000 if LONG else 4_000


def requests_for_files(relay: Relay) -> list[Request]:
    """The requests that passed, without those by which the mount tries what the store honours."""
    return [request for request in relay.requests() if "probe-" not in request.path]


@pytest.mark.timeout(300)
def test_listing_of_a_large_folder(
    localstack: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """``ls -l`` of a flat folder costs a LIST for each 1,000 entries and no HEAD for each."""
    bucket = localstack.make_bucket()
    put_many(localstack, bucket, [f"flat/entry-{number:05}" for number in range(FLAT_ENTRIES)])
    with Relay(localstack.endpoint_url) as relay:
        folder = tmp_path_factory.mktemp("flat")
        mount = Mount(localstack, bucket, folder, endpoint_url=relay.url)
        try:
            mount.mount()
            relay.forget()
            listed = subprocess.run(
                ["ls", "-ln", mount.path / "flat"],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
            assert len(listed.stdout.splitlines()) == FLAT_ENTRIES + 1
            asked = requests_for_files(relay)
            assert len([request for request in asked if request.method == "HEAD"]) <= 5
            assert len(asked) <= FLAT_ENTRIES // 1000 + 10
        finally:
            mount.close()
    if localstack.lasting:
        localstack.remove_bucket(bucket)


def test_small_files_cost_one_request(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Made: one PUT each. Read cold: one GET each, no HEAD before it. Looked at again: nothing."""
    count = 100
    with Relay(s3_server.endpoint_url) as relay:
        mount = mount_factory(bucket, endpoint_url=relay.url)
        # Until then it looks before each write.
        wait_until(lambda: bool(status_of(mount)["store_honours"]), "the probe ends")
        relay.forget()
        for number in range(count):
            (mount.path / f"file-{number:03}").write_bytes(b"%d" % number * 100)
        mount.wait()
        assert len(relay.requests("PUT", path_part="file-")) == count
        # Lists, of which there is one for each second that a slow machine takes, aside.
        assert len(relay.requests(path_part="file-")) <= count + 10
        mount.remount(fresh_state=True, fresh_cache=True)
        relay.forget()
        for number in range(count):
            assert (mount.path / f"file-{number:03}").read_bytes() == b"%d" % number * 100
        assert len(relay.requests("GET", path_part="file-")) <= count + 5
        assert len(requests_for_files(relay)) <= 2 * count + 10
        relay.forget()
        for number in range(count):
            assert (mount.path / f"file-{number:03}").read_bytes() == b"%d" % number * 100
        assert relay.requests("GET", path_part="file-") == []


def test_the_mount_leaves_no_traces(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Looked at and unmounted, a bucket holds what it held; used, its own marker and nothing else."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    contents.put("file", b"content")
    mount = mount_factory(bucket)
    assert os.listdir(mount.path) == ["file"]
    mount.unmount()
    assert set(contents.listing(with_own=True)) <= {"file", f"{OWN_PREFIX}/"}
    mount.mount()
    (mount.path / "new").write_bytes(b"x")
    (mount.path / "new").unlink()
    assert os.listdir(mount.path) == ["file"]
    mount.unmount()
    assert set(contents.listing(with_own=True)) <= {"file", f"{OWN_PREFIX}/"}
    assert contents.read("file") == b"content"
    uploads = contents.client.list_multipart_uploads(Bucket=bucket)
    assert uploads.get("Uploads", []) == []

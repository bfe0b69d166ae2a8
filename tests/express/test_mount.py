"""A directory bucket, mounted: which requests it sees, and what is in it then."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.fuse.bucket_contents import wait_until
from tests.fuse.mounts import QuickMount, status_of
from tests.servers.express import ExpressServer

MakeMount = Callable[..., QuickMount]


def settled(mount: QuickMount, express: ExpressServer) -> None:
    """All is known of the store and sent; what was asked until now is forgotten."""
    wait_until(lambda: "renames" in status_of(mount)["store_honours"], "the probe is done")
    mount.wait()
    express.forget()


def counted(express: ExpressServer, *names: str) -> dict[str, int]:
    """How often each operation was asked for."""
    return {name: express.names().count(name) for name in names}


CHANGES = ("RenameObject", "CopyObject", "DeleteObject", "DeleteObjects")


def test_files_and_folders_are_renamed_by_one_request_a_key(
    express: ExpressServer, mounted: MakeMount
) -> None:
    mount = mounted()
    (mount.path / "d").mkdir()
    for name in ("a", "b", "d/x", "d/y"):
        (mount.path / name).write_bytes(name.encode() * 1000)
    settled(mount, express)
    before = express.info("a")
    os.rename(mount.path / "a", mount.path / "a2")
    mount.wait()
    assert counted(express, *CHANGES) == dict(zip(CHANGES, (1, 0, 0, 0), strict=True))
    assert express.info("a2").etag == before.etag
    os.rename(mount.path / "a2", mount.path / "b")
    os.rename(mount.path / "d", mount.path / "e")
    mount.wait()
    assert counted(express, *CHANGES[:2]) == {"RenameObject": 4, "CopyObject": 0}
    assert set(express.contents()) == {".s3mount/", "b", "e/", "e/x", "e/y"}
    assert (mount.path / "b").read_bytes() == b"a" * 1000
    mount.remount(fresh_state=True, fresh_cache=True)
    assert (mount.path / "e/y").read_bytes() == b"d/y" * 1000
    mount.unmount()


@pytest.mark.parametrize("what", ["before", "after"])
def test_a_rename_interrupted_by_a_kill_is_completed(
    express: ExpressServer, mounted: MakeMount, what: str
) -> None:
    """Its answer is lost for good, or S3 never heard of it."""
    mount = mounted()
    (mount.path / "a").write_bytes(b"content")
    settled(mount, express)
    if what == "before":
        express.lacks = frozenset(("CreateSession", "RenameObject", "CopyObject"))
    else:
        express.loses = lambda name, key: name in ("RenameObject", "HeadObject")
    os.rename(mount.path / "a", mount.path / "b")
    wait_until(lambda: "RenameObject" in express.names(), "the rename is sent")
    mount.kill9()
    express.lacks, express.loses = frozenset(), lambda name, key: False
    mount.mount()
    settled(mount, express)
    assert (mount.path / "b").read_bytes() == b"content"
    assert set(express.contents()) - {".s3mount/"} == {"b"}
    assert not status_of(mount)["pending"]["list"]
    mount.unmount()


def grow(path: os.PathLike[str], data: bytes) -> None:
    """What ``>>`` does."""
    with open(path, "ab") as file:
        file.write(data)


def test_what_grows_at_its_end_is_appended(express: ExpressServer, mounted: MakeMount) -> None:
    express.put("foreign.log", b"first\n" * 200_000)
    mount = mounted()
    (mount.path / "own.log").write_bytes(b"line\n" * 200_000)
    settled(mount, express)
    for name in ("foreign.log", "own.log"):
        grow(mount.path / name, b"more\n")
        mount.wait()
    appended = [each for each in express.seen if "x-amz-write-offset-bytes" in each.headers]
    assert [each.body_bytes for each in appended] == [5, 5]
    assert sum(each.body_bytes for each in express.seen if each.name == "PutObject") < 1000
    assert express.contents()["foreign.log"] == b"first\n" * 200_000 + b"more\n"
    assert express.contents()["own.log"] == b"line\n" * 200_000 + b"more\n"
    told = (mount.path / "own.log").stat()
    mount.remount(fresh_state=True, fresh_cache=True)
    assert (mount.path / "own.log").stat().st_mtime_ns == told.st_mtime_ns
    assert (mount.path / "own.log").read_bytes() == b"line\n" * 200_000 + b"more\n"
    mount.unmount()


def test_what_takes_no_more_parts_is_sent_whole(express: ExpressServer, mounted: MakeMount) -> None:
    express.put("log", b"first\n")
    mount = mounted()
    settled(mount, express)
    express.bucket.habits.appended_parts_max = 1
    grow(mount.path / "log", b"more\n")
    mount.wait()
    assert express.contents()["log"] == b"first\nmore\n"
    mount.unmount()


def test_an_append_whose_answer_is_lost_is_not_made_twice(
    express: ExpressServer, mounted: MakeMount
) -> None:
    express.put("log", b"first\n")
    mount = mounted()
    settled(mount, express)
    lost: list[str] = []
    express.loses = _first_puts("log", lost)
    grow(mount.path / "log", b"more\n")
    mount.wait()
    assert lost == ["log"]
    assert express.contents()["log"] == b"first\nmore\n"
    assert not [key for key in express.contents() if "conflict" in key]
    mount.unmount()


def _first_puts(key: str, lost: list[str]) -> Callable[[str, str], bool]:
    def loses(name: str, asked: str) -> bool:
        is_first = name == "PutObject" and asked == key and not lost
        lost.extend([key] * is_first)
        return is_first

    return loses


def test_somebody_elses_append_is_kept(express: ExpressServer, mounted: MakeMount) -> None:
    express.put("log", b"first\n")
    mount = mounted("--metadata-ttl", "3600")
    settled(mount, express)
    assert (mount.path / "log").read_bytes() == b"first\n"
    with open(mount.path / "log", "ab") as file:
        file.write(b"ours\n")
        file.flush()
        express.put("log", b"first\ntheirs\n")
    mount.wait()
    assert express.contents()["log"] == b"first\ntheirs\n"
    kept = [body for key, body in express.contents().items() if "conflict" in key]
    assert kept == [b"first\nours\n"]
    mount.unmount()


def test_a_bucket_without_renames_and_appends_works_as_any(
    express: ExpressServer, mounted: MakeMount
) -> None:
    """As in Local Zones."""
    express.lacks = frozenset(("RenameObject", "PutObject with an offset"))
    mount = mounted()
    (mount.path / "a").write_bytes(b"one")
    settled(mount, express)
    os.rename(mount.path / "a", mount.path / "b")
    mount.wait()
    grow(mount.path / "b", b"two")
    mount.wait()
    assert express.contents()["b"] == b"onetwo"
    assert "a" not in express.contents()
    mount.unmount()


def test_other_programs_folders_without_a_slash_are_empty_files(
    express: ExpressServer, mounted: MakeMount
) -> None:
    for key in ("hadoop_$folder$", "full_$folder$", "full/x", "typed", "both", "both/x"):
        express.put(key, b"", content_type="application/x-directory")
    mount = mounted()
    assert sorted(os.listdir(mount.path)) == [
        *("both", "full", "full_$folder$", "hadoop_$folder$", "typed")
    ]
    assert {path.name for path in mount.path.iterdir() if path.is_dir()} == {"full", "both"}
    (mount.path / "full_$folder$").unlink()
    (mount.path / "full/x").unlink()
    mount.wait()
    left = set(express.contents())
    assert left >= {"hadoop_$folder$", "typed", "both", "both/x"}
    assert not left & {"full_$folder$", "full/x"}
    mount.unmount()

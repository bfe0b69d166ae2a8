"""Renames: of files and folders, uploaded, pending and open ones, over whatever is there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import wait_until
from tests.fuse.outcomes import (
    DONE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    outcome,
    renameat2,
)
from tests.fuse.places import Place


@pytest.fixture(params=["pending", "uploaded"])
def settle(request: pytest.FixtureRequest, place: Place) -> bool:
    """Whether the test waits for S3 between what it writes and what it renames."""
    return bool(request.param == "uploaded")


def test_file_to_a_new_name(place: Place, settle: bool) -> None:
    """Content, mode and mtime go along; the old key is gone."""
    old, new = place.path / "old", place.path / "new"
    old.write_bytes(b"content")
    old.chmod(0o640)
    os.utime(old, ns=(5, 1_234_567_890_123_456_789))
    if settle:
        place.mount.wait()
    before = old.stat()
    old.rename(new)
    after = new.stat()
    assert not old.exists()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime_ns,
    )
    assert after.st_ctime_ns >= before.st_ctime_ns
    assert new.read_bytes() == b"content"
    assert place.keys_in_bucket() == {"new"}
    assert place.in_bucket("new") == b"content"
    assert int(place.contents.metadata(place.prefix + "new")["mode"]) == stat.S_IFREG | 0o640


def test_file_over_a_file(place: Place, settle: bool) -> None:
    """The target's bytes are replaced at once; nobody finds the name missing."""
    (place.path / "source").write_bytes(b"new")
    (place.path / "target").write_bytes(b"old")
    if settle:
        place.mount.wait()
    (place.path / "source").rename(place.path / "target")
    assert os.listdir(place.path) == ["target"]
    assert (place.path / "target").read_bytes() == b"new"
    assert place.keys_in_bucket() == {"target"}
    assert place.in_bucket("target") == b"new"


def test_over_an_open_file(place: Place, settle: bool) -> None:
    """The handle keeps the file that was replaced, readable and writable."""
    target = place.path / "target"
    target.write_bytes(b"replaced")
    (place.path / "source").write_bytes(b"new")
    if settle:
        place.mount.wait()
    with target.open("r+b", buffering=0) as handle:
        (place.path / "source").rename(target)
        assert handle.read() == b"replaced"
        handle.write(b"!")
        assert os.pread(handle.fileno(), 20, 0) == b"replaced!"
        assert target.read_bytes() == b"new"
    assert target.read_bytes() == b"new"
    assert place.in_bucket("target") == b"new"
    assert place.keys_in_bucket() == {"target"}


def test_of_a_file_that_is_being_written(place: Place) -> None:
    """What is written after the rename lands under the new name."""
    with (place.path / "old").open("wb", buffering=0) as handle:
        handle.write(b"before ")
        (place.path / "old").rename(place.path / "new")
        handle.write(b"after")
        os.fsync(handle.fileno())
        handle.write(b" end")
    assert place.keys_in_bucket() == {"new"}
    assert place.in_bucket("new") == b"before after end"


def test_old_name_taken_again(place: Place, settle: bool) -> None:
    """A log is rotated: both names, each with its own bytes."""
    (place.path / "log").write_bytes(b"first")
    if settle:
        place.mount.wait()
    (place.path / "log").rename(place.path / "log.1")
    (place.path / "log").write_bytes(b"second")
    assert place.in_bucket("log") == b"second"
    assert place.in_bucket("log.1") == b"first"
    assert place.keys_in_bucket() == {"log", "log.1"}


def test_chain_and_ring(place: Place, settle: bool) -> None:
    """Names handed on from file to file, ending where they began."""
    for name in "abc":
        (place.path / name).write_bytes(name.encode() * 3)
    if settle:
        place.mount.wait()
    (place.path / "c").rename(place.path / "free")
    (place.path / "b").rename(place.path / "c")
    (place.path / "a").rename(place.path / "b")
    (place.path / "free").rename(place.path / "a")
    assert {name: place.in_bucket(name) for name in "abc"} == {
        "a": b"ccc",
        "b": b"aaa",
        "c": b"bbb",
    }
    assert place.keys_in_bucket() == {"a", "b", "c"}


def test_there_and_back(place: Place, settle: bool) -> None:
    """Renamed twice, it is where it was."""
    (place.path / "a").write_bytes(b"content")
    if settle:
        place.mount.wait()
    for _ in range(5):
        (place.path / "a").rename(place.path / "b")
        (place.path / "b").rename(place.path / "a")
    assert place.in_bucket("a") == b"content"
    assert place.keys_in_bucket() == {"a"}


def test_renamed_then_removed(place: Place, settle: bool) -> None:
    """Nothing stays behind under either name."""
    (place.path / "a").write_bytes(b"content")
    if settle:
        place.mount.wait()
    (place.path / "a").rename(place.path / "b")
    (place.path / "b").unlink()
    assert os.listdir(place.path) == []
    assert place.keys_in_bucket() == set()


def _fill(folder: Path) -> dict[str, bytes]:
    """Files on three levels; what they hold, by path from the folder."""
    held = {
        f"{sub}file{number}": b"%d" % number
        for sub in ("", "sub/", "sub/deep/")
        for number in range(4)
    }
    for name, content in held.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "sub/empty").mkdir()
    (folder / "link").symlink_to("sub/file1")
    return held


def test_folder(place: Place, settle: bool) -> None:
    """All that is in it moves, on every level, and nothing is left under the old name."""
    held = _fill(place.path / "old")
    if settle:
        place.mount.wait()
    (place.path / "old").rename(place.path / "new")
    assert os.listdir(place.path) == ["new"]
    for name, content in held.items():
        assert (place.path / "new" / name).read_bytes() == content
    assert os.readlink(place.path / "new/link") == "sub/file1"
    wanted = {f"new/{name}" for name in held}
    wanted |= {"new/", "new/sub/", "new/sub/deep/", "new/sub/empty/", "new/link"}
    assert place.keys_in_bucket() == wanted
    assert place.in_bucket("new/sub/deep/file3") == b"3"


def test_folder_with_pending_and_uploaded_files(place: Place) -> None:
    """Half of it is in S3 already, a quarter waits, a quarter is open and being written."""
    held = _fill(place.path / "old")
    place.mount.wait()
    for number in range(3):
        (place.path / f"old/pending{number}").write_bytes(b"p%d" % number)
        held[f"pending{number}"] = b"p%d" % number
    (place.path / "old/file0").write_bytes(b"changed")
    held["file0"] = b"changed"
    with (place.path / "old/sub/open").open("wb", buffering=0) as handle:
        handle.write(b"before ")
        (place.path / "old").rename(place.path / "new")
        handle.write(b"after")
    held["sub/open"] = b"before after"
    (place.path / "new/late").write_bytes(b"late")
    held["late"] = b"late"
    for name, content in held.items():
        assert (place.path / "new" / name).read_bytes() == content
        assert place.in_bucket(f"new/{name}") == content
    assert not [key for key in place.keys_in_bucket() if not key.startswith("new/")]


def test_folder_twice_and_its_old_name_again(place: Place, settle: bool) -> None:
    """The second rename starts while the first still works in the background."""
    held = _fill(place.path / "a")
    if settle:
        place.mount.wait()
    (place.path / "a").rename(place.path / "b")
    (place.path / "b").rename(place.path / "c")
    (place.path / "a").mkdir()
    (place.path / "a/fresh").write_bytes(b"fresh")
    for name, content in held.items():
        assert (place.path / "c" / name).read_bytes() == content
        assert place.in_bucket(f"c/{name}") == content
    assert {key for key in place.keys_in_bucket() if not key.startswith("c/")} == {"a/", "a/fresh"}


def test_folder_moved_then_removed(place: Place, settle: bool) -> None:
    """Nothing of it is left under either name."""
    _fill(place.path / "old")
    if settle:
        place.mount.wait()
    (place.path / "old").rename(place.path / "new")
    for folder, folders, files in os.walk(place.path / "new", topdown=False):
        for name in files:
            Path(folder, name).unlink()
        for name in folders:
            path = Path(folder, name)
            path.unlink() if path.is_symlink() else path.rmdir()
    (place.path / "new").rmdir()
    assert os.listdir(place.path) == []
    assert place.keys_in_bucket() == set()


def test_folder_over_an_empty_one(place: Place, settle: bool) -> None:
    """It takes the empty one's place; a full one is left alone."""
    (place.path / "full").mkdir()
    (place.path / "full/file").write_bytes(b"content")
    (place.path / "empty").mkdir()
    (place.path / "other").mkdir()
    (place.path / "other/kept").write_bytes(b"kept")
    if settle:
        place.mount.wait()
    (place.path / "full").rename(place.path / "empty")
    refused = outcome(lambda: (place.path / "empty").rename(place.path / "other"))
    assert refused in ("ENOTEMPTY", "EEXIST")
    assert place.keys_in_bucket() == {"empty/", "empty/file", "other/", "other/kept"}


def test_folder_into_another_folder(place: Place, settle: bool) -> None:
    """Its ``..`` is the new parent, and both parents' times change."""
    (place.path / "from/moved").mkdir(parents=True)
    (place.path / "from/moved/file").write_bytes(b"content")
    (place.path / "to").mkdir()
    for name in ("from", "to"):
        os.utime(place.path / name, ns=(0, 0))
    if settle:
        place.mount.wait()
    (place.path / "from/moved").rename(place.path / "to/moved")
    assert os.path.samestat(os.stat(f"{place.path}/to/moved/.."), os.stat(place.path / "to"))
    assert (place.path / "from").stat().st_mtime_ns > 0
    assert (place.path / "to").stat().st_mtime_ns > 0
    assert place.keys_in_bucket() == {"from/", "to/", "to/moved/", "to/moved/file"}


def test_implicit_folder(place: Place) -> None:
    """A folder that only others' keys imply moves like any other."""
    for number in range(3):
        place.contents.put(f"{place.prefix}implied/sub/{number}", b"%d" % number)
    wait_until((place.path / "implied").exists, "the folder appears")
    (place.path / "implied").rename(place.path / "new")
    assert sorted(os.listdir(place.path / "new/sub")) == ["0", "1", "2"]
    assert {key for key in place.keys_in_bucket() if not key.endswith("/")} == {
        "new/sub/0",
        "new/sub/1",
        "new/sub/2",
    }
    assert not [key for key in place.keys_in_bucket() if not key.startswith("new/")]
    assert place.in_bucket("new/sub/2") == b"2"


def test_symbolic_link(place: Place, settle: bool) -> None:
    """The link moves, not what it points to."""
    (place.path / "link").symlink_to("nowhere")
    if settle:
        place.mount.wait()
    (place.path / "link").rename(place.path / "moved")
    assert os.readlink(place.path / "moved") == "nowhere"
    assert place.in_bucket("moved") == b"nowhere"
    assert place.keys_in_bucket() == {"moved"}


def test_without_replacing(place: Place, settle: bool) -> None:
    """RENAME_NOREPLACE moves to a free name and refuses a taken one."""
    (place.path / "a").write_bytes(b"a")
    (place.path / "b").write_bytes(b"b")
    if settle:
        place.mount.wait()
    taken = outcome(lambda: renameat2(place.path / "a", place.path / "b", RENAME_NOREPLACE))
    assert taken == "EEXIST"
    renameat2(place.path / "a", place.path / "c", RENAME_NOREPLACE)
    assert {name: place.in_bucket(name) for name in "bc"} == {"b": b"b", "c": b"a"}
    assert place.keys_in_bucket() == {"b", "c"}


def test_exchange(place: Place, settle: bool) -> None:
    """RENAME_EXCHANGE swaps two names, or says by EINVAL that it is not to be had."""
    (place.path / "a").write_bytes(b"a")
    (place.path / "b").write_bytes(b"b")
    if settle:
        place.mount.wait()
    result = outcome(lambda: renameat2(place.path / "a", place.path / "b", RENAME_EXCHANGE))
    assert result in (DONE, "EINVAL")
    wanted = {"a": b"b", "b": b"a"} if result == DONE else {"a": b"a", "b": b"b"}
    assert {name: (place.path / name).read_bytes() for name in "ab"} == wanted
    assert {name: place.in_bucket(name) for name in "ab"} == wanted
    missing = outcome(lambda: renameat2(place.path / "a", place.path / "x", RENAME_EXCHANGE))
    assert missing == ("ENOENT" if result == DONE else "EINVAL")


def test_exchange_of_folders(place: Place, settle: bool) -> None:
    """With what is in them, a file against a folder too."""
    for name in "ab":
        (place.path / name).mkdir()
        (place.path / name / name).write_bytes(name.encode())
    (place.path / "file").write_bytes(b"file")
    if settle:
        place.mount.wait()
    first = outcome(lambda: renameat2(place.path / "a", place.path / "b", RENAME_EXCHANGE))
    if first == "EINVAL":
        assert place.keys_in_bucket() == {"a/", "a/a", "b/", "b/b", "file"}
        return
    renameat2(place.path / "file", place.path / "a", RENAME_EXCHANGE)
    assert (place.path / "a").read_bytes() == b"file"
    assert place.keys_in_bucket() == {"a", "b/", "b/a", "file/", "file/b"}
    assert place.in_bucket("file/b") == b"b"

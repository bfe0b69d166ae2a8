"""Each call that must fail fails with the errno that ext4 gives."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.mounts import pending_of
from tests.fuse.outcomes import DONE, RENAME_NOREPLACE, open_and_close, outcome, renameat2
from tests.fuse.places import Place
from tests.mounting import Mount
from tests.servers import S3Server

Call = Callable[[Path], object]
LONG = "n" * 256
NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def furnished(place: Place) -> Path:
    """A folder with a file, a full and an empty folder, and links good, dangling and circular."""
    (place.path / "file").write_bytes(b"content")
    (place.path / "full").mkdir()
    (place.path / "full/inner").write_bytes(b"")
    (place.path / "empty").mkdir()
    (place.path / "link").symlink_to("file")
    (place.path / "broken").symlink_to("nowhere")
    (place.path / "loop").symlink_to("loop")
    return place.path


LOOKING: list[tuple[str, Call, str]] = [
    ("stat a missing name", lambda at: os.stat(at / "missing"), "ENOENT"),
    ("stat below a missing folder", lambda at: os.stat(at / "missing/x"), "ENOENT"),
    ("stat below a file", lambda at: os.stat(at / "file/x"), "ENOTDIR"),
    ("stat a dangling link", lambda at: os.stat(at / "broken"), "ENOENT"),
    ("stat a circular link", lambda at: os.stat(at / "loop"), "ELOOP"),
    ("stat a name of 256 bytes", lambda at: os.stat(at / LONG), "ENAMETOOLONG"),
    ("list a file", lambda at: os.listdir(at / "file"), "ENOTDIR"),
    ("list a missing folder", lambda at: os.listdir(at / "missing"), "ENOENT"),
    ("readlink of a file", lambda at: os.readlink(at / "file"), "EINVAL"),
    ("readlink of a folder", lambda at: os.readlink(at / "full"), "EINVAL"),
    ("readlink of nothing", lambda at: os.readlink(at / "missing"), "ENOENT"),
    ("access of nothing", lambda at: os.stat(at / "missing"), "ENOENT"),
]

OPENING: list[tuple[str, Call, str]] = [
    ("open nothing", lambda at: open_and_close(at / "missing", os.O_RDONLY), "ENOENT"),
    ("open nothing to write", lambda at: open_and_close(at / "missing", os.O_WRONLY), "ENOENT"),
    (
        "create below a file",
        lambda at: open_and_close(at / "file/x", os.O_CREAT | os.O_WRONLY),
        "ENOTDIR",
    ),
    (
        "create below nothing",
        lambda at: open_and_close(at / "missing/x", os.O_CREAT | os.O_WRONLY),
        "ENOENT",
    ),
    ("open a folder to write", lambda at: open_and_close(at / "full", os.O_WRONLY), "EISDIR"),
    ("open a folder to create", lambda at: open_and_close(at / "full", os.O_CREAT), "EISDIR"),
    (
        "create what exists, exclusively",
        lambda at: open_and_close(at / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "EEXIST",
    ),
    (
        "create through a dangling link, exclusively",
        lambda at: open_and_close(at / "broken", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        "EEXIST",
    ),
    ("open a file as folder", lambda at: open_and_close(at / "file", os.O_DIRECTORY), "ENOTDIR"),
    ("open a link itself", lambda at: open_and_close(at / "link", os.O_NOFOLLOW), "ELOOP"),
    (
        "create a name of 256 bytes",
        lambda at: open_and_close(at / LONG, os.O_CREAT | os.O_WRONLY),
        "ENAMETOOLONG",
    ),
    ("write to a reading handle", lambda at: _write_read_only(at / "file"), "EBADF"),
    ("read from a writing handle", lambda at: _read_write_only(at / "file"), "EBADF"),
    ("read a folder", lambda at: _read_folder(at / "full"), "EISDIR"),
]

FOLDERS: list[tuple[str, Call, str]] = [
    ("mkdir over a file", lambda at: os.mkdir(at / "file"), "EEXIST"),
    ("mkdir over a folder", lambda at: os.mkdir(at / "full"), "EEXIST"),
    ("mkdir over a dangling link", lambda at: os.mkdir(at / "broken"), "EEXIST"),
    ("mkdir below nothing", lambda at: os.mkdir(at / "missing/x"), "ENOENT"),
    ("mkdir below a file", lambda at: os.mkdir(at / "file/x"), "ENOTDIR"),
    ("mkdir of 256 bytes", lambda at: os.mkdir(at / LONG), "ENAMETOOLONG"),
    ("mkdir of 255 bytes", lambda at: os.mkdir(at / LONG[1:]), DONE),
    ("rmdir of nothing", lambda at: os.rmdir(at / "missing"), "ENOENT"),
    ("rmdir of a file", lambda at: os.rmdir(at / "file"), "ENOTDIR"),
    ("rmdir of a link", lambda at: os.rmdir(at / "link"), "ENOTDIR"),
    ("rmdir of a full folder", lambda at: os.rmdir(at / "full"), "ENOTEMPTY"),
    ("rmdir of dot", lambda at: os.rmdir(f"{at}/empty/."), "EINVAL"),
    ("rmdir of dot dot", lambda at: os.rmdir(f"{at}/empty/.."), "ENOTEMPTY"),
    ("rmdir of an empty folder", lambda at: os.rmdir(at / "empty"), DONE),
    ("unlink nothing", lambda at: os.unlink(at / "missing"), "ENOENT"),
    ("unlink a folder", lambda at: os.unlink(at / "empty"), "EISDIR"),
    ("unlink below a file", lambda at: os.unlink(at / "file/x"), "ENOTDIR"),
    ("unlink a file with a slash", lambda at: os.unlink(f"{at}/file/"), "ENOTDIR"),
    ("unlink a dangling link", lambda at: os.unlink(at / "broken"), DONE),
]

RENAMING: list[tuple[str, Call, str]] = [
    ("rename nothing", lambda at: os.rename(at / "missing", at / "x"), "ENOENT"),
    ("rename into nothing", lambda at: os.rename(at / "file", at / "missing/x"), "ENOENT"),
    ("rename a file over a folder", lambda at: os.rename(at / "file", at / "empty"), "EISDIR"),
    ("rename a folder over a file", lambda at: os.rename(at / "empty", at / "file"), "ENOTDIR"),
    ("rename a folder over a link", lambda at: os.rename(at / "empty", at / "link"), "ENOTDIR"),
    ("rename over a full folder", lambda at: os.rename(at / "empty", at / "full"), "ENOTEMPTY"),
    ("rename over an empty folder", lambda at: os.rename(at / "full", at / "empty"), DONE),
    ("rename a folder into itself", lambda at: os.rename(at / "full", at / "full/x"), "EINVAL"),
    (
        "rename over the folder above",
        lambda at: os.rename(at / "full/inner", at / "full"),
        "ENOTEMPTY",
    ),
    ("rename below a file", lambda at: os.rename(at / "full", at / "file/x"), "ENOTDIR"),
    ("rename onto itself", lambda at: os.rename(at / "file", at / "file"), DONE),
    ("rename to 256 bytes", lambda at: os.rename(at / "file", at / LONG), "ENAMETOOLONG"),
    (
        "rename without replacing, over a file",
        lambda at: renameat2(at / "file", at / "full/inner", RENAME_NOREPLACE),
        "EEXIST",
    ),
    (
        "rename without replacing, over a dangling link",
        lambda at: renameat2(at / "file", at / "broken", RENAME_NOREPLACE),
        "EEXIST",
    ),
    (
        "rename without replacing, over nothing",
        lambda at: renameat2(at / "file", at / "x", RENAME_NOREPLACE),
        DONE,
    ),
    ("rename with unknown flags", lambda at: renameat2(at / "file", at / "x", 64), "EINVAL"),
]

CHANGING: list[tuple[str, Call, str]] = [
    ("truncate nothing", lambda at: os.truncate(at / "missing", 0), "ENOENT"),
    ("truncate a folder", lambda at: os.truncate(at / "full", 0), "EISDIR"),
    ("truncate to less than nothing", lambda at: os.truncate(at / "file", -1), "EINVAL"),
    ("chmod nothing", lambda at: os.chmod(at / "missing", 0o600), "ENOENT"),
    ("chown nothing", lambda at: os.chown(at / "missing", 1, 1), "ENOENT"),
    ("utime of nothing", lambda at: os.utime(at / "missing"), "ENOENT"),
    ("symlink over a file", lambda at: os.symlink("x", at / "file"), "EEXIST"),
    ("symlink below nothing", lambda at: os.symlink("x", at / "missing/x"), "ENOENT"),
    ("symlink to an empty name", lambda at: os.symlink("", at / "x"), "ENOENT"),
    ("symlink of 256 bytes", lambda at: os.symlink("x", at / LONG), "ENAMETOOLONG"),
    ("symlink to 4,096 bytes", lambda at: os.symlink("x" * 4096, at / "x"), "ENAMETOOLONG"),
    ("mknod over a file", lambda at: os.mknod(at / "file"), "EEXIST"),
    ("mkfifo over a link", lambda at: os.mkfifo(at / "broken"), "EEXIST"),
    ("mknod of 256 bytes", lambda at: os.mknod(at / LONG), "ENAMETOOLONG"),
]

UNSUPPORTED: list[tuple[str, Call, str]] = [
    ("hard link", lambda at: os.link(at / "file", at / "second"), "EPERM"),
    ("create a name not UTF-8", lambda at: (at / NOT_UTF8).write_bytes(b""), "EILSEQ"),
    ("mkdir of a name not UTF-8", lambda at: os.mkdir(at / NOT_UTF8), "EILSEQ"),
    ("symlink of a name not UTF-8", lambda at: os.symlink("x", at / NOT_UTF8), "EILSEQ"),
    ("rename to a name not UTF-8", lambda at: os.rename(at / "file", at / NOT_UTF8), "EILSEQ"),
    ("mknod of a name not UTF-8", lambda at: os.mknod(at / NOT_UTF8), "EILSEQ"),
]

CALLS = [*LOOKING, *OPENING, *FOLDERS, *RENAMING, *CHANGING]


def _write_read_only(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        os.write(file.fileno(), b"x")


def _read_write_only(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        os.read(file.fileno(), 1)


def _read_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.read(handle, 1)
    finally:
        os.close(handle)


@pytest.mark.parametrize(("call", "wanted"), [row[1:] for row in CALLS], ids=[r[0] for r in CALLS])
def test_outcome(furnished: Path, call: Call, wanted: str) -> None:
    """The errno is the one that ext4 gives, and a call that failed has changed nothing."""
    before = sorted(os.listdir(furnished))
    assert outcome(lambda: call(furnished)) == wanted
    if wanted != DONE:
        assert sorted(os.listdir(furnished)) == before
        assert (furnished / "file").read_bytes() == b"content"


@pytest.mark.needs_s3
@pytest.mark.parametrize(
    ("call", "wanted"), [row[1:] for row in UNSUPPORTED], ids=[row[0] for row in UNSUPPORTED]
)
def test_what_a_bucket_cannot_keep(furnished: Path, call: Call, wanted: str) -> None:
    """Hard links and names that are not UTF-8 are refused as POSIX names it."""
    before = sorted(os.listdir(furnished))
    assert outcome(lambda: call(furnished)) == wanted
    assert sorted(os.listdir(furnished)) == before


@pytest.mark.needs_s3
def test_looking_for_a_name_not_utf8(furnished: Path) -> None:
    """No such name can be there; it is no reason for EIO."""
    assert outcome(lambda: os.lstat(furnished / NOT_UTF8)) in ("ENOENT", "EILSEQ")


MUTATIONS: list[tuple[str, Call]] = [
    ("create", lambda at: (at / "new").write_bytes(b"")),
    ("open to write", lambda at: open_and_close(at / "file", os.O_WRONLY)),
    ("open to append", lambda at: open_and_close(at / "file", os.O_WRONLY | os.O_APPEND)),
    ("truncate", lambda at: os.truncate(at / "file", 0)),
    ("mkdir", lambda at: os.mkdir(at / "new")),
    ("rmdir", lambda at: os.rmdir(at / "empty")),
    ("unlink", lambda at: os.unlink(at / "file")),
    ("rename", lambda at: os.rename(at / "file", at / "new")),
    ("symlink", lambda at: os.symlink("x", at / "new")),
    ("mknod", lambda at: os.mknod(at / "new")),
    ("chmod", lambda at: os.chmod(at / "file", 0o600)),
    ("chown", lambda at: os.chown(at / "file", 1, 1)),
    ("utime", lambda at: os.utime(at / "file", (1, 1))),
]


@pytest.fixture
def read_only(bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server) -> Path:
    """A mount with ``--read-only`` of a bucket that has a file and an empty folder."""
    client = s3_server.boto3_client()
    client.put_object(Bucket=bucket, Key="file", Body=b"content")
    client.put_object(Bucket=bucket, Key="empty/", Body=b"")
    return mount_factory(bucket, "--read-only").path


@pytest.mark.needs_s3
def test_read_only_mount(read_only: Path) -> None:
    """Everything that would change the bucket is EROFS; reading works."""
    outcomes = {name: outcome(lambda call=call: call(read_only)) for name, call in MUTATIONS}  # type: ignore[misc]
    assert outcomes == {name: "EROFS" for name, _ in MUTATIONS}
    assert (read_only / "file").read_bytes() == b"content"
    assert sorted(os.listdir(read_only)) == ["empty", "file"]
    assert stat.S_ISDIR((read_only / "empty").stat().st_mode)
    assert not os.access(read_only / "file", os.W_OK)


def test_a_refused_write_of_an_archived_object_leaves_nothing_pending(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """The kernel reads for a write of some bytes, is refused, and sends the time of the write all the same."""
    s3 = s3_server.boto3_client()
    try:
        s3.put_object(Bucket=bucket, Key="a", Body=b"x" * 10_000, StorageClass="GLACIER")
        s3.get_object(Bucket=bucket, Key="a")
    except s3.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != "InvalidObjectState":
            pytest.skip(f"no archive there: {error}")
    else:
        pytest.skip("what is archived can be read there")
    mount = mount_factory(bucket)

    def write() -> None:
        with (mount.path / "a").open("r+b") as file:
            file.seek(5)
            file.write(b"y")

    assert outcome(write) == "EIO"
    mount.wait()
    assert pending_of(mount)["changes"] == 0

"""Extended attributes with ``--xattr``, and their absence without."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.fuse.bucket_contents import S3Contents
from tests.fuse.outcomes import DONE, outcome
from tests.fuse.places import Place
from tests.mounting import Mount
from tests.servers import S3Server

pytestmark = pytest.mark.needs_s3
SECRETS = {
    "user.text": b"value",
    "user.binary": bytes(range(256)),
    "user.empty": b"",
    "user.\u00fc": b"\xff",
}


@pytest.fixture
def with_xattr(bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server) -> Place:
    """A mount with ``--xattr``."""
    mount = mount_factory(bucket, "--xattr")
    return Place(mount, mount.path, "", S3Contents(s3_server.boto3_client(), bucket))


def held(path: Path) -> dict[str, bytes]:
    """All user attributes of a path itself."""
    names = os.listxattr(path, follow_symlinks=False)
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if name.startswith("user.")
    }


def test_kept_with_the_object(with_xattr: Place) -> None:
    """Set before and after the upload, on files and folders, kept over changes, renames and remounts."""
    root = with_xattr.path
    (root / "early").write_bytes(b"content")
    (root / "folder").mkdir()
    (root / "late").write_bytes(b"content")
    for name, value in SECRETS.items():
        os.setxattr(root / "early", name, value)
        os.setxattr(root / "folder", name, value)
    with_xattr.mount.wait()
    for name, value in SECRETS.items():
        os.setxattr(root / "late", name, value)
    (root / "early").write_bytes(b"changed")
    (root / "early").rename(root / "folder/early")
    for path in (root / "folder/early", root / "folder", root / "late"):
        assert held(path) == SECRETS
    os.removexattr(root / "late", "user.text")
    os.setxattr(root / "late", "user.binary", b"now text")
    with_xattr.mount.remount(fresh_state=True, fresh_cache=True)
    assert held(root / "folder/early") == SECRETS
    assert held(root / "folder") == SECRETS
    assert held(root / "late") == {
        "user.binary": b"now text",
        "user.empty": b"",
        "user.\u00fc": b"\xff",
    }
    assert (root / "folder/early").read_bytes() == b"changed"


def test_refusals(with_xattr: Place) -> None:
    """Each by the errno of setxattr(2) and getxattr(2)."""
    file = with_xattr.path / "file"
    file.write_bytes(b"content")
    os.setxattr(file, "user.there", b"value")
    outcomes = {
        "get nothing": outcome(lambda: os.getxattr(file, "user.nothing")),
        "remove nothing": outcome(lambda: os.removexattr(file, "user.nothing")),
        "create again": outcome(lambda: os.setxattr(file, "user.there", b"x", os.XATTR_CREATE)),
        "replace nothing": outcome(
            lambda: os.setxattr(file, "user.nothing", b"x", os.XATTR_REPLACE)
        ),
        "another namespace": outcome(lambda: os.setxattr(file, "trusted.x", b"x")),
        "of nothing": outcome(lambda: os.getxattr(with_xattr.path / "nothing", "user.x")),
    }
    assert outcomes == {
        "get nothing": "ENODATA",
        "remove nothing": "ENODATA",
        "create again": "EEXIST",
        "replace nothing": "ENODATA",
        "another namespace": "ENOTSUP",
        "of nothing": "ENOENT",
    }
    assert held(file) == {"user.there": b"value"}


def test_more_than_s3_keeps(with_xattr: Place) -> None:
    """S3 takes 2 KiB of metadata: what does not fit is refused, what was there stays and arrives."""
    file = with_xattr.path / "file"
    file.write_bytes(b"content")
    os.setxattr(file, "user.kept", b"value")
    assert outcome(lambda: os.setxattr(file, "user.huge", b"x" * 4000)) in ("ENOSPC", "E2BIG")
    add = partial(os.setxattr, file, value=b"x" * 90)
    outcomes = [outcome(partial(add, f"user.number{number}")) for number in range(50)]
    fitting = outcomes.index("ENOSPC") if "ENOSPC" in outcomes else outcomes.index("E2BIG")
    assert set(outcomes[:fitting]) == {DONE}
    assert DONE not in outcomes[fitting:]
    assert 5 <= fitting < 22
    wanted = {"user.kept": b"value"} | {f"user.number{n}": b"x" * 90 for n in range(fitting)}
    assert held(file) == wanted
    file.chmod(0o600)
    with_xattr.mount.remount(fresh_state=True, fresh_cache=True)
    assert held(file) == wanted


def test_what_s3_knows(with_xattr: Place) -> None:
    """``s3mount.etag`` and its kin tell of the object and cannot be set."""
    file = with_xattr.path / "file"
    file.write_bytes(b"content")
    with_xattr.mount.wait()
    assert os.getxattr(file, "s3mount.key") == b"file"
    etag = os.getxattr(file, "s3mount.etag").decode().strip('"')
    assert etag == with_xattr.contents.listing()["file"].etag
    assert os.getxattr(file, "s3mount.state") != b""
    refused = outcome(lambda: os.setxattr(file, "s3mount.etag", b"x"))
    assert refused in ("EPERM", "EACCES", "EROFS", "ENOTSUP")
    assert outcome(lambda: os.removexattr(file, "s3mount.key")) == refused
    # What cannot be set is not listed: rsync -X, cp -a and tar would fail with it.
    os.setxattr(file, "user.kept", b"value")
    assert os.listxattr(file) == ["user.kept"]
    copied = with_xattr.path / "copied"
    subprocess.run(["rsync", "-aX", str(file), str(copied)], check=True, timeout=60)
    assert held(copied) == {"user.kept": b"value"}
    os.removexattr(file, "user.kept")
    assert held(file) == {}


def test_absent_unless_asked_for(place: Place) -> None:
    """Without ``--xattr`` the answer is EOPNOTSUPP, as on file systems that have none."""
    file = place.path / "file"
    file.write_bytes(b"content")
    assert outcome(lambda: os.setxattr(file, "user.x", b"x")) == "ENOTSUP"
    assert outcome(lambda: os.getxattr(file, "user.x")) == "ENOTSUP"

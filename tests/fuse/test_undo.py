"""``s3mount undo`` brings files of a mount back to what they were; ``s3mount history`` tells what they were."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.mounting import Mount

pytestmark = [pytest.mark.each_server, pytest.mark.needs_s3, pytest.mark.timeout(300)]
FILES = 40


def moment() -> str:
    """A time that lies between what was written before and what is written after, though S3 dates whole seconds."""
    time.sleep(1.1)
    now = datetime.now(UTC)
    time.sleep(1.1)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def held(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def undo(mount: Mount, *words: str, status: int = 0) -> str:
    done = mount.command("undo", str(mount.path), *words)
    assert done.returncode == status, done.stderr
    return done.stderr


def test_a_tree_that_was_removed_comes_back(
    versioned_bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    mount = mount_factory(versioned_bucket)
    tree = mount.path / "tree"
    for number in range(FILES):
        folder = tree / f"folder{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(b"%d" % number)
    (tree / "folder0" / "file0").chmod(0o640)
    (mount.path / "beside").write_bytes(b"before")
    mount.wait()
    before, at = held(tree), moment()
    shutil.rmtree(tree)
    (mount.path / "beside").write_bytes(b"after")
    assert not tree.exists()
    told = undo(mount, "--dry-run", "--to", at, "tree")
    assert "to restore" in told
    assert not tree.exists()
    told = undo(mount, "--yes", "--to", at, "tree")
    assert "0 failed" in told
    assert held(tree) == before
    assert (tree / "folder0" / "file0").stat().st_mode & 0o777 == 0o640
    assert (mount.path / "beside").read_bytes() == b"after"
    assert "0 files brought back, 0 deleted, 0 failed" in undo(mount, "--yes", "--to", at, "tree")


def test_a_folder_loses_what_it_had_not_and_a_file_is_alone(
    versioned_bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    mount = mount_factory(versioned_bucket)
    folder = mount.path / "folder"
    folder.mkdir()
    for name in ("a", "ab"):
        (folder / name).write_bytes(b"first")
    mount.wait()
    at = moment()
    for name in ("a", "ab", "new"):
        (folder / name).write_bytes(b"second!")
    undo(mount, "--yes", "--to", at, str(folder / "a"))
    assert held(folder) == {"a": b"first", "ab": b"second!", "new": b"second!"}
    undo(mount, "--yes", "--to", at, "folder")
    assert held(folder) == {"a": b"first", "ab": b"first"}


def test_history_tells_of_each_version(
    versioned_bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    mount = mount_factory(versioned_bucket)
    file = mount.path / "file"
    for body in (b"one", b"three"):
        file.write_bytes(body)
        mount.wait()
    file.unlink()
    (mount.path / "file2").write_bytes(b"beside it")
    mount.wait()
    done = mount.command("history", "--json", str(file))
    versions = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["is_delete_marker"], each["size"]) for each in versions] == [
        (True, 0),
        (False, 5),
        (False, 3),
    ]
    assert "deleted" in mount.command("history", str(file)).stdout


def test_what_cannot_be_undone_is_told(
    bucket: str, versioned_bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    plain, mount = mount_factory(bucket), mount_factory(versioned_bucket)
    for each in (plain, mount):
        (each.path / "file").write_bytes(b"x")
        each.wait()
    assert "keeps no versions" in undo(plain, "--yes", "--to", "-1s", "file", status=2)
    assert "nothing was at file" in undo(mount, "--yes", "--to", "2001-01-01", "file", status=2)
    assert "mind the spelling" in undo(mount, "--yes", "--to", "-1s", "none", status=2)
    assert "no terminal to ask on" in undo(mount, "--to", "-1s", "file", status=2)
    assert "yet to come" in undo(mount, "--yes", "--to", "2999-01-01", "file", status=2)

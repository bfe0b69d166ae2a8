"""The configuration file: what it may hold, what wins over it, and what is said of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from s3mount.cli import main
from s3mount.cli.config_file import load, path_of_file

Write = Callable[[str], Path]
WORK = """
[defaults]
endpoint-url = "http://127.0.0.1:9"
path_style = true

[mounts.work]
bucket = "s3://b/photos"
mountpoint = "/nowhere/work"
cache-size = "1G"
uploads = 4
region = "eu-central-1"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        monkeypatch.setenv("S3MOUNT_CONFIG", str(path))
        return path

    return write


def settings(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, tuple[object, str]]:
    """What ``config show`` tells: value and source of each option."""
    assert main(["config", "show", "--json", *words]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {each["option"]: (each["value"], each["source"]) for each in lines}


def test_values_and_where_they_come_from(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(WORK)
    monkeypatch.setenv("S3MOUNT_REGION", "us-west-2")
    monkeypatch.setenv("S3MOUNT_FSYNC", "s3")
    found = settings(capsys, "@work", "--uploads", "3")
    assert found == {
        "bucket": ("s3://b/photos", f"{path} [mounts.work]"),
        "mountpoint": ("/nowhere/work", f"{path} [mounts.work]"),
        "endpoint-url": ("http://127.0.0.1:9", f"{path} [defaults]"),
        "path-style": (True, f"{path} [defaults]"),
        "cache-size": (1 << 30, f"{path} [mounts.work]"),
        "uploads": (3, "command line"),
        "region": ("us-west-2", "variable S3MOUNT_REGION"),
        "fsync": ("s3", "variable S3MOUNT_FSYNC"),
    }


def test_a_file_that_is_right_is_told_so(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(WORK)
    assert main(["config", "check"]) == 0
    assert "@work" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[mounts.a]\nbucket='b'\ncache-sise='1G'", "[mounts.a] cache-sise means nothing; is cache-size meant?"),
        ("[mounts.a]\nbucket='b'\ncache-size='10'", "[mounts.a]: Invalid value for '--cache-size'"),
        ("[mounts.a]\nbucket='b'\nread-only='yes'", "[mounts.a] read-only is true or false"),
        ("[mounts.a]\nbucket='b'\nregion=true", "[mounts.a] region is a text or a number"),
        ("[mounts.a]\nmountpoint='/x'", "[mounts.a] names no bucket"),
        ("[mounts.a]\nbucket=1", "[mounts.a] bucket is a text"),
        ("[mounts.a]\nbucket='b'\nfile-mode='1'\nfile_mode='2'", "[mounts.a] has file-mode twice"),
        ("[defaults]\ncache-size='1G'", "[defaults] cache-size means nothing"),
        ("[defaults]\naws_secret_access_key='x'", "[defaults] aws-secret-access-key means nothing"),
        ("[mount.a]\nbucket='b'", "[mount] means nothing; there are [defaults] and [mounts.NAME]"),
        ("mounts = 3", "mounts is no table"),
        ("[mounts", "is no TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_a_line(
    text: str, told: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(text)
    assert main(["config", "check"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert str(path) in said
    assert said.count("\n") == 1


def test_a_mount_that_is_not_there(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(WORK)
    for words in (["@home"], ["umount", "@home"], ["mount", "@home", "/x"]):
        assert main(words) == 2
        assert "has no [mounts.home]; it has: @work" in capsys.readouterr().err


def test_commands_of_mounts_take_the_name(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(WORK)
    for command in ("unmount", "umount", "status", "wait", "retry", "refresh", "bwlimit"):
        more = ["1M"] if command == "bwlimit" else []
        assert main([command, "@work", *more]) == 1
        assert "/nowhere/work" in capsys.readouterr().err


def test_defaults_are_those_of_commands_without_a_mount(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("[defaults]\nendpoint-url = 'ftp:'")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    for words in (["ls", "s3://b"], ["manifest", "create", "s3://b"], ["pack", "ls", "s3://b/"]):
        assert main(words) == 2
        assert "--endpoint-url ftp:" in capsys.readouterr().err


def test_the_file_is_the_users_else_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("S3MOUNT_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    system = tmp_path / "system.toml"
    monkeypatch.setattr("s3mount.cli.config_file.SYSTEM_FILE", str(system))
    users = tmp_path / "s3mount" / "config.toml"
    assert path_of_file() == users
    assert load().mounts == {}
    system.write_text("[mounts.all]\nbucket='b'")
    assert path_of_file() == system
    users.parent.mkdir()
    users.write_text("")
    assert path_of_file() == users


def test_a_file_that_was_named_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("S3MOUNT_CONFIG", str(tmp_path / "none"))
    assert main(["ls", "s3://b"]) == 2
    assert "there is no file" in capsys.readouterr().err

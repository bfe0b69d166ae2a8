"""Which command is meant, and how errors come out: one line and a status."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from s3mount.cli import commands as module
from s3mount.cli.commands import HINTS, main, with_command
from s3mount.errors import MountError
from s3mount.version import __version__

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["data", "/mnt"], ["mount", "data", "/mnt"]),
        (["--region", "x", "data", "/mnt"], ["mount", "--region", "x", "data", "/mnt"]),
        (["s3://status", "/mnt"], ["mount", "s3://status", "/mnt"]),
        (["mount", "data", "/mnt"], ["mount", "data", "/mnt"]),
        (["status"], ["status"]),
        (["--version"], ["--version"]),
        (["--help"], ["--help"]),
        (["umount", "/mnt"], ["unmount", "/mnt"]),
        (["mount", "umount", "/mnt"], ["mount", "umount", "/mnt"]),
        (["s3://sync/x", "/mnt"], ["mount", "s3://sync/x", "/mnt"]),
        (["data", "--prefix", "sync", "/mnt"], ["mount", "data", "--prefix", "sync", "/mnt"]),
    ],
)
def test_a_bucket_alone_means_mount(given: list[str], expected: list[str]) -> None:
    assert with_command(given) == expected


def test_one_unknown_word_is_no_bucket() -> None:
    with pytest.raises(click.UsageError, match="'mont' is no command"):
        with_command(["mont"])


@pytest.mark.parametrize("name", sorted(HINTS))
def test_names_that_people_try_are_answered_with_the_command_that_does_it(name: str) -> None:
    for given in ([name, "/mnt"], [name], ["--endpoint-url", "http://x", name, "/mnt"]):
        with pytest.raises(
            click.UsageError, match=f"'{name}' is no command.* s3mount mount {name}"
        ):
            with_command(given)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mont"], "'mont' is no command"),
        (["data", "/mnt", "--nope"], "No such option"),
        (["mount", "data"], "Missing argument 'MOUNTPOINT'"),
        (["data", "/mnt", "--part-size", "3x"], "'3x' is no size"),
        (["data", "/mnt", "--cache-size", "10"], "'10' is 10 bytes, which cannot be meant"),
        (["-f", "umount", "/mnt"], "'umount' is no command"),
        (["data", "/mnt", "-o", "nope"], "unknown option 'nope'"),
        (["data/x", "/mnt"], "s3://BUCKET/PREFIX"),
        (["wait"], "Missing argument"),
        (["unmount"], "Missing argument"),
        (["status", "--nope"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("s3mount: ")
    assert err.count("\n") == 1
    assert said in err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"s3mount {__version__}\n"
    for arguments in (["--help"], ["mount", "--help"], ["status", "-h"], ["wait", "--help"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out.startswith("Usage: s3mount")
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_variables_that_mean_nothing_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("S3MOUNT_PARTSIZE", "8M")
    monkeypatch.setenv("S3MOUNT_UPLOADS", "4")
    assert main(["--version"]) == 0
    assert capsys.readouterr().err == (
        "s3mount: warning: the variable S3MOUNT_PARTSIZE means nothing to s3mount\n"
    )


@pytest.mark.parametrize("command", ["status", "--help", "manifest show"])
def test_output_that_cannot_be_written_is_said(command: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("key,version\nname,1\n")
    program = f"{sys.executable} -m s3mount {command}"
    if command.startswith("manifest"):
        program += f" --bucket b {tmp_path / 'm.csv'}"
    for to, said in (
        (">/dev/full", "s3mount: the output cannot be written: No space left on device\n"),
        (">/dev/full 2>/dev/full", ""),
    ):
        done = subprocess.run(["sh", "-c", f"{program} {to}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, said)


def test_closed_descriptors_are_no_place_for_pipes() -> None:
    """What is opened later gets other numbers, and a child may print."""
    script = (
        "import os, sys; from s3mount.cli import output; output.prepare(); "
        "print('to nobody', flush=True); print('to nobody', file=sys.stderr); sys.stdin.read(); "
        "os._exit(7 if min(os.pipe()) > 2 and os.system('echo x && echo y >&2') == 0 else 1)"
    )
    for closed in ("<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        command = ["sh", "-c", f'exec "{sys.executable}" -c "{script}" {closed}']
        done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=30)
        assert done.returncode == 7, closed


def test_an_error_of_ours_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ExceptionGroup("several", [MountError("it does not work")])

    monkeypatch.setattr(module.group, "main", fail)
    assert main(["status"]) == 1
    assert capsys.readouterr().err == "s3mount: it does not work\n"


def test_an_unexpected_error_leaves_its_traceback_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(module.group, "main", fail)
    assert main(["status"]) == 1
    crash = tmp_path / "s3mount" / "crash.log"
    assert capsys.readouterr().err == (
        f"s3mount: internal error: ZeroDivisionError: oh; details in {crash}\n"
    )
    assert "Traceback (most recent call last)" in crash.read_text()
    assert crash.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", [".venv/bin", "bin", "contrib/mount", "path", None])
def test_the_helper_of_mount_finds_s3mount(tmp_path: Path, place: str | None) -> None:
    """In the environment that it lies in, beside it, on the PATH; else it says where to name it."""
    script = tmp_path / "contrib/mount/mount.s3mount"
    script.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / "contrib/mount/mount.s3mount", script)
    if place is not None:
        command = tmp_path / place / "s3mount"
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text('#!/bin/sh\necho "$@"\n')
        command.chmod(0o755)
    link = tmp_path / "sbin/mount.s3mount"
    link.parent.mkdir()
    link.symlink_to(script)
    environment = {"PATH": f"{tmp_path}/path:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([link, "data", "/mnt"], env=environment, capture_output=True, text=True)
    if place is None and done.returncode == 0:
        pytest.skip("s3mount is installed on this machine")
    expected = (32, "") if place is None else (0, "mount-helper data /mnt\n")
    assert (done.returncode, done.stdout) == expected
    assert place or "/etc/default/s3mount" in done.stderr

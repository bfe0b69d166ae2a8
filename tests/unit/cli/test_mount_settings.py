"""From the command line, ``-o`` and variables to the settings of a mount."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from s3mount.cli.mounts import mount as command
from s3mount.config import MountConfig, RunConfig, default_cache_dir, default_state_dir
from s3mount.errors import UsageError
from s3mount.refs import ObjectHeaders


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("S3MOUNT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def settings(*arguments: str) -> tuple[MountConfig, RunConfig]:
    with command.mount.make_context("mount", list(arguments)) as context:
        values = command._with_mount_options(context, context.params)
        return command.mount_config(values), command.run_config(values)


def test_defaults_are_safe_and_ones_own(tmp_path: Path) -> None:
    config, run = settings("data", str(tmp_path))
    assert (config.uid, config.gid) == (os.getuid(), os.getgid())
    granted = (config.suid, config.dev, config.allow_other, config.read_only, config.xattr)
    assert granted == (False,) * 5
    assert config.state_dir == str(default_state_dir() / config.identity)
    assert config.cache_dir == str(default_cache_dir())
    assert config.store.sign_requests
    assert config.store.verify_tls
    assert not run.foreground
    assert run.drain_timeout_s == 60.0


def test_every_option_reaches_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_text("")
    monkeypatch.chdir(tmp_path)
    config, run = settings(
        *("s3://data/some/where", str(tmp_path), "-f", "--read-only", "--region", "eu-west-1"),
        *("--endpoint-url", "http://127.0.0.1:1", "--profile", "work", "--no-sign-request"),
        *("--path-style", "--request-payer", "--no-verify-ssl", "--ca-bundle", "ca.pem"),
        *("--cache-dir", "c", "--cache-size", "1G", "--state-dir", "s", "--spool-size", "2G"),
        *("--part-size", "16M", "--prefetch-max", "64M", "--uploads", "3", "--upload-delay", "1s"),
        *("--metadata-ttl", "5m", "--attributes", "never", "--uid", "7", "--gid", "8"),
        *("--file-mode", "600", "--dir-mode", "700", "--allow-other", "--suid", "--dev", "--xattr"),
        *(
            "--storage-class",
            "STANDARD_IA",
            "--nonempty",
            "--log-file",
            "l",
            "--log-level",
            "debug",
        ),
        *("--drain-timeout", "9", "--no-fast-loop", "--acl", "bucket-owner-full-control"),
        *("--sse", "aws:kms", "--sse-kms-key-id", "arn:key", "--bucket-key"),
    )
    here = os.getcwd()
    store = config.store
    assert (store.bucket, config.prefix) == ("data", "some/where/")
    assert (store.region, store.endpoint_url, store.profile) == (
        "eu-west-1",
        "http://127.0.0.1:1",
        "work",
    )
    assert store.path_style
    assert store.request_payer
    assert not store.sign_requests
    assert not store.verify_tls
    assert store.ca_bundle == f"{here}/ca.pem"
    assert store.new_objects == ObjectHeaders(
        storage_class="STANDARD_IA",
        encryption="aws:kms",
        kms_key_id="arn:key",
        bucket_key="true",
        acl={"x-amz-acl": "bucket-owner-full-control"},
    )
    assert config.cache_dir == f"{here}/c"
    assert config.state_dir == f"{here}/s/{config.identity}"
    assert (config.cache_bytes_max, config.spool_bytes_max) == (1 << 30, 2 << 30)
    assert (config.part_bytes, config.prefetch_bytes_max) == (16 << 20, 64 << 20)
    assert (config.uploads_max, config.upload_delay_s, config.metadata_ttl_s) == (3, 1.0, 300.0)
    assert (config.attributes, config.uid, config.gid) == ("never", 7, 8)
    assert (config.file_mode, config.dir_mode) == (0o600, 0o700)
    assert config.allow_other
    assert config.suid
    assert config.dev
    assert config.xattr
    assert config.read_only
    assert not config.fast_loop
    assert run.foreground
    assert run.nonempty
    assert (run.log_file, run.log_level, run.drain_timeout_s) == (f"{here}/l", "debug", 9.0)
    assert run.source == "s3://data/some/where"


def test_every_option_has_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3MOUNT_PART_SIZE", "32M")
    monkeypatch.setenv("S3MOUNT_READ_ONLY", "1")
    monkeypatch.setenv("S3MOUNT_UID", "12")
    config, _ = settings("data", str(tmp_path))
    assert (config.part_bytes, config.read_only, config.uid) == (32 << 20, True, 12)


def test_a_name_wins_over_words_and_words_over_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3MOUNT_UID", "1")
    monkeypatch.setenv("S3MOUNT_GID", "1")
    monkeypatch.setenv("S3MOUNT_READ_ONLY", "1")
    config, _ = settings("data", str(tmp_path), "-o", "uid=2,gid=2,rw", "--uid", "3")
    assert (config.uid, config.gid, config.read_only) == (3, 2, False)


@pytest.mark.parametrize(
    ("arguments", "modes"),
    [
        ((), (0o644, 0o755)),
        (("--umask", "027"), (0o640, 0o750)),
        (("-o", "umask=0077"), (0o600, 0o700)),
        (("--umask", "0", "-o", "umask=077"), (0o666, 0o777)),
        (("--umask", "077", "--file-mode", "640"), (0o640, 0o700)),
    ],
)
def test_umask_gives_the_modes_that_are_not_named(
    tmp_path: Path, arguments: tuple[str, ...], modes: tuple[int, int]
) -> None:
    config, _ = settings("data", str(tmp_path), *arguments)
    assert (config.file_mode, config.dir_mode) == modes


def test_words_for_the_kernel_go_there(tmp_path: Path) -> None:
    _, run = settings("data", str(tmp_path), "-o", "noexec,_netdev", "-o", "noatime")
    assert run.kernel_options == ("noexec", "noatime")


def test_the_same_bucket_elsewhere_has_other_state(tmp_path: Path) -> None:
    one, _ = settings("data", str(tmp_path))
    two, _ = settings("data", str(tmp_path), "--endpoint-url", "http://127.0.0.1:9")
    three, _ = settings("s3://data/a", str(tmp_path))
    assert len({one.state_dir, two.state_dir, three.state_dir}) == 3


def test_without_home_the_list_of_users_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = pwd.struct_passwd(("me", "x", os.geteuid(), os.getegid(), "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    at_home, _ = settings("data", str(tmp_path))
    monkeypatch.delenv("HOME")
    config, _ = settings("data", str(tmp_path))
    assert config.state_dir == at_home.state_dir
    assert config.cache_dir == str(tmp_path / ".cache/s3mount")
    earlier = tmp_path / "var" / config.identity
    monkeypatch.setattr(command, "state_without_home", lambda identity: earlier)
    earlier.mkdir(parents=True)
    assert settings("data", str(tmp_path))[0].state_dir == str(earlier)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert default_state_dir() == Path("/var/lib/s3mount")


def test_a_link_to_the_mount_point_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    config, _ = settings("data", str(tmp_path / "link"))
    assert config.mountpoint == str(tmp_path / "real")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--part-size", "1M"),
        ("--uploads", "0"),
        ("--sse", "AES256", "--sse-kms-key-id", "arn:key"),
        ("--sse", "aws:kms:dsse", "--bucket-key"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        settings("data", str(tmp_path), *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("s3://data/x", "--prefix", "y"),
        ("data", "--endpoint-url", "localhost:1"),
        ("data", "--endpoint-url", "http://key:secret@localhost:1"),
        ("data", "--attributes", "maybe"),
        ("data", "--no-such-option"),
        ("data", "--uid", "root"),
        ("data", "--ca-bundle", "/nowhere/ca.pem"),
    ],
)
def test_wrong_usage_is_said(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        settings(arguments[0], str(tmp_path), *arguments[1:])


def test_help_leaves_out_what_few_need_and_help_all_shows_it() -> None:
    short, whole = (
        CliRunner().invoke(command.mount, [asked]).output for asked in ("--help", "--help-all")
    )
    experts = {"--cache-free", "--spool-wait", "--prefetch-max", "--upload-delay", "--no-fast-loop"}
    assert [name for name in experts if name in short] == []
    assert [name for name in experts if name not in whole] == []
    assert "--cache-size SIZE" in short
    assert "--ready-fd" not in whole

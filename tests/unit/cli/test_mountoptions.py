"""``-o`` as fstab has it: known words mean our options, foreign ones are passed over, others are named."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from s3mount.cli.mounts import mountoptions
from s3mount.cli.mounts.mount import mount
from s3mount.cli.mounts.mountoptions import FOR_KERNEL, FOR_OTHERS, Options, split


def read(*given: str) -> Options:
    context = click.Context(mount)
    options = Options(mount.params)
    for words in given:
        options.take(context, words)
    return options


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", []),
        (",,", []),
        ("ro", ["ro"]),
        ("ro, uid=5 ,", ["ro", "uid=5"]),
        (r"prefix=a\,b,ro", ["prefix=a,b", "ro"]),
        ('prefix="a,b",ro', ["prefix=a,b", "ro"]),
        (r"prefix=a\\,ro", ["prefix=a\\", "ro"]),
    ],
)
def test_words_stand_between_commas(given: str, words: list[str]) -> None:
    assert split(given) == words


@pytest.mark.parametrize(
    "word", sorted(FOR_OTHERS | {"x-systemd.automount", "X-mount.mkdir", "comment=mine", "user=me"})
)
def test_what_speaks_to_others_is_passed_over(word: str) -> None:
    options = read(word)
    assert options.values == {}
    assert options.kernel == []


@pytest.mark.parametrize("word", sorted(FOR_KERNEL))
def test_what_the_kernel_knows_goes_to_it(word: str) -> None:
    assert read(word).kernel == [word]


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("ro", "read_only", True),
        ("rw", "read_only", False),
        ("suid", "suid", True),
        ("nosuid", "suid", False),
        ("dev", "dev", True),
        ("nodev", "dev", False),
        ("allow_other", "allow_other", True),
        ("allow-other", "allow_other", True),
        ("nonempty", "nonempty", True),
        ("uid=1000", "uid", 1000),
        ("gid=100", "gid", 100),
        ("umask=027", "umask", 0o027),
        ("file_mode=0600", "file_mode", 0o600),
        ("dir-mode=700", "dir_mode", 0o700),
        ("cache-size=5G", "cache_size", 5 << 30),
        ("metadata_ttl=5m", "metadata_ttl", 300.0),
        ("endpoint_url=http://x:1/", "endpoint_url", "http://x:1/"),
        ("url=http://x:1/", "endpoint_url", "http://x:1/"),
        ("use_path_request_style", "path_style", True),
        ("no_sign_request", "no_sign_request", True),
        ("profile=work", "profile", "work"),
        ("path_style=false", "path_style", False),
    ],
)
def test_a_word_means_an_option(word: str, name: str, value: object) -> None:
    assert read(word).values == {name: value}


def test_labels_go_to_the_kernel_where_selinux_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = 'context="system_u:object_r:tmp_t:s0:c1,c2"'
    monkeypatch.setattr(mountoptions, "SELINUX", str(tmp_path / "none"))
    assert read(word).kernel == []
    monkeypatch.setattr(mountoptions, "SELINUX", str(tmp_path))
    assert read(word).kernel == [r"context=system_u:object_r:tmp_t:s0:c1\,c2"]


def test_the_last_word_wins() -> None:
    assert read("ro,rw,ro", "uid=1,uid=2").values == {"read_only": True, "uid": 2}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("reed_only", "unknown option 'reed_only'"),
        ("umask=9", "umask is an octal number"),
        ("remount", "unmount it, and mount it with the new options"),
        ("cache_size=10", "cannot be meant"),
        ("spool_size=0", "cannot be meant"),
        ("uid", "needs a value"),
        ("uid=me", "not a valid integer"),
        ("cache_size=much", "is no size"),
        ("ready_fd=3", "unknown option 'ready_fd'"),
        ("options=ro", "unknown option 'options'"),
        ("foreground", "unknown option 'foreground'"),
        ("max_read=4096", "unknown option 'max_read'"),
    ],
)
def test_what_nobody_knows_is_named(word: str, said: str) -> None:
    with pytest.raises(click.UsageError) as raised:
        read(word)
    assert f"-o {word}" in raised.value.format_message()
    assert said in raised.value.format_message()

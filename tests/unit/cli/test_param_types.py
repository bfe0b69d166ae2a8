"""Sizes, times, modes and buckets as people write them."""

from __future__ import annotations

import click
import pytest

from s3mount.cli import param_types


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("8k", 8 << 10),
        ("512MiB", 512 << 20),
        ("512mi", 512 << 20),
        ("10G", 10 << 30),
        ("10GB", 10 * 10**9),
        ("1.5T", 3 << 39),
        (" 2 P ", 2 << 50),
        ("0.5kilo", 512),
        ("1 mebi", 1 << 20),
        (".5K", 512),
    ],
)
def test_a_size_is_read_as_written(text: str, size_bytes: int) -> None:
    assert param_types.size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "ten", "-1", "5i", "1E", "1 000", "0x10"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no size such as"):
        param_types.size(text)


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("2.5s", 2.5),
        ("250ms", 0.25),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("2d", 172800.0),
    ],
)
def test_a_time_is_read_as_written(text: str, expected_s: float) -> None:
    assert param_types.seconds(text) == pytest.approx(expected_s)


@pytest.mark.parametrize("text", ["", "s", "-1", "1w", "nan"])
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time such as"):
        param_types.seconds(text)


@pytest.mark.parametrize(("text", "bits"), [("644", 0o644), ("0600", 0o600), ("0o7777", 0o7777)])
def test_a_mode_is_octal(text: str, bits: int) -> None:
    assert param_types.mode(text) == bits


@pytest.mark.parametrize("text", ["", "rw", "888", "10000", "-1"])
def test_what_is_no_mode_is_named(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no octal mode"):
        param_types.mode(text)


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("data", "data", ""),
        ("s3://data", "data", ""),
        ("s3://data/", "data", ""),
        ("s3://data/a/b", "data", "a/b/"),
        ("s3://data/a/b///", "data", "a/b/"),
        ("s3://data//a", "data", "a/"),
        (
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/x",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/x",
            "",
        ),
    ],
)
def test_a_bucket_is_taken_apart(text: str, bucket: str, prefix: str) -> None:
    assert param_types.parse_bucket(text) == (bucket, prefix)


@pytest.mark.parametrize(
    "text", ["", "s3://", "s3:///x", "https://data", "data/a", "/data", "a b", "my!data"]
)
def test_what_is_no_bucket_is_named(text: str) -> None:
    with pytest.raises(click.UsageError, match="is no bucket"):
        param_types.parse_bucket(text)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("10M", (10 << 20, 10 << 20)),
        ("512K:2MB", (512 << 10, 2_000_000)),
        ("off:1M", (0, 1 << 20)),
        ("1M:0", (1 << 20, 0)),
        ("off", (0, 0)),
    ],
)
def test_rates_are_up_and_down(word: str, meant: tuple[int, int]) -> None:
    assert param_types.rates(word) == param_types.rates(meant) == meant


@pytest.mark.parametrize("word", ["", "1M:2M:3M", "fast", "10", "1M:"])
def test_rates_that_cannot_be_meant_are_refused(word: str) -> None:
    with pytest.raises(click.BadParameter):
        param_types.rates(word)

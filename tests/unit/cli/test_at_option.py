"""Which words on the command line mean a bucket, a manifest or a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from s3mount.cli.manifests.at_option import is_manifest, shown_source, what_to_mount
from s3mount.errors import UsageError


def values(bucket: str, **more: Any) -> dict[str, Any]:
    given = {"at": None, "manifest": False, "manifest_bucket": None, "snapshots": False}
    return {**given, "prefix": "", "bucket": bucket, **more}


def test_a_file_is_a_manifest_by_its_name_or_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "a.csv.gz", "a.parquet", "manifest.json", "plain"):
        (tmp_path / name).touch()
    (tmp_path / "folder.csv").mkdir()
    for source in (
        "a.csv",
        "a.csv.gz",
        "a.parquet",
        "manifest.json",
        "./plain",
        str(tmp_path / "plain"),
    ):
        assert is_manifest(source, is_forced=False), source
    for source in ("plain", "missing.csv", "folder.csv", "bucket", "./missing"):
        assert not is_manifest(source, is_forced=False), source
        assert is_manifest(source, is_forced=True), source


def test_a_bucket_named_as_a_file_here_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mysnap").touch()
    assert what_to_mount(values("mysnap")) == ("mysnap", "", None)
    assert "as a manifest: ./mysnap" in capsys.readouterr().err
    assert what_to_mount(values("other")) == ("other", "", None)
    assert capsys.readouterr().err == ""


def test_a_url_is_a_manifest_by_its_end() -> None:
    assert is_manifest("s3://bucket/some/a.csv", is_forced=False)
    assert is_manifest("s3://bucket/inventory/manifest.json", is_forced=False)
    for source in ("s3://bucket", "s3://bucket/a.csv/", "s3://bucket/a"):
        assert not is_manifest(source, is_forced=False), source


def test_what_is_mounted(tmp_path: Path) -> None:
    manifest = tmp_path / "a.csv"
    manifest.touch()
    assert what_to_mount(values("s3://b/p")) == ("b", "p/", None)
    bucket, prefix, past = what_to_mount(values("s3://b/p", at="2026-10-01T00:00:00.5Z"))
    assert past is not None
    assert (bucket, prefix, past.said) == ("b", "p/", "2026-10-01T00:00:00.500Z")
    assert past.at_ns == 1_790_812_800_500_000_000
    bucket, prefix, past = what_to_mount(values(str(manifest), manifest_bucket="b"))
    assert past is not None
    assert (bucket, prefix, past.manifest, past.bucket) == ("b", "", str(manifest), "b")
    bucket, _, past = what_to_mount(values("s3://home/a.csv"))
    assert past is not None
    assert (bucket, past.manifest, past.bucket) == ("home", "s3://home/a.csv", None)


def test_what_does_not_go_together(tmp_path: Path) -> None:
    manifest = tmp_path / "a.csv"
    manifest.touch()
    for given in (
        values("b", at="2999-01-01"),
        values("b", at="2026-10-01", snapshots=True),
        values("b", manifest_bucket="c"),
        values(str(manifest), at="2026-10-01"),
        values(str(manifest), snapshots=True),
        values(str(manifest), prefix="p"),
    ):
        with pytest.raises(click.UsageError):
            what_to_mount(given)
    for time in ("noon", "2026-10-01T12:00", "2026-13-01"):
        with pytest.raises(UsageError, match=time):
            what_to_mount(values("b", at=time))


def test_the_source_tells_the_time() -> None:
    assert shown_source(values("b")) == "b"
    assert shown_source(values("b", at="-3d")) == "b@-3d"

"""The benchmark of the past: which commands it runs, and that it believes no tool."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bench.folders import FOLDER_TOOLS, Job
from bench.pasts import Past
from bench.process import StepFailed
from bench.server import Endpoint
from bench.snapshots import CHECKOUT, MOUNT, Amounts, PastRclone, PastS3Mount, parser
from bench.tools import Site

ENDPOINT = Endpoint("http://127.0.0.1:1", "key", "secret")


def test_every_tool_works_on_the_same_bucket_and_folder(tmp_path: Path) -> None:
    job = Job(ENDPOINT, "bucket", tmp_path / "m", tmp_path / "f", tmp_path / "c", 10)
    for tool in FOLDER_TOOLS:
        words = " ".join(tool.arguments(job))
        assert str(job.folder) in words
        assert "s3://bucket" in words or str(job.manifest) in words
        assert ENDPOINT.url in words
        assert tool.environment(job)["AWS_ACCESS_KEY_ID"] == "key"


def test_both_mounts_show_the_same_time(tmp_path: Path) -> None:
    site = Site("bucket", ENDPOINT, tmp_path, tmp_path, tmp_path, tmp_path)
    at = "2026-10-01T00:00:00Z"
    for tool in (PastS3Mount(at), PastRclone(at)):
        assert at in tool.arguments(site)


def test_what_a_tool_left_is_compared_with_what_was_written(tmp_path: Path) -> None:
    past = Past(ENDPOINT, "bucket", 2, 2)
    past.digests = {"d/a": hashlib.sha256(b"1").hexdigest(), "b": hashlib.sha256(b"2").hexdigest()}
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(b"1")
    with pytest.raises(StepFailed, match="1 files are there"):
        past.check(tmp_path)
    past.check(tmp_path, ["d/a"])
    (tmp_path / "b").write_bytes(b"X")
    with pytest.raises(StepFailed, match="other bytes"):
        past.check(tmp_path)
    (tmp_path / "b").write_bytes(b"2")
    past.check(tmp_path)


def test_the_rows_name_what_was_measured() -> None:
    options = parser().parse_args([])
    words = Amounts(options.files, options.mb, options.read).words()
    titles = [row.title.format(**words) for task in (CHECKOUT, MOUNT) for row in task.rows]
    assert titles[0] == "14,000 files, 480 MB into an empty folder"
    assert not any("{" in title for title in titles)

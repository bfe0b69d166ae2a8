"""What a mount records of its requests, and how fast it may be."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.mounting import Mount
from tests.servers import S3Server

pytestmark = pytest.mark.needs_s3  # not for the plain folder

KIB = 1 << 10


def seconds_to_read(path: Path, data: bytes) -> float:
    began_s = time.monotonic()
    assert path.read_bytes() == data
    return time.monotonic() - began_s


def test_a_mount_records_its_requests_and_keeps_to_its_rate(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    log = tmp_path / "requests.jsonl"
    options = ["--perf-log", str(log), "--bwlimit", "off:256K", "--write-through"]
    data = os.urandom(1024 * KIB)
    for name in ("there", "free", "held"):
        s3_server.boto3_client().put_object(Bucket=bucket, Key=name, Body=data)
    mount = Mount(s3_server, bucket, tmp_path, options=options)
    mount.mount()
    try:
        (mount.path / "small").write_bytes(b"x" * 5000)
        assert seconds_to_read(mount.path / "there", data) > 3
        for rate, name in (("off", "free"), ("1M:256K", "held")):
            done = mount.command("bwlimit", str(mount.path), rate)
            assert done.returncode == 0, done.stderr
            took_s = seconds_to_read(mount.path / name, data)
            assert (took_s > 3) == (name == "held"), took_s
    finally:
        mount.unmount()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    put = next(line for line in lines if line["kind"] == "put" and line["key"] == "small")
    assert (put["status"], put["attempts"]) == (200, 1)
    assert put["bytes"] >= 5000
    fetched = [
        line for line in lines if line["kind"] in ("get", "fetch") and line["key"] == "there"
    ]
    assert sum(line["bytes"] for line in fetched) >= len(data)

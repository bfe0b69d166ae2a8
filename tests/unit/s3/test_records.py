"""What is recorded of each request, and what is kept of an endpoint's speed from one run to the next."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import msgspec
import pytest
import trio

from s3mount.config import StoreConfig, TimeoutSettings
from s3mount.errors import LocalDiskError, NoSuchKeyError
from s3mount.flow.timeouts import Estimates, Latency
from s3mount.refs import ObjectHeaders
from s3mount.s3 import estimates
from s3mount.s3.client import S3Store
from s3mount.s3.http.perf_log import PerfLog, RequestRecord
from tests.servers import S3Server

pytestmark = pytest.mark.each_server

RECORD = RequestRecord(1, "put", 'a,"\n', 2, 10, 1.5, 3.25, 0.00667, 1.0, 200)


def config(server: S3Server, bucket: str, tmp_path: Path, log: str = "") -> StoreConfig:
    return StoreConfig(
        bucket=bucket,
        endpoint_url=server.endpoint_url,
        path_style=True,
        perf_logs=(str(tmp_path / log),) if log else (),
        estimates_dir=str(tmp_path / "estimates"),
    )


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
def test_every_request_has_a_line(
    s3_server: S3Server,
    bucket: str,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in s3_server.environment().items():
        monkeypatch.setenv(variable, value)

    async def main() -> None:
        async with S3Store(config(s3_server, bucket, tmp_path, name)) as store:
            await store.put("a/b c", b"x" * 3000, ObjectHeaders())
            await store.get("a/b c")
            with pytest.raises(NoSuchKeyError):
                await store.get("none")

    trio.run(main)
    trio.run(main)
    text = (tmp_path / name).read_text()
    lines = (
        list(csv.DictReader(text.splitlines()))
        if name.endswith(".csv")
        else [json.loads(line) for line in text.splitlines()]
    )
    assert all(list(line) == list(RequestRecord.__struct_fields__) for line in lines)
    told = [
        (line["kind"], line["key"], int(line["attempts"]), int(line["status"])) for line in lines
    ]
    one = [("put", "a/b c", 1, 200), ("get", "a/b c", 1, 200), ("get", "none", 1, 404)]
    assert told == one * 2
    for line in lines[:2]:
        assert int(line["bytes"]) >= 3000
        assert 0 < float(line["success_ms"]) <= float(line["total_ms"])
        speed = 1e-3 * int(line["bytes"]) / float(line["success_ms"])
        assert float(line["MBps"]) == pytest.approx(speed, rel=0.01)
        assert float(line["MBps_est"]) > 0
    assert float(lines[2]["success_ms"]) == float(lines[2]["MBps"]) == 0
    kept = list((tmp_path / "estimates").iterdir())
    assert [path.suffix for path in kept] == [".json"], "one endpoint, one file"
    assert "get" in estimates.load(kept[0]).latency


def test_a_csv_says_once_what_its_columns_are(tmp_path: Path) -> None:
    path = str(tmp_path / "log.csv")
    for _ in range(2):
        log = PerfLog(path)
        log(RECORD)
        log.close()
        log.close()
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(RequestRecord.__struct_fields__)
    assert rows[1] == rows[2] == [str(value) for value in msgspec.structs.astuple(RECORD)]


def test_a_log_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LocalDiskError, match=r"--perf-log .*No such file"):
        PerfLog(str(tmp_path / "none" / "log"))
    log = PerfLog("/dev/full")
    with caplog.at_level(logging.WARNING):
        log(RECORD)
        log(RECORD)
    log.close()
    assert len([each for each in caplog.records if "not recorded" in each.message]) == 1


def test_estimates_that_are_damaged_or_cannot_be_kept_cost_nothing(tmp_path: Path) -> None:
    known = Estimates({"get": Latency(0.5, 0.1)}, {"get": 1e-7})
    path = tmp_path / "new" / "file.json"
    estimates.save(path, known)
    assert estimates.load(path) == known
    path.write_text('{"latency": 5}')
    assert estimates.load(path) == estimates.load(None) == Estimates()
    estimates.save(tmp_path / "new" / "file.json" / "below", known)
    assert [each.name for each in path.parent.iterdir()] == ["file.json"]


def test_all_buckets_of_an_endpoint_share_what_was_learnt(tmp_path: Path) -> None:
    def file(bucket: str, base_url: str) -> Path | None:
        return estimates.file_of(
            StoreConfig(bucket=bucket, estimates_dir=str(tmp_path), timeouts=TimeoutSettings()),
            base_url,
        )

    aws = "s3.eu-west-1.amazonaws.com"
    assert file("a", f"https://a.{aws}") == file("b", f"https://{aws}")
    assert file("a", f"https://a.{aws}") != file("a", "https://a.s3.us-west-2.amazonaws.com")
    assert estimates.file_of(StoreConfig(bucket="a"), aws) is None

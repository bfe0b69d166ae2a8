"""``--perf``, ``--bwlimit`` and ``--background`` of the transfer commands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.bulk.moving import Moving, random_bytes
from tests.servers import S3Server

KIB = 1 << 10
TITLES = ["attempts", "bytes", "success_ms", "total_ms", "MBps", "MBps", "est", "request"]


@pytest.fixture
def moving(s3_server: S3Server, bucket: str, tmp_path: Path) -> Moving:
    return Moving(s3_server, bucket, tmp_path)


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table's rows."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.split() == TITLES)
    assert lines[-1] == "Done"
    assert lines[first][:108] == "".join(
        f"{title:>18}"
        for title in ("attempts", "bytes", "success_ms", "total_ms", "MBps", "MBps est")
    )
    return [line.split(None, 7) for line in lines[first + 1 : -1]]


def test_perf_tells_every_request_at_the_end(moving: Moving) -> None:
    moving.write("a b", random_bytes(70_000))
    done = moving.run("cp", "a b", f"{moving.s3}/x/", "--perf", "--perf-log", "log.jsonl")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stderr.decode())
    put = next(row for row in rows if row[6] == "put")
    assert (put[0], put[7]) == ("1", "x/a b")
    assert int(put[1]) >= 70_000
    assert 0 < float(put[4]) == pytest.approx(1e-3 * int(put[1]) / int(put[2]), rel=0.5)
    logged = [json.loads(line) for line in (moving.folder / "log.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["key"]) for line in logged] == [
        (row[6], row[7] if len(row) > 7 else "") for row in rows
    ]


def test_perf_tells_the_requests_of_all_lines_of_run(moving: Moving) -> None:
    moving.write("a", b"1")
    moving.write("b", b"2")
    lines = f"cp a {moving.s3}/a\ncp b {moving.s3}/b\ncp none {moving.s3}/c\n".encode()
    done = moving.run("run", "-", "--perf", stdin=lines)
    assert done.returncode == 1
    assert sorted(row[7] for row in rows_of(done.stderr.decode()) if row[6] == "put") == ["a", "b"]


def test_a_command_is_held_to_the_rate_that_it_was_given(moving: Moving) -> None:
    moving.write("file", random_bytes(1024 * KIB))
    began_s = time.monotonic()
    moving.told("cp", "file", f"{moving.s3}/file", "--bwlimit", "512K:off")
    assert time.monotonic() - began_s > 1.7
    began_s = time.monotonic()
    moving.told("cp", f"{moving.s3}/file", "back", "--bwlimit", "off:256K")
    assert time.monotonic() - began_s > 3.6
    assert (moving.folder / "back").read_bytes() == (moving.folder / "file").read_bytes()


def test_in_the_background_what_arrives_is_whole(moving: Moving) -> None:
    data = random_bytes(600 * KIB)
    moving.write("file", data)
    moving.told("cp", "file", f"{moving.s3}/file", "--background")
    moving.told("cp", f"{moving.s3}/file", "back", "--background")
    assert (moving.folder / "back").read_bytes() == data


def test_a_rate_that_cannot_be_meant_is_wrong_usage(moving: Moving) -> None:
    done = moving.run("cp", "file", f"{moving.s3}/file", "--bwlimit", "10")
    assert done.returncode == 2
    assert b"at least 4K" in done.stderr

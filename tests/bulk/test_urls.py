"""Files of web servers as sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bulk.ftp_server import FtpServer
from tests.bulk.moving import MIB, Moving, random_bytes
from tests.bulk.web import Web
from tests.servers import S3Server

DATA = random_bytes(12 * MIB + 345)
pytestmark = pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)


@pytest.fixture
def moving(s3_server: S3Server, bucket: str, tmp_path: Path) -> Moving:
    return Moving(s3_server, bucket, tmp_path)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(DATA) as served:
        yield served


def test_ranges_go_into_parts(moving: Moving, web: Web) -> None:
    web.cuts = 2
    told = moving.told("cp", f"{web.base}/moved", f"{moving.s3}/f", "--part-size", "5M")
    assert told[0]["bytes"] == len(DATA)
    assert moving.get("f") == DATA
    assert len(web.asked) >= 3 + 2
    # What an answer that was cut off brought is not asked for again.
    assert web.sent <= len(DATA) + 10
    moving.told("cp", web.url, f"{moving.s3}/into/")
    assert moving.keys("into/") == ["into/file.txt"]


def test_a_file_that_changes_meanwhile_is_begun_anew(moving: Moving, web: Web) -> None:
    other = DATA[::-1]

    def change(start: int) -> None:
        if start == 5 * MIB:
            web.data, web.etag = other, '"two"'

    web.on_range = change  # type: ignore[method-assign]
    moving.told("cp", web.url, f"{moving.s3}/f", "--part-size", "5M")
    assert moving.get("f") == other
    assert moving.uploads() == []


@pytest.mark.parametrize("size", [0, len(DATA)])
def test_a_server_without_ranges_is_read_in_one_stream(moving: Moving, web: Web, size: int) -> None:
    web.serves_ranges = False
    web.data = DATA[:size]
    moving.told("cp", web.url, f"{moving.s3}/f", "--part-size", "5M")
    assert moving.get("f") == DATA[:size]
    moving.told("cp", web.url, "here")
    assert (moving.folder / "here").read_bytes() == DATA[:size]
    assert web.asked == []


def test_to_a_file_it_is_gone_on_with(moving: Moving, web: Web) -> None:
    # The second range never comes.
    def fail(start: int) -> None:
        if start == 8 * MIB:
            raise ConnectionError

    web.on_range = fail  # type: ignore[method-assign]
    moving.told("cp", web.url, "here", status=5)
    assert not (moving.folder / "here").exists()
    web.on_range = lambda start: None  # type: ignore[method-assign]
    web.asked.clear()
    told = moving.told("cp", web.url, "here")
    assert told[-1]["bytes"] == len(DATA) - 8 * MIB
    assert (moving.folder / "here").read_bytes() == DATA
    assert [name for name in moving.folder.iterdir() if "here" in name.name] == [
        moving.folder / "here"
    ]


@pytest.mark.parametrize("restarts", [True, False])
def test_ftp(moving: Moving, restarts: bool) -> None:
    with FtpServer(DATA) as server:
        server.restarts = restarts
        server.cuts = 2 if restarts else 0
        moving.told("cp", server.url, f"{moving.s3}/f", "--part-size", "5M")
        assert moving.get("f") == DATA
        # Each cut costs a connection more, which goes on where it was.
        assert len(server.begun) == (5 if restarts else 1)
        moving.told("cp", server.url, "here")
        assert (moving.folder / "here").read_bytes() == DATA
        if not restarts:
            server.cuts = 1
            moving.told("cp", server.url, f"{moving.s3}/g", status=5)
        done = moving.run("cp", f"{server.url}-not", f"{moving.s3}/g")
        assert done.returncode == 5
        assert b"550 no such file" in done.stderr
        assert moving.keys() == ["f"]


def test_what_cannot_be_read_is_one_clear_line(moving: Moving, web: Web) -> None:
    for url, message in (
        (f"{web.base}/gone", "404"),
        ("http://127.0.0.1:1/x", "cannot be read"),
        ("gopher://there/x", "of no kind that can be read"),
    ):
        done = moving.run("cp", url, f"{moving.s3}/f")
        assert done.returncode == 5
        assert message in done.stderr.decode()
        assert b"Traceback" not in done.stderr
    assert moving.keys() == []

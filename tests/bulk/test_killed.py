"""Commands that are killed ten times in the middle of a large file: what has arrived is not moved again."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from s3mount.transfer.partial import BLOCK_SHIFT
from tests.bulk.moving import MIB, Moving
from tests.bulk.web import Web
from tests.fuse.bucket_contents import wait_until
from tests.servers import S3Server
from tests.servers.counting import Decision, Fault, Relay, Request

SIZE = 256 * MIB
KILLS = 10
STEP_BYTES = SIZE // (KILLS + 1)
TWICE_MAX = 0.05


class LetPass:
    """Lets requests with so many bytes pass, and all further ones of the kind hang."""

    def __init__(self, is_meant: Callable[[Request], int], fault: Fault) -> None:
        self._is_meant = is_meant
        self._fault = fault
        self._lock = threading.Lock()
        self._left = 0
        self._let: set[tuple[object, ...]] = set()
        self.passed = 0
        self.hung = 0

    def allow(self, more: int) -> None:
        """So many bytes more."""
        with self._lock:
            self._left, self.hung = more, 0
            self._let.clear()

    def __call__(self, request: Request) -> Decision:
        """What befalls ``request``."""
        size = self._is_meant(request)
        same = (request.method, request.path, request.query, request.asked)
        with self._lock:
            # What is asked for again since then was late, and not lost by a kill.
            if not size or same in self._let:
                return None
            if self._left <= 0:
                self.hung += 1
                return self._fault
            self._let.add(same)
            self._left -= size
            self.passed += size
            return None


def write_marked(path: Path) -> str:
    """A file that takes little disk, with a few bytes of its own in each MiB; its MD5."""
    rng = random.Random(3)
    digest = hashlib.md5()
    with path.open("wb", buffering=0) as file:
        file.truncate(SIZE)
        for number in range(SIZE // MIB):
            os.pwrite(file.fileno(), rng.randbytes(100), number * MIB + 1000)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def kill_ten_times(
    moving: Moving, decide: LetPass, arrived: Callable[[], int], *arguments: str
) -> None:
    """Each time when what was let pass has arrived, and more is on its way."""
    for _ in range(KILLS):
        decide.allow(STEP_BYTES)
        process = moving.start("cp", *arguments)
        try:
            wait_until(
                lambda: decide.hung > 0 and arrived() >= decide.passed, "all arrived", timeout_s=60
            )
        finally:
            process.kill()
            process.wait()
    decide.allow(SIZE)


def in_partial_file(folder: Path) -> int:
    """How much the partial file has: blocks with a checksum."""
    try:
        with (folder / ".file.partial").open("rb") as file:
            file.seek(SIZE)
            sums = file.read(8 * (SIZE >> BLOCK_SHIFT))
    except FileNotFoundError:
        return 0
    there = sum(sums[at : at + 8] != bytes(8) for at in range(0, len(sums), 8))
    return there << BLOCK_SHIFT


@pytest.mark.timeout(400)
@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_an_upload(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    moving = Moving(s3_server, bucket, tmp_path)
    digest = write_marked(tmp_path / "file")
    with Relay(s3_server.endpoint_url) as relay:
        moving.endpoint_url = relay.url

        def part(request: Request) -> int:
            return request.length if "partNumber=" in request.query else 0

        relay.decide = decide = LetPass(part, Fault.HANG)

        def arrived() -> int:
            """What S3 has."""
            uploads = moving.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
            sizes = (
                part["Size"]
                for each in uploads
                for part in moving.client.list_parts(
                    Bucket=bucket, Key="file", UploadId=each["UploadId"]
                ).get("Parts", ())
            )
            return sum(sizes)

        kill_ten_times(moving, decide, arrived, "file", f"{moving.s3}/file", "--part-size", "5M")
        moving.told("cp", "file", f"{moving.s3}/file", "--part-size", "5M")
        assert SIZE <= decide.passed <= SIZE * (1 + TWICE_MAX)
    body = moving.client.get_object(Bucket=bucket, Key="file")["Body"]
    assert hashlib.md5(body.read()).hexdigest() == digest
    assert moving.uploads() == []
    assert list((tmp_path / "state" / "s3mount" / "transfers").iterdir()) == []


@pytest.mark.timeout(400)
@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_a_download_from_a_web_server(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    moving = Moving(s3_server, bucket, tmp_path)
    (tmp_path / "far").mkdir()
    digest = write_marked(tmp_path / "far" / "file")
    with Web((tmp_path / "far" / "file").read_bytes()) as web, Relay(web.base) as relay:

        def asked(request: Request) -> int:
            return request.asked[1] if request.asked[1] > 1 else 0

        relay.decide = decide = LetPass(asked, Fault.HANG_INSIDE)
        url = f"{relay.url}/dir/file"
        kill_ten_times(moving, decide, lambda: in_partial_file(tmp_path), url, "file")
        assert not (tmp_path / "file").exists()
        moving.told("download", url, "file")
        assert SIZE <= decide.passed <= SIZE * (1 + TWICE_MAX)
    assert hashlib.md5((tmp_path / "file").read_bytes()).hexdigest() == digest


@pytest.mark.timeout(400)
@pytest.mark.parametrize("s3_server", ["localstack"], indirect=True)
def test_a_download(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    moving = Moving(s3_server, bucket, tmp_path)
    digest = write_marked(tmp_path / "file")
    moving.client.upload_file(str(tmp_path / "file"), bucket, "file")
    (tmp_path / "file").unlink()
    with Relay(s3_server.endpoint_url) as relay:
        moving.endpoint_url = relay.url

        def asked(request: Request) -> int:
            return request.asked[1] if request.method == "GET" else 0

        relay.decide = decide = LetPass(asked, Fault.HANG_INSIDE)

        kill_ten_times(
            moving, decide, lambda: in_partial_file(tmp_path), f"{moving.s3}/file", "file"
        )
        assert not (tmp_path / "file").exists()
        moving.told("cp", f"{moving.s3}/file", "file")
        assert SIZE <= decide.passed <= SIZE * (1 + TWICE_MAX)
    assert hashlib.md5((tmp_path / "file").read_bytes()).hexdigest() == digest
    assert [path.name for path in tmp_path.iterdir() if "file" in path.name] == ["file"]

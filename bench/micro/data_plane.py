"""What a request and a gibibyte cost the client, against a server that costs almost nothing.

``python -m bench.micro.data_plane`` prints requests/s, CPU microseconds per small request, MB/s and
CPU seconds per GiB of this process, over http and https.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from s3mount.config import StoreConfig
from s3mount.refs import ByteRange, FileSlice, ObjectHeaders
from s3mount.s3.client import S3Store

SMALL_REQUESTS = 10_000
PART = 8 << 20
PARTS = 128
HEADERS = ObjectHeaders(metadata={"mode": "33188", "mtime": "1700000000"})


async def in_parallel(count: int, width: int, one: Callable[[int], Awaitable[object]]) -> None:
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    async with trio.open_nursery() as nursery:
        for _ in range(width):
            nursery.start_soon(worker)


async def measure(
    name: str, count: int, width: int, size: int, one: Callable[[int], Awaitable[object]]
) -> None:
    await in_parallel(width, width, one)
    began, cpu = time.perf_counter(), time.process_time()
    await in_parallel(count, width, one)
    took, used = time.perf_counter() - began, time.process_time() - cpu
    if size <= 4096:
        print(f"{name:28} {count / took:9.0f} requests/s {used / count * 1e6:8.1f} us CPU each")
    else:
        moved = count * size
        print(f"{name:28} {moved / took / 1e6:9.0f} MB/s {used / (moved / 2**30):13.2f} CPU s/GiB")


async def run(url: str, ca_file: str | None, folder: Path) -> None:
    source, target = folder / "source", folder / "target"
    with open(source, "wb") as file:
        for _ in range(PART // (1 << 20)):
            file.write(os.urandom(1 << 20))
    target.write_bytes(bytes(PART * 8))
    config = StoreConfig(bucket="bench", endpoint_url=url, path_style=True, ca_bundle=ca_file)
    async with S3Store(config) as store:
        body = bytes(4096)
        await store.put("warm", body, HEADERS)

        async def fetch(number: int) -> None:
            slot = number % 8
            await store.fetch(
                "large",
                ByteRange(number % 100 * PART, PART),
                FileSlice(str(target), slot * PART, PART),
            )

        async def send(number: int) -> None:
            await store.upload_part(
                "large", "id", number % 100 + 1, FileSlice(str(source), 0, PART)
            )

        for width in (1, 8, 32):
            await measure(
                f"get 4 KiB, {width} at once",
                SMALL_REQUESTS,
                width,
                4096,
                lambda n: store.get(f"k{n}"),
            )
            await measure(
                f"put 4 KiB, {width} at once",
                SMALL_REQUESTS,
                width,
                4096,
                lambda n: store.put(f"k{n}", body, HEADERS),
            )
        for width in (1, 8):
            await measure(f"fetch 8 MiB to file, {width} at once", PARTS, width, PART, fetch)
            await measure(f"part of 8 MiB from file, {width}", PARTS, width, PART, send)


def make_certificate(folder: Path) -> tuple[str, str]:
    certificate, key = str(folder / "tls.pem"), str(folder / "tls.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", key]
    command += ["-out", certificate, "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def main() -> None:
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "bench")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "bench")
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    server = str(Path(__file__).with_name("bare_server.py"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate, key = make_certificate(folder)
        for scheme, files in (("http", []), ("https", [certificate, key])):
            if len(sys.argv) > 1 and scheme not in sys.argv[1:]:
                continue
            child = subprocess.Popen(
                [sys.executable, server, *files],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert child.stdout is not None
            print(scheme)
            try:
                port = int(child.stdout.readline())
                ca_file = certificate if files else None
                trio.run(run, f"{scheme}://127.0.0.1:{port}", ca_file, folder)
            finally:
                child.kill()
                child.wait()


if __name__ == "__main__":
    main()

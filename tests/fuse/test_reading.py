"""Reading on real mounts: how much is fetched, in which pieces, and what needs no request at all."""

from __future__ import annotations

import ast
import ctypes
import hashlib
import io
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pyarrow
import pytest
from pyarrow import parquet

from tests.fuse.bucket_contents import S3Contents
from tests.fuse.mounts import counter, engines_of, status_of
from tests.mounting import Mount
from tests.servers import S3Server
from tests.servers.counting import Relay

pytestmark = pytest.mark.needs_s3
KIB, MIB = 1 << 10, 1 << 20
BLOCK_BYTES = 64 * KIB
METADATA_TTL_S = 1.0
"""The mount's, unless told otherwise."""


def body_of(size: int, seed: int = 1) -> bytes:
    """Bytes that differ everywhere."""
    return random.Random(seed).randbytes(size)


class Distant(NamedTuple):
    """A mount behind a relay, with one object in its bucket."""

    mount: Mount
    relay: Relay
    body: bytes

    @property
    def path(self) -> Path:
        """The object's file."""
        return self.mount.path / "file"

    def ranges(self) -> list[tuple[int, int]]:
        """What was asked of the object since the relay forgot."""
        return [each.asked for each in self.relay.requests("GET", path_part="/file")]

    def fetched_bytes(self) -> int:
        """How many bytes that were."""
        return sum(length for _, length in self.ranges())


@pytest.fixture
def distant(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> Callable[..., Distant]:
    """``distant(size)``: an object of that size, cold; ``distant(body=...)``: one of these bytes."""
    relays = []

    def make(size: int = 0, *, body: bytes = b"") -> Distant:
        body = body or body_of(size)
        S3Contents(s3_server.boto3_client(), bucket).put("file", body)
        relay = Relay(s3_server.endpoint_url)
        relay.start()
        relays.append(relay)
        mount = mount_factory(bucket, endpoint_url=relay.url)
        relay.forget()
        return Distant(mount, relay, body)

    return make


def test_random_reads_fetch_small_blocks(distant: Callable[..., Distant]) -> None:
    """16 KiB anywhere: one request for one block, or for the two that they lie in."""
    place = distant(64 * MIB)
    rng = random.Random(2)
    offsets = [rng.randrange(len(place.body) - 16 * KIB) for _ in range(60)]
    with place.path.open("rb", buffering=0) as file:
        for offset in offsets:
            found = os.pread(file.fileno(), 16 * KIB, offset)
            assert found == place.body[offset : offset + 16 * KIB]
    # Some lie near each other by chance, and look for a moment like somebody who reads on.
    assert len(place.ranges()) <= 1.2 * len(offsets)
    assert place.fetched_bytes() <= 2.2 * BLOCK_BYTES * len(offsets)


def test_a_sequential_read_comes_in_large_pieces(distant: Callable[..., Distant]) -> None:
    place = distant(48 * MIB)
    assert place.path.read_bytes() == place.body
    ranges = place.ranges()
    assert sum(length for _, length in ranges) == len(place.body)
    assert len(ranges) <= len(place.body) // (8 * MIB) + 8


def test_the_footer_of_a_columnar_file_costs_little(distant: Callable[..., Distant]) -> None:
    """As Parquet is read: the last bytes tell the footer's length, the footer tells where columns lie."""
    place = distant(48 * MIB)
    size, body = len(place.body), place.body
    footer_bytes = 20 * KIB
    with place.path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        assert file.read(8) == body[-8:]
        file.seek(size - 8 - footer_bytes)
        assert file.read(footer_bytes) == body[size - 8 - footer_bytes : size - 8]
        assert place.fetched_bytes() <= 4 * BLOCK_BYTES
        for column in (5 * MIB, 21 * MIB, 33 * MIB):
            file.seek(column)
            assert file.read(MIB) == body[column : column + MIB]
    assert place.fetched_bytes() <= 3 * (MIB + 6 * MIB)


READ_MAPPED = """
import hashlib, mmap, sys
path, hint, *places = sys.argv[1:]
digest = hashlib.sha256()
with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    if hint == "random":
        mapped.madvise(mmap.MADV_RANDOM)
    for place in places:
        start, _, length = place.partition("+")
        digest.update(mapped[int(start) : int(start) + int(length)])
print(digest.hexdigest())
"""


def check_mapped(place: Distant, hint: str, places: list[tuple[int, int]]) -> None:
    """Another process maps the file and copies (start, length) from it: they must be the object's.

    Another, as a page fault holds Python's lock until the relay in this process has answered.
    """
    given = [f"{start}+{length}" for start, length in places]
    done = subprocess.run(
        [sys.executable, "-c", READ_MAPPED, str(place.path), hint, *given],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    wanted = hashlib.sha256()
    for start, length in places:
        wanted.update(place.body[start : start + length])
    assert done.stdout.strip() == wanted.hexdigest()


def test_a_mapped_file_fetches_what_is_touched(distant: Callable[..., Distant]) -> None:
    """As HDF5 and Arrow map files: a header, nodes of an index all over the file, then a chunk."""
    place = distant(48 * MIB)
    rng = random.Random(4)
    nodes = [(rng.randrange(0, len(place.body) - 544, 8), 544) for _ in range(40)]
    check_mapped(place, "random", [(0, 96), *nodes])
    assert place.fetched_bytes() <= 2 * BLOCK_BYTES * (len(nodes) + 1)
    check_mapped(place, "random", [(30 * MIB + 12_345, 300 * KIB)])


def test_a_mapped_file_is_whole_without_any_hint(distant: Callable[..., Distant]) -> None:
    place = distant(12 * MIB)
    places = [(start * MIB, MIB) for start in (11, 3, 0, 7)]
    check_mapped(place, "none", [*places, (0, len(place.body))])
    assert place.fetched_bytes() <= len(place.body) + 2 * MIB


READ_PARQUET = """
import sys
import pyarrow.parquet as parquet
path, mapped, group, column = sys.argv[1:]
file = parquet.ParquetFile(path, memory_map=mapped == "mapped")
print(file.metadata.num_rows, file.num_row_groups)
print(repr(file.read_row_group(int(group), columns=[column])[column].to_pylist()))
"""


def parquet_of(rows: int, columns: int, rows_per_group: int) -> tuple[pyarrow.Table, bytes]:
    """A table of random numbers and its file, of eight bytes for each number."""
    rng = random.Random(6)
    table = pyarrow.table(
        {f"c{number}": [rng.random() for _ in range(rows)] for number in range(columns)}
    )
    sink = io.BytesIO()
    parquet.write_table(
        table, sink, row_group_size=rows_per_group, compression="none", use_dictionary=False
    )
    return table, sink.getvalue()


@pytest.mark.parametrize("way", ["read", "mapped"])
def test_a_column_of_a_parquet_file_costs_little(distant: Callable[..., Distant], way: str) -> None:
    """By pyarrow, in another process: the footer, then one column of one row group."""
    rows, group, column = 60_000, 3, "c17"
    table, body = parquet_of(rows, 40, 15_000)
    place = distant(body=body)
    done = subprocess.run(
        [sys.executable, "-c", READ_PARQUET, str(place.path), way, str(group), column],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    numbers, values = done.stdout.splitlines()
    assert numbers == f"{rows} {rows // 15_000}"
    assert ast.literal_eval(values) == table[column][group * 15_000 :].to_pylist()
    assert place.fetched_bytes() <= len(body) // 8


READ_DESCRIPTOR = """
import hashlib, os, sys
number, size = int(sys.argv[1]), int(sys.argv[2])
print(hashlib.sha256(os.pread(number, size, 0)).hexdigest(), flush=True)
"""


def resume(stopped: list[psutil.Process]) -> None:
    """Let the processes go on. Repeatable."""
    for process in stopped:
        process.resume()


@contextmanager
def kept_in_memory(descriptor: int, size: int) -> Iterator[None]:
    """The kernel may drop a file's pages at any time, and on some machines does within seconds: not meanwhile.

    No descriptor more than before is open, as a child closes what it was not given, which the mount is told.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    pages = libc.mmap(
        None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0)
    )
    length = ctypes.c_size_t(size)
    if libc.mlock(ctypes.c_void_p(pages), length):
        raise OSError(ctypes.get_errno(), "mmap or mlock")
    try:
        yield
    finally:
        libc.munmap(ctypes.c_void_p(pages), length)


def test_what_was_read_is_read_again_without_the_process(distant: Callable[..., Distant]) -> None:
    """From the kernel's page cache, also by a later open: the mount's processes are stopped meanwhile.

    Also when what the mount said of its name is too old: an open file's attributes are its version's.
    """
    place = distant(3 * MIB)
    assert place.path.read_bytes() == place.body
    stopped = [psutil.Process(place.mount.pid), *engines_of(place.mount)]
    with (
        place.path.open("rb", buffering=0) as file,
        kept_in_memory(file.fileno(), len(place.body)),
    ):
        time.sleep(METADATA_TTL_S + 0.2)
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        # A reader that did have to ask the mount would wait for ever: it is let go after a while.
        rescue = threading.Timer(15, resume, (stopped,))
        rescue.start()
        reader = subprocess.Popen(
            [sys.executable, "-c", READ_DESCRIPTOR, str(file.fileno()), str(len(place.body))],
            pass_fds=[file.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdout is not None
        told = reader.stdout.readline()
        was_stopped = stopped[0].status() == psutil.STATUS_STOPPED
        rescue.cancel()
        resume(stopped)
        # Its end closes the descriptor, which the mount is told.
        reader.communicate(timeout=60)
    assert told.strip() == hashlib.sha256(place.body).hexdigest()
    assert was_stopped


def test_after_a_remount_the_disk_has_it(distant: Callable[..., Distant]) -> None:
    place = distant(20 * MIB)
    assert place.path.read_bytes() == place.body
    place.mount.remount()
    place.relay.forget()
    assert place.path.read_bytes() == place.body
    assert place.ranges() == []


def test_what_the_cache_disk_altered_is_fetched_anew(distant: Callable[..., Distant]) -> None:
    """A flipped bit and a stretch of zeros: programs get the object's bytes, S3 is asked for those blocks."""
    place = distant(20 * MIB)
    assert place.path.read_bytes() == place.body
    place.mount.unmount()
    (file,) = [
        each
        for each in place.mount.cache_dir.rglob("blocks/*/*")
        if each.is_file() and each.stat().st_size >= len(place.body)
    ]
    with file.open("r+b") as cached:
        cached.seek(5 * MIB + 77)
        cached.write(bytes([place.body[5 * MIB + 77] ^ 4]))
        cached.seek(11 * MIB)
        cached.write(bytes(2 * BLOCK_BYTES))
    place.mount.mount()
    place.relay.forget()
    assert place.path.read_bytes() == place.body
    assert place.fetched_bytes() == 3 * BLOCK_BYTES
    assert counter(place.mount, "cache_damaged") == 3


def test_readers_at_once_get_their_own_bytes_within_the_memory_allowed(
    bucket: str, mount_factory: Callable[..., Mount], s3_server: S3Server
) -> None:
    """Four programs read four large files: what they have on their way stays within --prefetch-max."""
    contents = S3Contents(s3_server.boto3_client(), bucket)
    bodies = {f"file-{number}": body_of(24 * MIB, number) for number in range(4)}
    for key, body in bodies.items():
        contents.put(key, body)
    mount = mount_factory(bucket, "--prefetch-max", "16M")
    seen: list[float] = []
    with ThreadPoolExecutor(4) as threads:
        reads = {key: threads.submit((mount.path / key).read_bytes) for key in bodies}
        while not all(read.done() for read in reads.values()):
            seen.append(counter(mount, "cache_prefetch_bytes"))
        for key, body in bodies.items():
            assert reads[key].result() == body
    assert max(seen) <= 16 * MIB


def test_status_tells_which_limits_of_the_kernel_were_raised(
    bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    """What sysfs says now is what status says; without the permission it is ``null``."""
    mount = mount_factory(bucket)
    kernel = status_of(mount)["kernel"]
    device = os.stat(mount.path).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    told = Path(f"/sys/class/bdi/{name}/read_ahead_kb")
    if kernel["read_ahead_kib"] is not None:
        assert kernel["read_ahead_kib"] == int(told.read_text()) >= 1024
    connection = Path(f"/sys/fs/fuse/connections/{os.minor(device)}")
    if kernel["background_max"] is not None:
        assert kernel["background_max"] == int((connection / "max_background").read_text())
        assert int((connection / "congestion_threshold").read_text()) > 12
    else:
        assert not os.access(connection / "max_background", os.W_OK)

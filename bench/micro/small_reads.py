"""CPU milliseconds that mount and engine take for a small read, a look-up and a getattr.

``python -m bench.micro.small_reads [--rtt-ms 20] [--tree OTHER]...`` starts a Ceph object gateway (or uses
``--endpoint-url``), and mounts a bucket anew for every round, cold. Each ``--tree`` is another checkout, measured in
turn with this one in the same minute: ratios hold on a busy machine, where figures do not. Medians of the rounds.

- read: open, read whole and close a cold file of 64 KiB, in an order that nobody can read ahead
- tar: the same one name after the other, as ``tar`` reads; both after one listing
- lookup, getattr: ``stat`` of names that the kernel does not know, and then of what it is told not to believe, in a
  listed folder
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.cli import add_server_flags, server
from bench.micro.mounted import Mounted
from bench.server import Endpoint, Truth, at_distance
from bench.tools import ROOT

READ_BYTES = 64 << 10
FOLDERS = ("read", "tar", "stat")
AT_FDCWD, AT_STATX_FORCE_SYNC, STATX_SIZE, STATX_BYTES = -100, 0x2000, 0x200, 256
_libc = ctypes.CDLL(None, use_errno=True)


class Cost(NamedTuple):
    """Milliseconds of one operation, by processes, and by the clock."""

    mount_ms: float
    engine_ms: float
    user_ms: float
    took_ms: float


def fresh_size(path: bytes) -> int:
    """The size by statx(2), which the kernel has to ask the mount for. Raises OSError."""
    told = ctypes.create_string_buffer(STATX_BYTES)
    if _libc.statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_SIZE, told):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return int.from_bytes(told.raw[40:48], sys.byteorder)


def read_all(path: bytes) -> None:
    """The whole file. Raises AssertionError where it is not that long."""
    handle = os.open(path, os.O_RDONLY)
    try:
        size = 0
        while piece := os.read(handle, READ_BYTES):
            size += len(piece)
        assert size == READ_BYTES, f"{path!r} has {size} bytes"
    finally:
        os.close(handle)


def measured(mounted: Mounted, names: Sequence[bytes], one: Callable[[bytes], object]) -> Cost:
    """What ``one`` of each name takes. A second is given to what is done behind it."""
    before = mounted.cpu_by_process_s()
    began_s = time.perf_counter()
    for name in names:
        one(name)
    took_s = time.perf_counter() - began_s
    time.sleep(1.0)
    after = mounted.cpu_by_process_s()
    spent = [
        (each.user_s - old.user_s, each.system_s - old.system_s)
        for each, old in zip(after, before, strict=True)
    ]
    each_ms = 1e3 / len(names)
    mount_s, *engines_s = [user_s + system_s for user_s, system_s in spent]
    user_s = sum(user_s for user_s, _ in spent)
    return Cost(mount_s * each_ms, sum(engines_s) * each_ms, user_s * each_ms, took_s * each_ms)


@contextmanager
def mount(tree: Path, endpoint: Endpoint, bucket: str, folder: Path) -> Iterator[Mounted]:
    """``bucket``, with empty cache and state, by the code of ``tree``."""
    top = folder / "mnt"
    for each in (top, folder / "cache", folder / "state"):
        each.mkdir(parents=True)
    environment = endpoint.environment() | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    where = ("--cache-dir", str(folder / "cache"), "--state-dir", str(folder / "state"))
    there = ("--endpoint-url", endpoint.url, "--path-style")
    command = ["s3mount", bucket, str(top), "--foreground", *where, *there]
    # What was listed is believed throughout: not the listing is measured.
    mounted = Mounted([*command, "--metadata-ttl", "600"], top, environment)
    try:
        yield mounted
    finally:
        mounted.close()
        shutil.rmtree(folder)


def rounds_of(
    tree: Path, endpoint: Endpoint, bucket: str, folder: Path, folders: Sequence[str]
) -> dict[str, Cost]:
    """Every measure of ``folders`` once."""
    costs: dict[str, Cost] = {}
    with mount(tree, endpoint, bucket, folder) as mounted:
        for name in folders:
            below = os.fsencode(mounted.top / name)
            names = [
                b"%s/%s" % (below, each) for each in sorted(known_names(endpoint, bucket, name))
            ]
            if name != "tar":
                random.Random(7).shuffle(names)
            fresh_size(names[0])
            if name == "stat":
                costs["lookup"] = measured(mounted, names[1:], os.stat)
                costs["getattr"] = measured(mounted, names[1:], fresh_size)
            else:
                costs[name] = measured(mounted, names[1:], read_all)
    return costs


_names: dict[str, list[bytes]] = {}


def known_names(endpoint: Endpoint, bucket: str, folder: str) -> list[bytes]:
    """The names below ``folder``, listed past the mount."""
    if folder not in _names:
        listing = Truth(endpoint).listing(bucket, f"{folder}/")
        _names[folder] = [key.removeprefix(f"{folder}/").encode() for key in listing]
    return _names[folder]


def fill(endpoint: Endpoint, bucket: str, reads: int, stats: int) -> None:
    """What is read and looked at."""
    client = endpoint.client()
    Truth(endpoint).make_bucket(bucket)
    for folder, count, size in (
        ("read", reads, READ_BYTES),
        ("tar", reads, READ_BYTES),
        ("stat", stats, 16),
    ):
        for number in range(count):
            client.put_object(Bucket=bucket, Key=f"{folder}/f{number:05d}", Body=os.urandom(size))


def table(results: dict[Path, list[dict[str, Cost]]]) -> str:
    """A line for each measure and tree, with its ratio to the first tree."""
    lines = [
        "| | tree | mount, ms | engine, ms | both, ms | of it user | elapsed, ms | to the first |"
    ]
    lines.append("|---|---|" + "---:|" * 6)
    first = next(iter(results))
    for name in results[first][0]:
        for tree, rounds in results.items():
            middle = Cost(
                *(
                    statistics.median(column)
                    for column in zip(*(each[name] for each in rounds), strict=True)
                )
            )
            both = [each[name].mount_ms + each[name].engine_ms for each in rounds]
            ratios = [
                one / (other[name].mount_ms + other[name].engine_ms)
                for one, other in zip(both, results[first], strict=True)
            ]
            lines.append(
                f"| {name} | {tree.name} | {middle.mount_ms:.3f} | {middle.engine_ms:.3f} "
                f"| {statistics.median(both):.3f} "
                f"| {middle.user_ms:.3f} | {middle.took_ms:.2f} | {statistics.median(ratios):.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_server_flags(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=300)
    parser.add_argument("--stats", type=int, default=4000)
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--only", nargs="+", choices=FOLDERS, default=FOLDERS, metavar="FOLDER")
    parser.add_argument("--tree", type=Path, action="append", default=[])
    parser.add_argument("--bucket", help="one that an earlier run with --keep filled")
    parser.add_argument("--keep", action="store_true", help="leave the bucket, and print its name")
    given = parser.parse_args()
    trees = [*(each.resolve() for each in given.tree), ROOT]
    results: dict[Path, list[dict[str, Cost]]] = {tree: [] for tree in trees}
    folder = Path(tempfile.mkdtemp(prefix="s3mount-bench-"))
    try:
        with server(given, folder / "server") as endpoint:
            bucket = given.bucket or f"bench-{uuid.uuid4().hex[:10]}"
            if not given.bucket:
                fill(endpoint, bucket, given.reads, given.stats)
            with at_distance(endpoint, given.rtt_ms) as there:
                for number in range(given.rounds):
                    for tree in trees:
                        place = folder / f"{number}-{tree.name}"
                        results[tree].append(rounds_of(tree, there, bucket, place, given.only))
            print(table(results))
            if given.keep:
                print(f"--bucket {bucket}")
            elif not given.bucket:
                Truth(endpoint).remove_bucket(bucket)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Time and memory of a walk through a live mount by the number of keys.

``python -m bench.micro.many_names 1000000 10000000`` mounts a bucket that exists only as a rule (any number of
keys in folders of 1,000, listed by the mount's own process: no server has to hold them), runs ``find`` over
all of it, and prints a table. Memory is the most that the mount's process ever took, the making of the pages
included; the status tells how much of it is inodes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.micro.mounted import Mounted

FILES_PER_FOLDER = 1000
FOLDERS_PER_GROUP = 1000


class Measured(NamedTuple):
    """One number of keys; memory in MiB."""

    entries: int
    find_s: float
    cpu_s: float
    start_mib: float
    peak_mib: float
    inode_bytes: float
    known: int
    dropped: int


def _lines(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    count = 0
    while block := process.stdout.read(1 << 16):
        count += block.count(b"\n")
    return count


def measure(keys: int, folder: Path) -> Measured:
    """``find`` over ``keys`` keys. Raises subprocess.CalledProcessError, AssertionError."""
    top = folder / "mnt"
    top.mkdir()
    folders = max(1, keys // FILES_PER_FOLDER)
    groups = max(1, folders // FOLDERS_PER_GROUP)
    shape = {"groups": groups, "folders": folders // groups, "files": FILES_PER_FOLDER}
    options = [text for name, count in shape.items() for text in (f"--{name}", str(count))]
    mounted = Mounted(["tests.fuse.generated_mount", str(top), str(folder), *options], top)
    try:
        start_mib = mounted.memory_mib("VmHWM")
        began_s = time.monotonic()
        with subprocess.Popen(["find", str(top)], stdout=subprocess.PIPE) as found:
            entries = _lines(found)
        find_s = time.monotonic() - began_s
        assert found.returncode == 0
        expected = groups * shape["folders"] * (FILES_PER_FOLDER + 1) + 1 + (groups > 1) * groups
        assert entries == expected, f"find saw {entries} of {expected}"
        command = [sys.executable, "-m", "s3mount", "status", "--json", str(top)]
        told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        listings = told["listings"]
        return Measured(
            entries,
            find_s,
            mounted.cpu_s(),
            start_mib,
            mounted.memory_mib("VmHWM"),
            listings["inode_bytes_each"],
            told["inodes"],
            listings["inodes_dropped"],
        )
    finally:
        mounted.close()


def main() -> None:
    """Print a line for each number of keys."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("keys", type=int, nargs="+")
    given = parser.parse_args()
    print(
        "| entries | `find` | CPU | memory before | peak memory | bytes per inode "
        "| inodes known at the end | dropped |",
        flush=True,
    )
    print("|" + "---:|" * 8, flush=True)
    for keys in given.keys:
        folder = Path(tempfile.mkdtemp(prefix="s3mount-bench-"))
        try:
            told = measure(keys, folder)
        finally:
            shutil.rmtree(folder)
        print(
            f"| {told.entries:,} | {told.find_s:.1f} s | {told.cpu_s:.1f} s | {told.start_mib:.0f} MiB "
            f"| {told.peak_mib:.0f} MiB | {told.inode_bytes:.0f} | {told.known:,} | {told.dropped:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

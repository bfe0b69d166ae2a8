"""Time and memory of a snapshot mount by the number of its manifest's entries.

``python -m bench.micro.manifest_mount 1000000 10000000`` generates manifests, mounts each twice (compiled
at the first mount, found again at the second), lists its top and walks a tenth of it (a million entries at
most), and prints a table. No S3 is needed: nothing is asked of it. Takes about 260 bytes of disk for each
entry, below --folder. CPU seconds are the mount's own, and hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.micro.mounted import Mounted
from s3mount.manifest.formats.writing import ManifestWriter
from s3mount.manifest.model import Entry

FOLDERS = 100
FILES_PER_FOLDER = 1000
BATCH = 10_000
MIB = 1 << 20
WALKED_MAX = 1_000_000


class Measured(NamedTuple):
    """One size; times in seconds, memory in MiB of all processes of the mount together."""

    entries: int
    manifest_mib: float
    catalog_mib: float
    first_s: float
    first_cpu_s: float
    compiling_mib: float
    second_s: float
    second_cpu_s: float
    mounted_mib: float
    walked: int
    walk_cpu_s: float
    walked_mib: float


def entries(count: int) -> Iterator[Entry]:
    """As a bucket of logs would have them: 1,000 files in a folder, in order."""
    for number in range(count):
        folder, file = divmod(number, FILES_PER_FOLDER)
        key = f"logs/{folder // FOLDERS:04d}/{folder % FOLDERS:02d}/part-{file:04d}.json.gz"
        version, etag = f"{number:032x}", f"{number:032x}"
        yield Entry("bucket", key, version, number % 100_000, etag, 10**18 + number * 1_000_000)


def write_manifest(path: Path, count: int) -> None:
    with path.open("wb") as file:
        writer = ManifestWriter(file)
        rest = entries(count)
        while batch := list(itertools.islice(rest, BATCH)):
            writer.write(batch)
        writer.finish()


def mount(manifest: Path, folder: Path) -> Mounted:
    """The command in the foreground, on a mount point of its own."""
    top = folder / "mnt"
    top.mkdir(exist_ok=True)
    environment = {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nobody",
        "S3MOUNT_RUN_DIR": str(folder / "run"),
    }
    (folder / "run").mkdir(mode=0o700, exist_ok=True)
    where = ("--state-dir", str(folder / "state"), "--cache-dir", str(folder / "cache"))
    nowhere = ("--endpoint-url", "http://127.0.0.1:9", "--path-style", "--region", "us-east-1")
    command = ["s3mount", "mount", str(manifest), str(top)]
    return Mounted(
        [*command, "--foreground", "--log-level", "error", *where, *nowhere], top, environment
    )


def measure(count: int, folder: Path) -> Measured:
    manifest = folder / "manifest.csv"
    write_manifest(manifest, count)
    # So old that its digest need not be computed again, as yesterday's is.
    time.sleep(2.1)
    began_s = time.monotonic()
    mounted = mount(manifest, folder)
    os.listdir(mounted.top)
    first_s = time.monotonic() - began_s
    first_cpu_s, compiling_mib = mounted.cpu_s(), mounted.memory_mib("VmHWM")
    mounted.close()
    (catalog,) = (folder / "cache" / "catalogs").glob("*.sqlite")
    began_s = time.monotonic()
    mounted = mount(manifest, folder)
    assert os.listdir(mounted.top) == ["logs"]
    second_s = time.monotonic() - began_s
    second_cpu_s, mounted_mib = mounted.cpu_s(), mounted.memory_mib("VmRSS")
    walked = walk(mounted.top / "logs", min(count // 10, WALKED_MAX))
    walk_cpu_s, walked_mib = mounted.cpu_s() - second_cpu_s, mounted.memory_mib("VmHWM")
    mounted.close()
    return Measured(
        count,
        manifest.stat().st_size / MIB,
        catalog.stat().st_size / MIB,
        first_s,
        first_cpu_s,
        compiling_mib,
        second_s,
        second_cpu_s,
        mounted_mib,
        walked,
        walk_cpu_s,
        walked_mib,
    )


def walk(top: Path, count: int) -> int:
    """Look at ``count`` files at least, as ``find`` does; how many were there."""
    seen = 0
    for name in sorted(os.listdir(top)):
        command = ["find", str(top / name), "-type", "f", "-printf", "x"]
        seen += len(subprocess.run(command, capture_output=True, check=True).stdout)
        if seen >= count:
            break
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("entries", type=int, nargs="+")
    parser.add_argument("--folder", help="where to work (a folder of its own is made there)")
    given = parser.parse_args()
    print(
        "| entries | manifest | catalog | first mount, `ls` | peak memory | second mount, `ls` | memory "
        "| `find` | memory |",
        flush=True,
    )
    print("|" + "---:|" * 9, flush=True)
    for count in given.entries:
        folder = Path(tempfile.mkdtemp(prefix="s3mount-bench-", dir=given.folder))
        try:
            told = measure(count, folder)
        finally:
            shutil.rmtree(folder)
        print(
            f"| {told.entries:,} | {told.manifest_mib:,.0f} MiB | {told.catalog_mib:,.0f} MiB "
            f"| {told.first_s:.1f} s ({told.first_cpu_s:.1f} s CPU) | {told.compiling_mib:.0f} MiB "
            f"| {told.second_s:.2f} s ({told.second_cpu_s:.2f} s CPU) | {told.mounted_mib:.0f} MiB "
            f"| {told.walked:,} files, {told.walk_cpu_s:.1f} s CPU | {told.walked_mib:.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()

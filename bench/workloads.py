"""The work that is measured: what is prepared, what a mount does, and what s5cmd does for the same."""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.lab import Cell, Lab, MountCell, RawCell, sizes_below, warm
from bench.mounting import drop_page_cache
from bench.process import Finished, StepFailed

PROBE = Path(__file__).with_name("probe.py")


@dataclass(frozen=True)
class Row:
    """One line of the table: a measure, what it is, and whether more of it is better."""

    measure: str
    title: str
    unit: str
    more_is_better: bool = True


@dataclass(frozen=True)
class Workload:
    """A piece of work.

    ``prepare`` puts what it reads into the bucket given: the one that all share, or, where
    ``own_bucket``, a new one for every cell, as the work changes it.
    """

    name: str
    rows: tuple[Row, ...]
    prepare: Callable[[Lab, str], None]
    mounted: Callable[[MountCell], None]
    raw: Callable[[RawCell], None]
    own_bucket: bool = False


def nothing(lab: Lab, bucket: str) -> None:
    """For work that starts on an empty bucket."""


# -- one big file ------------------------------------------------------------------------------


def write_big(cell: MountCell) -> None:
    """Copy the big file in; `seen` is when cp returns."""
    source = cell.lab.sources.big()
    warm(source)
    with cell.usage():
        done = cell.run(["cp", str(source), str(cell.path / "big.bin")])
        megabytes = cell.lab.scale.big_bytes / 1e6
        cell.record("seen_mb_s", megabytes / done.seconds)
        there_s = cell.wait_in_s3("big.bin", {"big.bin": cell.lab.scale.big_bytes})
        cell.record("in_s3_mb_s", megabytes / (there_s - done.started_s))


def write_big_raw(cell: RawCell) -> None:
    """The same by s5cmd cp."""
    source = cell.lab.sources.big()
    warm(source)
    done = cell.s5cmd("cp", str(source), f"s3://{cell.bucket}/big.bin")
    there_s = cell.wait_in_s3("big.bin", {"big.bin": cell.lab.scale.big_bytes})
    cell.record("in_s3_mb_s", cell.lab.scale.big_bytes / 1e6 / (there_s - done.started_s))


def prepare_big(lab: Lab, bucket: str) -> None:
    """The big file as one object."""
    lab.put(lab.sources.big(), bucket, "big.bin")


def read_once(cell: MountCell) -> float:
    """Read the big file by dd, check that all of it came, return MB/s."""
    done = cell.run(["dd", f"if={cell.path / 'big.bin'}", "of=/dev/null", "bs=1M"])
    if f"\n{cell.lab.scale.big_bytes} bytes" not in f"\n{done.stderr}":
        raise StepFailed(f"dd did not read all: {done.stderr.strip()}")
    return cell.lab.scale.big_bytes / 1e6 / done.seconds


def read_big(cell: MountCell) -> None:
    """Read cold; again from the page cache; without it; and without it after a remount."""
    with cell.usage():
        cell.record("cold_mb_s", read_once(cell))
    cell.record("warm_mb_s", read_once(cell))
    drop_page_cache()
    cell.record("dropped_mb_s", read_once(cell))
    cell.mount.remount()
    cell.record("remount_mb_s", read_once(cell))


def read_big_raw(cell: RawCell) -> None:
    """s5cmd cp to a local file."""
    cell.scratch.mkdir(parents=True)
    done = cell.s5cmd("cp", f"s3://{cell.bucket}/big.bin", f"{cell.scratch}/")
    cell.record("cold_mb_s", cell.lab.scale.big_bytes / 1e6 / done.seconds)


def prepare_quarters(lab: Lab, bucket: str) -> None:
    """Four files of a quarter of the big one's size."""
    for path in lab.sources.quarters():
        lab.put(path, bucket, f"quarters/{path.name}")


def read_quarters(cell: MountCell) -> None:
    """Four readers at once, each with a file of its own."""
    files = [f"{cell.path}/quarters/{path.name}" for path in cell.lab.sources.quarters()]
    each = " & ".join(f"dd if={file} of=/dev/null bs=1M" for file in files)
    with cell.usage():
        done = cell.shell(f"{{ {each} & wait; }} 2>&1")
    size = cell.lab.scale.big_bytes // 4
    if done.stdout.count(f"\n{size} bytes") + done.stdout.startswith(f"{size} bytes") < 4:
        raise StepFailed(f"dd did not read all: {done.stdout.strip()}")
    cell.record("cold_mb_s", cell.lab.scale.big_bytes / 1e6 / done.seconds)


def read_quarters_raw(cell: RawCell) -> None:
    """s5cmd cp of the four."""
    cell.scratch.mkdir(parents=True)
    done = cell.s5cmd("cp", f"s3://{cell.bucket}/quarters/*", f"{cell.scratch}/")
    cell.record("cold_mb_s", cell.lab.scale.big_bytes / 1e6 / done.seconds)


RANDOM_READ_BYTES = 16 << 10


def _offsets(cell: Cell) -> str:
    """Where the random reads begin, the same for every tool."""
    chosen = random.Random(8)
    last = cell.lab.scale.big_bytes - RANDOM_READ_BYTES
    return "\n".join(str(chosen.randrange(last)) for _ in range(cell.lab.scale.random_reads))


def random_reads(cell: MountCell) -> None:
    """16 KiB here and there of the cold big file, one after another."""
    probe = [sys.executable, str(PROBE), "random", str(cell.path / "big.bin")]
    with cell.usage():
        done = cell.run(probe, _offsets(cell).encode())
    cell.record("reads_s", cell.lab.scale.random_reads / json.loads(done.stdout))


def random_reads_raw(cell: RawCell) -> None:
    """A GET each on one kept connection."""
    (url,) = cell.lab.truth.urls(cell.endpoint, cell.bucket, ["big.bin"])
    done = cell.run([sys.executable, str(PROBE), "random-raw", url], _offsets(cell).encode())
    cell.record("reads_s", cell.lab.scale.random_reads / json.loads(done.stdout))


# -- many small files --------------------------------------------------------------------------


def write_small(cell: MountCell) -> None:
    """cp -r of a folder of small files into the mount."""
    source = cell.lab.sources.small()
    warm(source)
    count = cell.lab.scale.small_files
    with cell.usage():
        done = cell.run(["cp", "-r", str(source), str(cell.path / "small")])
        cell.record("seen_files_s", count / done.seconds)
        there_s = cell.wait_in_s3("small/", sizes_below(source, "small/"))
        cell.record("in_s3_files_s", count / (there_s - done.started_s))


def write_small_raw(cell: RawCell) -> None:
    """s5cmd cp of the folder."""
    source = cell.lab.sources.small()
    warm(source)
    done = cell.s5cmd("cp", f"{source}/", f"s3://{cell.bucket}/small/")
    there_s = cell.wait_in_s3("small/", sizes_below(source, "small/"))
    cell.record("in_s3_files_s", cell.lab.scale.small_files / (there_s - done.started_s))


def prepare_small(lab: Lab, bucket: str) -> None:
    """The small files as objects."""
    lab.put(lab.sources.small(), bucket, "small/")


def prepare_read(lab: Lab, bucket: str) -> None:
    """More small files as objects."""
    lab.put(lab.sources.read(), bucket, "read/")


def tar_once(cell: MountCell) -> float:
    """tar the folder through a pipe (into /dev/null GNU tar would not read), return files/s."""
    done = cell.shell(f"tar cf - -C {cell.path} read | wc -c")
    scale = cell.lab.scale
    if int(done.stdout) < scale.read_files * (scale.small_bytes + 512):
        raise StepFailed(f"tar wrote only {done.stdout.strip()} bytes")
    return scale.read_files / done.seconds


def read_small(cell: MountCell) -> None:
    """tar of the cold folder, and again."""
    with cell.usage():
        cell.record("cold_files_s", tar_once(cell))
    cell.record("again_files_s", tar_once(cell))


def read_small_raw(cell: RawCell) -> None:
    """s5cmd cp of all of them into a local folder."""
    cell.scratch.mkdir(parents=True)
    done = cell.s5cmd("cp", f"s3://{cell.bucket}/read/*", f"{cell.scratch}/")
    cell.record("cold_files_s", cell.lab.scale.read_files / done.seconds)


# -- listings ----------------------------------------------------------------------------------


def prepare_tree(lab: Lab, bucket: str) -> None:
    """Tiny objects in folders."""
    lab.put(lab.sources.tree(), bucket, "tree/")


def entries_per_s(cell: Cell, done: Finished, least: int) -> float:
    """Entries per second; all entries must have been printed."""
    if int(done.stdout) < least:
        raise StepFailed(f"only {done.stdout.strip()} of at least {least} lines")
    return cell.lab.scale.keys / done.seconds


def find_tree(cell: MountCell) -> None:
    """find on the cold tree, then ls -lR of what was just found."""
    scale = cell.lab.scale
    with cell.usage():
        done = cell.shell(f"find {cell.path}/tree | wc -l")
        cell.record("find_entries_s", entries_per_s(cell, done, scale.keys + scale.folders + 1))
    done = cell.shell(f"ls -lR {cell.path}/tree | wc -l")
    cell.record("then_ls_entries_s", entries_per_s(cell, done, scale.keys + scale.folders))


def list_tree(cell: MountCell) -> None:
    """ls -lR on the cold tree."""
    scale = cell.lab.scale
    with cell.usage():
        done = cell.shell(f"ls -lR {cell.path}/tree | wc -l")
        cell.record("ls_entries_s", entries_per_s(cell, done, scale.keys + scale.folders))


def find_tree_raw(cell: RawCell) -> None:
    """s5cmd ls of all keys."""
    done = cell.s5cmd("ls", f"s3://{cell.bucket}/tree/*")
    cell.record("find_entries_s", _listed_per_s(cell, done))


def list_tree_raw(cell: RawCell) -> None:
    """The same listing, as it holds sizes and times too."""
    done = cell.s5cmd("ls", f"s3://{cell.bucket}/tree/*")
    cell.record("ls_entries_s", _listed_per_s(cell, done))


def _listed_per_s(cell: RawCell, done: Finished) -> float:
    if done.stdout.count("\n") < cell.lab.scale.keys:
        raise StepFailed("s5cmd did not list all keys")
    return cell.lab.scale.keys / done.seconds


def prepare_wide(lab: Lab, bucket: str) -> None:
    """Very many tiny objects in folders."""
    lab.put(lab.sources.wide(), bucket, "wide/")


def _wide_per_s(cell: Cell, lines: int, seconds: float) -> float:
    scale = cell.lab.scale
    keys = scale.wide_folders * scale.keys_per_wide_folder
    if lines < keys:
        raise StepFailed(f"only {lines} of at least {keys} lines")
    return keys / seconds


def find_wide(cell: MountCell) -> None:
    """find on a large cold tree, then ls -lR of it."""
    with cell.usage():
        done = cell.shell(f"find {cell.path}/wide | wc -l")
        cell.record("find_entries_s", _wide_per_s(cell, int(done.stdout), done.seconds))
    done = cell.shell(f"ls -lR {cell.path}/wide | wc -l")
    cell.record("then_ls_entries_s", _wide_per_s(cell, int(done.stdout), done.seconds))


def find_wide_raw(cell: RawCell) -> None:
    """s5cmd ls of all keys."""
    done = cell.s5cmd("ls", f"s3://{cell.bucket}/wide/*")
    cell.record("find_entries_s", _wide_per_s(cell, done.stdout.count("\n"), done.seconds))


def prepare_flat(lab: Lab, bucket: str) -> None:
    """Very many tiny objects in one folder."""
    lab.put(lab.sources.flat(), bucket, "flat/")


def _flat_per_s(cell: Cell, lines: int, seconds: float) -> float:
    keys = cell.lab.scale.flat_keys
    if lines < keys:
        raise StepFailed(f"only {lines} of at least {keys} lines")
    return keys / seconds


def list_flat(cell: MountCell) -> None:
    """ls -l of a large cold folder."""
    with cell.usage():
        done = cell.shell(f"ls -l {cell.path}/flat | wc -l")
        cell.record("ls_entries_s", _flat_per_s(cell, int(done.stdout), done.seconds))


def list_flat_raw(cell: RawCell) -> None:
    """s5cmd ls of all keys."""
    done = cell.s5cmd("ls", f"s3://{cell.bucket}/flat/*")
    cell.record("ls_entries_s", _flat_per_s(cell, done.stdout.count("\n"), done.seconds))


# -- first byte --------------------------------------------------------------------------------


def prepare_first(lab: Lab, bucket: str) -> None:
    """Files of which only the beginning is waited for."""
    lab.put(lab.sources.first(), bucket, "first/")


def _shuffled(cell: Cell) -> list[str]:
    """Their names in an order that no read-ahead by name can guess, the same for every tool."""
    names = sorted(path.name for path in cell.lab.sources.first().iterdir())
    random.Random(7).shuffle(names)
    return names


def _record_quantiles(cell: Cell, done: Finished) -> None:
    times_ms: list[float] = json.loads(done.stdout)
    cuts = statistics.quantiles(times_ms, n=20, method="inclusive")
    cell.record("p50_ms", statistics.median(times_ms))
    cell.record("p95_ms", cuts[18])


def first_byte(cell: MountCell) -> None:
    """Open and read one byte of cold files, one after another."""
    names = "\n".join(str(cell.path / "first" / name) for name in _shuffled(cell))
    with cell.usage():
        done = cell.run([sys.executable, str(PROBE), "first-byte"], names.encode())
    _record_quantiles(cell, done)


def first_byte_raw(cell: RawCell) -> None:
    """One GET each on one kept connection."""
    keys = [f"first/{name}" for name in _shuffled(cell)]
    urls = "\n".join(cell.lab.truth.urls(cell.endpoint, cell.bucket, keys))
    _record_quantiles(cell, cell.run([sys.executable, str(PROBE), "first-byte-raw"], urls.encode()))


# -- rename and delete -------------------------------------------------------------------------


def prepare_moved(lab: Lab, bucket: str) -> None:
    """A folder to be renamed."""
    lab.put(lab.sources.moved(), bucket, "old/")


def _wait_moved(cell: Cell) -> float:
    """When the folder was seen in S3 under its new name, and nothing under the old one."""
    cell.wait_in_s3("new/", sizes_below(cell.lab.sources.moved(), "new/"))
    return _wait_gone(cell, "old/")


def _wait_gone(cell: Cell, prefix: str) -> float:
    """When nothing, not even a marker, was seen below ``prefix``."""
    return cell.lab.truth.wait_until(
        cell.bucket, prefix, lambda sizes: not sizes, cell.lab.timeout_s
    )


def move_folder(cell: MountCell) -> None:
    """mv of a folder that was not looked at before."""
    with cell.usage():
        done = cell.run(["mv", str(cell.path / "old"), str(cell.path / "new")])
        cell.record("seen_s", done.seconds)
        cell.record("in_s3_s", _wait_moved(cell) - done.started_s)


def move_folder_raw(cell: RawCell) -> None:
    """s5cmd mv of every key."""
    done = cell.s5cmd("mv", f"s3://{cell.bucket}/old/*", f"s3://{cell.bucket}/new/")
    cell.record("in_s3_s", _wait_moved(cell) - done.started_s)


def remove_small(cell: MountCell) -> None:
    """rm -rf of the folder of small files, not looked at before."""
    count = cell.lab.scale.small_files
    with cell.usage():
        done = cell.run(["rm", "-rf", str(cell.path / "small")])
        cell.record("seen_files_s", count / done.seconds)
        cell.record("in_s3_files_s", count / (_wait_gone(cell, "small/") - done.started_s))


def remove_small_raw(cell: RawCell) -> None:
    """s5cmd rm, which deletes 1,000 keys a request."""
    done = cell.s5cmd("rm", f"s3://{cell.bucket}/small/*")
    rate = cell.lab.scale.small_files / (_wait_gone(cell, "small/") - done.started_s)
    cell.record("in_s3_files_s", rate)


WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "write",
        (
            Row("seen_mb_s", "{big} write: seen", "MB/s"),
            Row("in_s3_mb_s", "... until in S3", "MB/s"),
        ),
        nothing,
        write_big,
        write_big_raw,
        own_bucket=True,
    ),
    Workload(
        "read",
        (
            Row("cold_mb_s", "{big} read: cold", "MB/s"),
            Row("warm_mb_s", "... again", "MB/s"),
            Row("dropped_mb_s", "... after the page cache was dropped", "MB/s"),
            Row("remount_mb_s", "... after remount, page cache dropped", "MB/s"),
        ),
        prepare_big,
        read_big,
        read_big_raw,
    ),
    Workload(
        "read-4",
        (Row("cold_mb_s", "four readers, {quarter} each: cold", "MB/s"),),
        prepare_quarters,
        read_quarters,
        read_quarters_raw,
    ),
    Workload(
        "random-read",
        (Row("reads_s", "{random} random 16 KiB reads of the cold {big}", "reads/s"),),
        prepare_big,
        random_reads,
        random_reads_raw,
    ),
    Workload(
        "small-write",
        (
            Row("seen_files_s", "{small} `cp -r`: seen", "files/s"),
            Row("in_s3_files_s", "... until in S3", "files/s"),
        ),
        nothing,
        write_small,
        write_small_raw,
        own_bucket=True,
    ),
    Workload(
        "small-read",
        (
            Row("cold_files_s", "{read} `tar c`: cold", "files/s"),
            Row("again_files_s", "... again", "files/s"),
        ),
        prepare_read,
        read_small,
        read_small_raw,
    ),
    Workload(
        "find",
        (
            Row("find_entries_s", "{keys}: `find`, cold", "entries/s"),
            Row("then_ls_entries_s", "... then `ls -lR`", "entries/s"),
        ),
        prepare_tree,
        find_tree,
        find_tree_raw,
    ),
    Workload(
        "ls",
        (Row("ls_entries_s", "{keys}: `ls -lR`, cold", "entries/s"),),
        prepare_tree,
        list_tree,
        list_tree_raw,
    ),
    Workload(
        "find-wide",
        (
            Row("find_entries_s", "{wide}: `find`, cold", "entries/s"),
            Row("then_ls_entries_s", "... then `ls -lR`", "entries/s"),
        ),
        prepare_wide,
        find_wide,
        find_wide_raw,
    ),
    Workload(
        "ls-flat",
        (Row("ls_entries_s", "{flat}: `ls -l`, cold", "entries/s"),),
        prepare_flat,
        list_flat,
        list_flat_raw,
    ),
    Workload(
        "first-byte",
        (
            Row("p50_ms", "first byte of a {first} file, p50", "ms", more_is_better=False),
            Row("p95_ms", "... p95", "ms", more_is_better=False),
        ),
        prepare_first,
        first_byte,
        first_byte_raw,
    ),
    Workload(
        "mv",
        (
            Row("seen_s", "`mv` of a folder of {moved}: seen", "s", more_is_better=False),
            Row("in_s3_s", "... until in S3", "s", more_is_better=False),
        ),
        prepare_moved,
        move_folder,
        move_folder_raw,
        own_bucket=True,
    ),
    Workload(
        "rm",
        (
            Row("seen_files_s", "`rm -rf` of {small}: seen", "files/s"),
            Row("in_s3_files_s", "... until in S3", "files/s"),
        ),
        prepare_small,
        remove_small,
        remove_small_raw,
        own_bucket=True,
    ),
)
COSTS: tuple[Row, ...] = (
    Row("cpu_s", "CPU seconds", "s", more_is_better=False),
    Row("peak_mib", "peak memory", "MiB", more_is_better=False),
)
"""Measured in every workload, from its start until its result is in S3 or the cold pass is over."""

"""Benchmarks of the past: a manifest checked out, and a bucket mounted as it was. ``python -m bench snapshots``.

Checkout works beside ``aws s3 sync`` and ``s5cmd sync``, on the live view of the same data; the mount
beside ``rclone mount --s3-version-at``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench import report
from bench.cli import add_server_flags, facts_of_machine, server, told
from bench.folders import FOLDER_TOOLS, FolderTool, Job
from bench.lab import MIB
from bench.mounting import Mount, drop_page_cache
from bench.pasts import Past
from bench.process import StepFailed, run
from bench.runner import CELL_ERRORS, Result, new_data_bucket, say, work_folder
from bench.server import Endpoint, at_distance
from bench.tools import Rclone, S3Mount, Site, Tool
from bench.workloads import Row

T = TypeVar("T")
RESULTS = Path("build") / "bench-snapshots"


@dataclass(frozen=True)
class Task:
    """A piece of work and its lines in the table."""

    name: str
    rows: tuple[Row, ...]


CHECKOUT = Task(
    "checkout",
    (
        Row("fresh_s", "{files} files, {mb} MB into an empty folder", "s", more_is_better=False),
        Row("nothing_s", "... again, with nothing to do", "s", more_is_better=False),
        Row("nothing_cpu_s", "... its CPU seconds", "s", more_is_better=False),
    ),
)
MOUNT = Task(
    "mount of the past",
    (
        Row("mount_s", "mount until the root answers", "s", more_is_better=False),
        Row("find_s", "`find` of {files} files, cold", "s", more_is_better=False),
        Row("cat_files_s", "`cat` of {read} files, cold", "files/s"),
        Row("again_files_s", "... again", "files/s"),
    ),
)


@dataclass(frozen=True)
class Amounts:
    """How much of everything."""

    files: int
    mb: int
    read: int

    def words(self) -> dict[str, str]:
        """For the titles of the rows."""
        return {"files": f"{self.files:,}", "mb": f"{self.mb:,}", "read": f"{self.read:,}"}


class PastS3Mount(S3Mount):
    """``s3mount BUCKET MOUNTPOINT --at TIME``."""

    def __init__(self, at: str) -> None:
        self._at = at

    def arguments(self, site: Site) -> list[str]:
        return [*super().arguments(site), "--at", self._at]


class PastRclone(Rclone):
    """``rclone mount --s3-version-at TIME``, else as for the present."""

    def __init__(self, at: str) -> None:
        self._at = at

    def arguments(self, site: Site) -> list[str]:
        return [*super().arguments(site), "--s3-version-at", self._at, "--read-only"]


@dataclass
class Bench:
    """One run of everything: where, with what, and what came out."""

    past: Past
    work_dir: Path
    amounts: Amounts
    timeout_s: float
    keep: Callable[[list[Result]], None]
    results: list[Result] = field(default_factory=list)
    _number: int = 0

    def round_of_checkouts(
        self, number: int, rtt_ms: float, endpoint: Endpoint, tools: Sequence[FolderTool]
    ) -> None:
        """Every tool once, the first of them another one each time."""
        for tool in _turned(tools, number):
            result = Result(rtt_ms, number, CHECKOUT.name, tool.name, {})
            error = ""
            place = self._place(tool.name)
            try:
                self._check_out(tool, endpoint, place, result.measures)
            except CELL_ERRORS as failure:
                error = str(failure) or type(failure).__name__
            finally:
                shutil.rmtree(place, ignore_errors=True)
            self._note(result, error)

    def _check_out(
        self, tool: FolderTool, endpoint: Endpoint, place: Path, measures: dict[str, float]
    ) -> None:
        folder = place / "folder"
        folder.mkdir(parents=True)
        manifest = place / "manifest.csv"
        self.past.write_manifest(manifest)
        job = Job(endpoint, self.past.bucket, manifest, folder, place / "cache", self.timeout_s)
        drop_page_cache()
        done = tool.run(job)
        measures["fresh_s"] = done.seconds
        measures["cpu_s"] = done.cpu_s
        measures["peak_mib"] = done.peak_rss_bytes / MIB
        self.past.check(folder)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        again = tool.run(job)
        if {path: path.stat().st_mtime_ns for path in before} != before:
            raise StepFailed("files were written again that were right already")
        measures["nothing_s"] = again.seconds
        measures["nothing_cpu_s"] = again.cpu_s
        measures["nothing_peak_mib"] = again.peak_rss_bytes / MIB

    def round_of_mounts(
        self, number: int, rtt_ms: float, endpoint: Endpoint, tools: Sequence[Tool]
    ) -> None:
        """Every mount once, fresh."""
        for tool in _turned(tools, number):
            result = Result(rtt_ms, number, MOUNT.name, tool.name, {})
            place = self._place(tool.name)
            site = Site(
                bucket=self.past.bucket,
                endpoint=endpoint,
                mountpoint=place / "mnt",
                cache_dir=place / "cache",
                state_dir=place / "state",
                log_path=place / "log",
            )
            place.mkdir(parents=True)
            mount = Mount(tool, site)
            error = ""
            try:
                drop_page_cache()
                self._look_around(mount, result.measures)
            except CELL_ERRORS as failure:
                error = str(failure) or type(failure).__name__
            try:
                mount.stop()
                shutil.rmtree(place, ignore_errors=True)
            except StepFailed as failure:
                error = error or str(failure)
            self._note(result, error)

    def _look_around(self, mount: Mount, measures: dict[str, float]) -> None:
        measures["mount_s"] = mount.start()
        used = mount.usage()
        top = mount.site.mountpoint
        find = ["bash", "-c", f"set -o pipefail; find {top} -type f | wc -l"]
        found = run(find, timeout_s=self.timeout_s, stragglers=mount.stragglers)
        if int(found.stdout) != len(self.past.digests):
            raise StepFailed(f"find shows {found.stdout.strip()} files")
        measures["find_s"] = found.seconds
        keys = sorted(self.past.digests)[: self.amounts.read]
        names = "\0".join(str(top / key) for key in keys).encode()
        for measure in ("cat_files_s", "again_files_s"):
            done = run(
                ["bash", "-c", "set -o pipefail; xargs -0 cat | sha256sum"],
                timeout_s=self.timeout_s,
                stdin=names,
                stragglers=mount.stragglers,
            )
            measures[measure] = len(keys) / done.seconds
        measures["cpu_s"], peak_bytes = used.read()
        measures["peak_mib"] = peak_bytes / MIB
        self.past.check(top, keys)

    def _place(self, name: str) -> Path:
        self._number += 1
        return self.work_dir / f"{self._number}-{name}"

    def _note(self, result: Result, error: str) -> None:
        noted = Result(
            result.rtt_ms, result.run, result.workload, result.tool, result.measures, error
        )
        self.results.append(noted)
        say(noted)
        self.keep(self.results)


def _turned(tools: Sequence[T], number: int) -> list[T]:
    first = number % len(tools)
    return [*tools[first:], *tools[:first]]


def parser() -> argparse.ArgumentParser:
    """All flags; --help is their documentation."""
    made = argparse.ArgumentParser(prog="python -m bench snapshots", description=__doc__)
    add_server_flags(made)
    made.add_argument("--only", choices=("checkout", "mount"), help="half of it")
    made.add_argument("--files", type=int, default=14_000)
    made.add_argument("--mb", type=int, default=480, help="of all files together (%(default)s)")
    made.add_argument("--read", type=int, default=2000, help="files to read from mounts")
    made.add_argument("--runs", type=int, default=3, help="medians over so many (%(default)s)")
    made.add_argument("--rtt-ms", default="0,20", help="added round trips (%(default)s)")
    made.add_argument("--step-timeout", type=float, default=900.0, metavar="S")
    made.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()))
    made.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    return made


def measure(options: argparse.Namespace) -> list[Result]:
    """Run everything that the options ask for and write the results."""
    folder = work_folder(options.work_dir)
    folder_tools = [tool for tool in FOLDER_TOOLS if tool.found]
    try:
        with server(options, folder / options.server) as endpoint:
            past = Past(endpoint, new_data_bucket(), options.files, options.mb * 1_000_000)
            amounts = Amounts(options.files, options.mb, min(options.read, options.files))
            facts = facts_of_machine(options) | {
                "versions": "; ".join(f"{tool.name}: {tool.version()}" for tool in folder_tools)
                + f"; rclone: {Rclone().version()}"
            }

            def keep(results: list[Result]) -> None:
                done = [
                    task
                    for task in (CHECKOUT, MOUNT)
                    if any(one.workload == task.name for one in results)
                ]
                report.write(options.results, results, done, amounts, facts)

            bench = Bench(past, folder, amounts, options.step_timeout, keep)
            past.fill()
            try:
                _rounds(bench, options, folder_tools, endpoint)
            finally:
                past.remove()
            return bench.results
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rounds(
    bench: Bench,
    options: argparse.Namespace,
    folder_tools: Sequence[FolderTool],
    endpoint: Endpoint,
) -> None:
    rtts_ms = [float(word) for word in options.rtt_ms.split(",")]
    if options.only != "mount":
        for number in range(options.runs):
            for rtt_ms in rtts_ms:
                with at_distance(endpoint, rtt_ms) as seen:
                    bench.round_of_checkouts(number, rtt_ms, seen, folder_tools)
    if options.only != "checkout":
        bench.past.move_on()
        assert bench.past.at is not None
        at = bench.past.at.strftime("%Y-%m-%dT%H:%M:%SZ")
        mounts = [tool for tool in (PastS3Mount(at), PastRclone(at)) if tool.found]
        for number in range(options.runs):
            for rtt_ms in rtts_ms:
                with at_distance(endpoint, rtt_ms) as seen:
                    bench.round_of_mounts(number, rtt_ms, seen, mounts)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all was measured (cells may fail), 2 for wrong flags, 130 when interrupted."""
    return told(parser().parse_args(argv), measure)

"""Benchmarks of the commands that move files without a mount. ``python -m bench transfers``.

``s3mount cp`` and ``sync`` beside s5cmd, rclone and the aws command, each as it comes: large files, several large
ones, many small ones, up and down, and a sync with nothing to do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import report
from bench.cli import add_server_flags, facts_of_machine, server, told
from bench.folders import Program
from bench.lab import MIB
from bench.mounting import drop_page_cache
from bench.process import Finished, StepFailed, run
from bench.runner import CELL_ERRORS, Result, new_data_bucket, say, work_folder
from bench.server import Endpoint, Truth, at_distance
from bench.tools import RAW, ROOT, Rclone
from bench.workloads import Row

RESULTS = Path("build") / "bench-transfers"


@dataclass(frozen=True)
class Task:
    """A folder that goes up and comes down: so many files of one size."""

    name: str
    files: int
    file_bytes: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """Its lines in the table."""
        if self.file_bytes < MIB:
            unit, least = "files/s", f"{self.files:,} x {self.file_bytes // 1024} KiB"
        else:
            unit, least = "MB/s", f"{self.files} x {self.file_bytes // MIB} MiB"
        found = []
        for way in ("up", "down"):
            found += [
                Row(f"{way}_rate", f"{least} {way}", unit),
                Row(f"{way}_cpu_s", "... CPU seconds", "s", more_is_better=False),
                Row(f"{way}_peak_mib", "... memory", "MiB", more_is_better=False),
            ]
        if self.file_bytes < MIB:
            found += [
                Row("nothing_s", "sync of them, with nothing to do", "s", more_is_better=False),
                Row("nothing_cpu_s", "... CPU seconds", "s", more_is_better=False),
            ]
        return tuple(found)

    def rate(self, seconds: float) -> float:
        """Files a second of small ones, else megabytes."""
        if self.file_bytes < MIB:
            return self.files / seconds
        return self.files * self.file_bytes / 1e6 / seconds


@dataclass(frozen=True)
class Amounts:
    """Nothing that the titles of the rows would need."""

    scale: float

    def words(self) -> dict[str, str]:
        """For the titles of the rows."""
        return {}


class Mover(Program):
    """A command that copies a folder to a prefix and back."""

    @abstractmethod
    def up(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        """What comes after the command to send the folder to below ``s3://BUCKET/PREFIX``."""

    @abstractmethod
    def down(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        """To fetch it."""

    @abstractmethod
    def sync(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        """To make the prefix hold what the folder holds."""

    def environment(self, endpoint: Endpoint, state: Path) -> dict[str, str]:
        """Environment for the command; ``state`` is a folder of this cell's own."""
        return endpoint.environment() | {
            "XDG_STATE_HOME": str(state),
            "XDG_CACHE_HOME": str(state),
        }


class S3MountMover(Mover):
    """This project, as it comes."""

    name = "s3mount"
    program = "s3mount"

    @property
    def found(self) -> list[str] | None:
        """The tree that this benchmark belongs to."""
        return [sys.executable, "-m", "s3mount"]

    @staticmethod
    def _common(endpoint: Endpoint) -> list[str]:
        return ["--endpoint-url", endpoint.url, "--path-style", "--quiet"]

    def up(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return ["cp", *self._common(endpoint), f"{folder}/", f"{url}/"]

    def down(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return ["cp", *self._common(endpoint), f"{url}/", f"{folder}/"]

    def sync(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return ["sync", *self._common(endpoint), f"{folder}/", f"{url}/"]

    def environment(self, endpoint: Endpoint, state: Path) -> dict[str, str]:
        return super().environment(endpoint, state) | {"PYTHONPATH": str(ROOT)}


class S5cmd(Mover):
    """s5cmd as it comes."""

    name = RAW
    program = RAW
    version_arguments = ("version",)

    @staticmethod
    def _common(endpoint: Endpoint) -> list[str]:
        return ["--endpoint-url", endpoint.url, "--log", "error"]

    def up(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return [*self._common(endpoint), "cp", f"{folder}/", f"{url}/"]

    def down(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return [*self._common(endpoint), "cp", f"{url}/*", f"{folder}/"]

    def sync(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return [*self._common(endpoint), "sync", f"{folder}/", f"{url}/"]


class Aws(Mover):
    """``aws s3`` as it comes."""

    name = "aws"
    program = "aws"

    @staticmethod
    def _common(endpoint: Endpoint) -> list[str]:
        return ["--endpoint-url", endpoint.url, "--only-show-errors"]

    def up(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return ["s3", "cp", "--recursive", str(folder), url, *self._common(endpoint)]

    def down(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return ["s3", "cp", "--recursive", url, str(folder), *self._common(endpoint)]

    def sync(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return ["s3", "sync", str(folder), url, *self._common(endpoint)]

    def environment(self, endpoint: Endpoint, state: Path) -> dict[str, str]:
        # Ceph 16 refuses the checksums that it would add by itself.
        when = "when_required"
        return super().environment(endpoint, state) | {
            "AWS_REQUEST_CHECKSUM_CALCULATION": when,
            "AWS_RESPONSE_CHECKSUM_VALIDATION": when,
        }


class RcloneMover(Mover):
    """``rclone copy`` and ``sync`` as they come, with 16 transfers at once, as its manual advises for small files."""

    name = "rclone"
    program = "rclone"
    version_arguments = ("version",)

    @staticmethod
    def _remote(url: str) -> str:
        return f":s3:{url.removeprefix('s3://')}"

    def up(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return ["copy", "--transfers", "16", str(folder), self._remote(url)]

    def down(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return ["copy", "--transfers", "16", self._remote(url), str(folder)]

    def sync(self, endpoint: Endpoint, folder: Path, url: str) -> list[str]:
        return ["sync", "--transfers", "16", str(folder), self._remote(url)]

    def environment(self, endpoint: Endpoint, state: Path) -> dict[str, str]:
        return super().environment(endpoint, state) | Rclone.settings(endpoint)


MOVERS: tuple[Mover, ...] = (S3MountMover(), S5cmd(), RcloneMover(), Aws())


@dataclass
class Bench:
    """One run of everything: where, with what, and what came out."""

    work_dir: Path
    bucket: str
    truth: Truth
    timeout_s: float
    keep: Callable[[list[Result]], None]
    results: list[Result] = field(default_factory=list)

    def round_of(
        self, task: Task, number: int, rtt_ms: float, endpoint: Endpoint, movers: Sequence[Mover]
    ) -> None:
        """Every tool once, the first of them another one each time."""
        source = self._source(task)
        first = number % len(movers)
        for mover in (*movers[first:], *movers[:first]):
            measures: dict[str, float] = {}
            error = ""
            place = self.work_dir / f"{task.name}-{mover.name}-{number}-{rtt_ms:g}"
            try:
                self._move(task, mover, endpoint, source, place, measures)
            except CELL_ERRORS as failure:
                error = str(failure) or type(failure).__name__
            finally:
                shutil.rmtree(place, ignore_errors=True)
            result = Result(rtt_ms, number, task.name, mover.name, measures, error)
            self.results.append(result)
            say(result)
            self.keep(self.results)

    def _source(self, task: Task) -> Path:
        folder = self.work_dir / task.name
        if not folder.exists():
            folder.mkdir()
            for number in range(task.files):
                with (folder / f"f{number:05}").open("wb") as file:
                    for start in range(0, task.file_bytes, MIB):
                        file.write(os.urandom(min(MIB, task.file_bytes - start)))
        return folder

    def _move(
        self,
        task: Task,
        mover: Mover,
        endpoint: Endpoint,
        source: Path,
        place: Path,
        measures: dict[str, float],
    ) -> None:
        command = mover.found
        if command is None:
            raise StepFailed(f"{mover.program} is not installed")
        target, state = place / "target", place / "state"
        target.mkdir(parents=True)
        state.mkdir()
        url = f"s3://{self.bucket}/{place.name}"
        environment = mover.environment(endpoint, state)

        def do(arguments: list[str]) -> Finished:
            drop_page_cache()
            return run([*command, *arguments], timeout_s=self.timeout_s, environment=environment)

        sent = do(mover.up(endpoint, source, url))
        _note(measures, "up", task, sent)
        sizes = self.truth.listing(self.bucket, f"{place.name}/")
        if sorted(sizes.values()) != [task.file_bytes] * task.files:
            raise StepFailed(f"S3 holds {len(sizes)} of {task.files} files, or others")
        fetched = do(mover.down(endpoint, target, url))
        _note(measures, "down", task, fetched)
        measures["cpu_s"] = sent.cpu_s + fetched.cpu_s
        measures["peak_mib"] = max(sent.peak_rss_bytes, fetched.peak_rss_bytes) / MIB
        run(["diff", "-r", str(source), str(target)], timeout_s=self.timeout_s)
        if task.file_bytes < MIB:
            do(mover.sync(endpoint, source, url))
            again = do(mover.sync(endpoint, source, url))
            measures["nothing_s"] = again.seconds
            measures["nothing_cpu_s"] = again.cpu_s


def _note(measures: dict[str, float], way: str, task: Task, done: Finished) -> None:
    measures[f"{way}_rate"] = task.rate(done.seconds)
    measures[f"{way}_cpu_s"] = done.cpu_s
    measures[f"{way}_peak_mib"] = done.peak_rss_bytes / MIB


def parser() -> argparse.ArgumentParser:
    """All flags; --help is their documentation."""
    made = argparse.ArgumentParser(prog="python -m bench transfers", description=__doc__)
    add_server_flags(made)
    made.add_argument("--only", default="", help="of one, eight, small, those with commas")
    made.add_argument("--tools", default="", help="of s3mount, s5cmd, rclone, aws, likewise")
    made.add_argument("--scale", type=float, default=1.0, help="of the files' sizes and number")
    made.add_argument("--runs", type=int, default=3, help="medians over so many (%(default)s)")
    made.add_argument("--rtt-ms", default="0,20", help="added round trips (%(default)s)")
    made.add_argument("--step-timeout", type=float, default=900.0, metavar="S")
    made.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()))
    made.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    return made


def tasks(scale: float) -> tuple[Task, ...]:
    """All of them, with files ``scale`` times as large, or as many."""
    return (
        Task("one", 1, max(1, round(1024 * scale)) * MIB),
        Task("eight", 8, max(1, round(256 * scale)) * MIB),
        Task("small", max(1, round(5000 * scale)), 4096),
    )


def measure(options: argparse.Namespace) -> list[Result]:
    """Run everything that the options ask for and write the results."""
    folder = work_folder(options.work_dir)
    chosen = [task for task in tasks(options.scale) if task.name in (options.only or task.name)]
    movers = [
        mover for mover in MOVERS if mover.found and mover.name in (options.tools or mover.name)
    ]
    facts = facts_of_machine(options) | {
        "versions": "; ".join(f"{mover.name}: {mover.version()}" for mover in movers)
    }

    def keep(results: list[Result]) -> None:
        done = [task for task in chosen if any(one.workload == task.name for one in results)]
        report.write(options.results, results, done, Amounts(options.scale), facts)

    try:
        with server(options, folder / options.server) as endpoint:
            bucket = new_data_bucket()
            truth = Truth(endpoint)
            truth.make_bucket(bucket)
            bench = Bench(folder, bucket, truth, options.step_timeout, keep)
            try:
                for number in range(options.runs):
                    for rtt_ms in map(float, options.rtt_ms.split(",")):
                        with at_distance(endpoint, rtt_ms) as seen:
                            for task in chosen:
                                bench.round_of(task, number, rtt_ms, seen, movers)
            finally:
                truth.remove_bucket(bucket)
            return bench.results
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all was measured (cells may fail), 2 for wrong flags, 130 when interrupted."""
    return told(parser().parse_args(argv), measure)

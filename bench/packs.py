"""Benchmarks of packs: small files through a mount with ``--pack-below`` and without. ``python -m bench packs``.

Beside the times stands how many PUTs it took. The last row compacts what is left of the packs after half of the files
were removed, while another mount reads the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import report
from bench.cli import add_server_flags, facts_of_machine, server, told
from bench.lab import MIB
from bench.mounting import Mount, drop_page_cache
from bench.process import Finished, StepFailed, run
from bench.runner import CELL_ERRORS, Result, new_data_bucket, say, work_folder
from bench.server import Endpoint, Truth, at_distance
from bench.tools import S3Mount, Site
from bench.workloads import Row

RESULTS = Path("build") / "bench-packs"


@dataclass(frozen=True)
class Task:
    """A piece of work and its lines in the table."""

    name: str
    rows: tuple[Row, ...]


PACKS = Task(
    "packs",
    (
        Row("seen_s", "`cp -r` of {files} files of {bytes} bytes", "s", more_is_better=False),
        Row("in_s3_s", "... until all are in S3", "s", more_is_better=False),
        Row("puts", "... its PUTs", "", more_is_better=False),
        Row("write_cpu_s", "... its CPU seconds", "s", more_is_better=False),
        Row("tar_s", "`tar` of the tree, cold, another mount", "s", more_is_better=False),
        Row("compact_s", "`pack compact` after every 2nd was removed", "s", more_is_better=False),
        Row(
            "compacted_share", "... bytes in S3 after it, of those before", "", more_is_better=False
        ),
    ),
)


@dataclass(frozen=True)
class Amounts:
    """How much of everything."""

    files: int
    file_bytes: int

    def words(self) -> dict[str, str]:
        """For the titles of the rows."""
        return {"files": f"{self.files:,}", "bytes": f"{self.file_bytes:,}"}


class PlainMount(S3Mount):
    """``s3mount BUCKET MOUNTPOINT``, with a record of its requests."""

    options: tuple[str, ...] = ()

    def arguments(self, site: Site) -> list[str]:
        log = ("--perf-log", str(site.state_dir / "requests.json"))
        return [*super().arguments(site), *log, *self.options]


class PackMount(PlainMount):
    """The same with ``--pack-below 64K``."""

    name = "s3mount --pack-below"
    options = ("--pack-below", "64K")


@dataclass
class Bench:
    """One run of everything: where, with what, and what came out."""

    work_dir: Path
    amounts: Amounts
    timeout_s: float
    keep: Callable[[list[Result]], None]
    results: list[Result] = field(default_factory=list)
    _number: int = 0

    def round(self, number: int, rtt_ms: float, origin: Endpoint, seen: Endpoint) -> None:
        """Both mounts once, on a bucket of their own."""
        source = self._source()
        for tool in (PlainMount(), PackMount())[:: 1 if number % 2 else -1]:
            result = Result(rtt_ms, number, PACKS.name, tool.name, {})
            bucket, s3 = new_data_bucket(), Truth(origin)
            s3.make_bucket(bucket)
            error = ""
            self._number += 1
            place = self.work_dir / f"{self._number}"
            mounts = [Mount(tool, self._site(bucket, seen, place / name)) for name in ("a", "b")]
            try:
                self._write(mounts[0], source, result.measures)
                self._read(mounts[1], result.measures)
                if isinstance(tool, PackMount):
                    self._compact(mounts, s3, result.measures)
            except CELL_ERRORS as failure:
                error = str(failure) or type(failure).__name__
            try:
                for mount in mounts:
                    mount.stop()
                s3.remove_bucket(bucket)
                shutil.rmtree(place, ignore_errors=True)
            except StepFailed as failure:
                error = error or str(failure)
            noted = replace(result, error=error)
            self.results.append(noted)
            say(noted)
            self.keep(self.results)

    def _source(self) -> Path:
        folder = self.work_dir / "source"
        for number in range(0 if folder.exists() else self.amounts.files):
            place = folder / f"{number // 1000:03}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:06}").write_bytes(os.urandom(self.amounts.file_bytes))
        return folder

    @staticmethod
    def _site(bucket: str, endpoint: Endpoint, place: Path) -> Site:
        place.mkdir(parents=True)
        folders = (place / "mnt", place / "cache", place / "state", place / "log")
        return Site(bucket, endpoint, *folders)

    def _do(self, mount: Mount, *argv: str) -> Finished:
        return run(list(argv), timeout_s=self.timeout_s, stragglers=mount.stragglers)

    def _s3mount(self, mount: Mount, *words: str) -> Finished:
        return run(
            [*(mount.tool.found or []), *words],
            timeout_s=self.timeout_s,
            environment=mount.tool.environment(mount.site),
        )

    def _write(self, mount: Mount, source: Path, measures: dict[str, float]) -> None:
        mount.start()
        used = mount.usage()
        top = str(mount.site.mountpoint)
        copied = self._do(mount, "cp", "-r", f"{source}/.", f"{top}/")
        waited = self._s3mount(mount, "wait", top)
        measures["seen_s"] = copied.seconds
        measures["in_s3_s"] = waited.started_s + waited.seconds - copied.started_s
        measures["write_cpu_s"], peak_bytes = used.read()
        measures["peak_mib"] = peak_bytes / MIB
        lines = (mount.site.state_dir / "requests.json").read_text().splitlines()
        asked = [json.loads(line) for line in lines]
        measures["puts"] = sum(
            each["kind"] == "put" and ".s3mount/probe-" not in each["key"] for each in asked
        )

    def _read(self, mount: Mount, measures: dict[str, float]) -> None:
        mount.start()
        drop_page_cache()
        done = self._do(mount, "bash", "-c", f"tar cf - -C {mount.site.mountpoint} . | wc -c")
        if int(done.stdout) < self.amounts.files * self.amounts.file_bytes:
            raise StepFailed(f"tar wrote only {done.stdout.strip()} bytes")
        measures["tar_s"] = done.seconds

    def _compact(self, mounts: list[Mount], s3: Truth, measures: dict[str, float]) -> None:
        """Remove every second file, compact, and read all of the rest meanwhile by the other mount."""
        writer, reader = mounts
        bucket = writer.site.bucket
        self._do(writer, "bash", "-c", f"rm {writer.site.mountpoint}/*/*[02468]")
        self._s3mount(writer, "wait", str(writer.site.mountpoint))
        before = sum(s3.listing(bucket).values())
        reader.stop()
        shutil.rmtree(reader.site.cache_dir)
        reader.start()
        at = ("--endpoint-url", writer.site.endpoint.url, "--path-style", "--live-below", "0.9")
        words = " ".join([*(writer.tool.found or []), "pack", "compact", f"s3://{bucket}/", *at])
        script = (
            f"{words} >/dev/null & find {reader.site.mountpoint} -type f | xargs cat | wc -c; wait"
        )
        done = run(
            ["bash", "-c", script],
            timeout_s=self.timeout_s,
            environment=writer.tool.environment(writer.site),
            stragglers=reader.stragglers,
        )
        if int(done.stdout) != self.amounts.files // 2 * self.amounts.file_bytes:
            raise StepFailed(f"while it was compacted {done.stdout.strip()} bytes were read")
        measures["compact_s"] = done.seconds
        measures["compacted_share"] = sum(s3.listing(bucket).values()) / before


def parser() -> argparse.ArgumentParser:
    """All flags; --help is their documentation."""
    made = argparse.ArgumentParser(prog="python -m bench packs", description=__doc__)
    add_server_flags(made)
    made.add_argument("--files", type=int, default=10_000)
    made.add_argument("--file-bytes", type=int, default=4096)
    made.add_argument("--runs", type=int, default=3, help="medians over so many (%(default)s)")
    made.add_argument("--rtt-ms", default="0,20", help="added round trips (%(default)s)")
    made.add_argument("--step-timeout", type=float, default=900.0, metavar="S")
    made.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()))
    made.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    return made


def measure(options: argparse.Namespace) -> list[Result]:
    """Run everything that the options ask for and write the results."""
    folder = work_folder(options.work_dir)
    amounts = Amounts(options.files, options.file_bytes)
    try:
        with server(options, folder / options.server) as endpoint:
            facts = facts_of_machine(options)

            def keep(results: list[Result]) -> None:
                report.write(options.results, results, [PACKS], amounts, facts)

            bench = Bench(folder, amounts, options.step_timeout, keep)
            for number in range(options.runs):
                for rtt_ms in (float(word) for word in options.rtt_ms.split(",")):
                    with at_distance(endpoint, rtt_ms) as seen:
                        bench.round(number, rtt_ms, endpoint, seen)
            return bench.results
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all was measured (cells may fail), 2 for wrong flags, 130 when interrupted."""
    return told(parser().parse_args(argv), measure)

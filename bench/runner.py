"""Runs the cells: every tool does every workload, the tools taking turns, so that drift hits all."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from bench.lab import Cell, Lab, MountCell, RawCell
from bench.mounting import Mount, drop_page_cache
from bench.process import StepFailed
from bench.server import Endpoint, at_distance
from bench.tools import RAW, Site, Tool
from bench.workloads import Workload

CELL_ERRORS = (StepFailed, BotoCoreError, ClientError, OSError)
"""What may spoil a cell; anything else is a fault of the benchmark and ends it."""


@dataclass(frozen=True)
class Result:
    """One tool's work, once. ``error`` is empty where all of it was done."""

    rtt_ms: float
    run: int
    workload: str
    tool: str
    measures: dict[str, float]
    error: str = ""
    log_tail: str = ""


@dataclass
class Runner:
    """One benchmark: which tools do what, how often, at which distances."""

    lab: Lab
    tools: Sequence[Tool]
    with_raw: bool
    workloads: Sequence[Workload]
    runs: int
    rtts_ms: Sequence[float]
    report: Callable[[list[Result]], None]
    results: list[Result] = field(default_factory=list)
    _prepared: set[str] = field(default_factory=set)
    _number: int = 0

    def run(self) -> list[Result]:
        """Do everything; ``report`` gets all results so far after each round of runs."""
        self.lab.truth.make_bucket(self.lab.data_bucket)
        try:
            for run in range(self.runs):
                for rtt_ms in self.rtts_ms:
                    with at_distance(self.lab.direct, rtt_ms) as endpoint:
                        self._round(run, rtt_ms, endpoint)
        finally:
            self.lab.truth.remove_bucket(self.lab.data_bucket)
        return self.results

    def _round(self, run: int, rtt_ms: float, endpoint: Endpoint) -> None:
        for workload in self.workloads:
            for tool in self._turns(run):
                result = self._cell(run, rtt_ms, endpoint, workload, tool)
                self.results.append(result)
                say(result)
            self.report(self.results)

    def _turns(self, run: int) -> list[Tool | None]:
        """The tools in another order each run; None stands for s5cmd."""
        order: list[Tool | None] = [*self.tools, *([None] if self.with_raw else [])]
        first = run % len(order)
        return order[first:] + order[:first]

    def _cell(
        self, run: int, rtt_ms: float, endpoint: Endpoint, workload: Workload, tool: Tool | None
    ) -> Result:
        name = RAW if tool is None else tool.name
        result = Result(rtt_ms, run, workload.name, name, {})
        self._number += 1
        try:
            with self._bucket(workload) as bucket:
                cell = Cell(self.lab, bucket, endpoint, result.measures)
                if tool is None:
                    self._raw(cell, workload)
                else:
                    result = self._mounted(cell, workload, tool, result)
        except CELL_ERRORS as error:
            result = replace(result, error=result.error or str(error) or type(error).__name__)
        return result

    @contextmanager
    def _bucket(self, workload: Workload) -> Iterator[str]:
        """The shared bucket with the workload's data in it, or one for this cell alone."""
        if not workload.own_bucket:
            prepare = workload.prepare
            if prepare.__name__ not in self._prepared:
                prepare(self.lab, self.lab.data_bucket)
                self._prepared.add(prepare.__name__)
            yield self.lab.data_bucket
            return
        bucket = f"{self.lab.data_bucket}-{self._number}"
        self.lab.truth.make_bucket(bucket)
        try:
            workload.prepare(self.lab, bucket)
            yield bucket
        finally:
            self.lab.truth.remove_bucket(bucket)

    def _raw(self, cell: Cell, workload: Workload) -> None:
        drop_page_cache()
        raw = RawCell(
            cell.lab,
            cell.bucket,
            cell.endpoint,
            cell.measures,
            scratch=self.lab.work_dir / "downloads",
        )
        try:
            workload.raw(raw)
        finally:
            raw.clear()

    def _mounted(self, cell: Cell, workload: Workload, tool: Tool, result: Result) -> Result:
        """Mount with empty caches, do the work, unmount whatever happened, forget the caches."""
        mount = Mount(tool, self._site(tool, cell))
        error = log_tail = ""
        try:
            drop_page_cache()
            cell.record("mount_s", mount.start())
            workload.mounted(
                MountCell(cell.lab, cell.bucket, cell.endpoint, cell.measures, mount=mount)
            )
        except CELL_ERRORS as failure:
            error = str(failure) or type(failure).__name__
            log_tail = mount.log_tail()
        finally:
            try:
                mount.stop()
            except StepFailed as failure:
                error = error or str(failure)
            mount.forget_files()
        return replace(result, error=error, log_tail=log_tail)

    def _site(self, tool: Tool, cell: Cell) -> Site:
        place = self.lab.work_dir / f"{self._number}-{tool.name}"
        place.mkdir(parents=True)
        return Site(
            bucket=cell.bucket,
            endpoint=cell.endpoint,
            mountpoint=place / "mnt",
            cache_dir=place / "cache",
            state_dir=place / "state",
            log_path=place / "log",
        )


def new_data_bucket() -> str:
    """A bucket name of this run's own."""
    return f"bench-{uuid.uuid4().hex[:10]}"


def say(result: Result) -> None:
    """One line of progress."""
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in result.measures.items())
    error = f"  FAILS: {result.error.splitlines()[0][:160]}" if result.error else ""
    head = f"{time.strftime('%H:%M:%S')} run {result.run + 1} rtt {result.rtt_ms:g} ms"
    print(
        f"{head}  {result.workload:<11} {result.tool:<10} {numbers}{error}",
        file=sys.stderr,
        flush=True,
    )


def work_folder(parent: Path) -> Path:
    """A folder for everything that this run leaves on the local disk."""
    folder = parent / f"s3mount-bench-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    return folder

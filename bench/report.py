"""Results as JSON and as Markdown tables: medians, ratios to s5cmd and to the best peer."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from bench.runner import Result
from bench.tools import RAW
from bench.workloads import COSTS, Row

OURS = "s3mount"
NONE = "–"


class Measured(Protocol):
    """A piece of work and the lines that it has in the table."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> tuple[Row, ...]: ...


class Amounts(Protocol):
    """How much of everything there was: a dataclass, and words of it for the rows' titles."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def words(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Median:
    """The middle of the runs that gave a number, and how many did not."""

    value: float | None
    runs: int
    failed: int

    @property
    def text(self) -> str:
        """As it stands in the table."""
        if self.value is None:
            return "fails" if self.failed else NONE
        return number(self.value) + (f" ({self.failed}/{self.runs} fail)" if self.failed else "")


class Table:
    """The results of one distance, asked by workload, tool and measure."""

    def __init__(self, results: Sequence[Result], rtt_ms: float) -> None:
        self._results = [one for one in results if one.rtt_ms == rtt_ms]
        self.tools = list(dict.fromkeys(one.tool for one in self._results))
        for name in (RAW, OURS):
            if name in self.tools:
                self.tools.remove(name)
                self.tools.insert(0, name)

    def median(self, workload: str, tool: str, measure: str) -> Median:
        """A failed cell still counts for what it measured before it failed."""
        cells = [one for one in self._results if (one.workload, one.tool) == (workload, tool)]
        values = [one.measures[measure] for one in cells if measure in one.measures]
        failed = sum(1 for one in cells if one.error and measure not in one.measures)
        return Median(statistics.median(values) if values else None, len(cells), failed)

    def has(self, workload: str) -> bool:
        """Was it measured at this distance?"""
        return any(one.workload == workload for one in self._results)

    def peers(self) -> list[str]:
        """The mounts that are not ours."""
        return [tool for tool in self.tools if tool not in (OURS, RAW)]

    def ratio(self, workload: str, row: Row, others: Sequence[str]) -> float | None:
        """How many times better than the best of ``others`` we are; below 1 is behind."""
        ours = self.median(workload, OURS, row.measure).value
        theirs = [self.median(workload, tool, row.measure).value for tool in others]
        known = [value for value in theirs if value]
        if not ours or not known:
            return None
        return ours / max(known) if row.more_is_better else min(known) / ours

    def best_peer(self, workload: str, row: Row) -> str | None:
        """Which peer has the best value of a row."""
        known = {
            tool: value
            for tool in self.peers()
            if (value := self.median(workload, tool, row.measure).value) is not None
        }
        if not known:
            return None
        choose = max if row.more_is_better else min
        return choose(known, key=lambda tool: known[tool])

    def failures(self) -> list[str]:
        """One line for each thing that failed, equal ones once."""
        lines = [
            f"{one.workload}, {one.tool}: {_without_folders(one.error)[:200]}"
            for one in self._results
            if one.error
        ]
        return list(dict.fromkeys(lines))


def _without_folders(text: str) -> str:
    """A message in one line; what lay below the run's own folder is named by its place there."""
    return re.sub(r"/\S*/s3mount-bench-\w+/", "", " ".join(text.split()))


def number(value: float) -> str:
    """Three digits that count, thousands with a comma."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ratio_text(value: float | None) -> str:
    """A ratio, or a dash where there is nothing to compare."""
    return NONE if value is None else f"{value:.2f}"


def cells_of(table: Table, workload: Measured, row: Row) -> list[str]:
    """One line's cells after its title: values, then the two ratios."""
    best = table.best_peer(workload.name, row)
    texts = []
    for tool in table.tools:
        text = table.median(workload.name, tool, row.measure).text
        texts.append(f"**{text}**" if tool == best else text)
    return [
        *texts,
        ratio_text(table.ratio(workload.name, row, [RAW])),
        ratio_text(table.ratio(workload.name, row, table.peers())),
    ]


def line(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def speed_and_cost(
    table: Table, workloads: Sequence[Measured], scale: Amounts
) -> tuple[list[str], list[str]]:
    """The lines of the table of speeds and those of the table of CPU and memory."""
    speed, cost = [], []
    for workload in workloads:
        if not table.has(workload.name):
            continue
        for row in workload.rows:
            title = row.title.format(**scale.words())
            speed.append(line([f"{title}, {row.unit}", *cells_of(table, workload, row)]))
        for row in COSTS:
            title = f"{workload.name}: {row.title}, {row.unit}"
            cost.append(line([title, *cells_of(table, workload, row)]))
    return speed, cost


def markdown(
    results: Sequence[Result],
    workloads: Sequence[Measured],
    scale: Amounts,
    about: dict[str, object],
) -> str:
    """All tables with what they were measured on."""
    parts = ["# S3 mounts side by side", ""]
    parts += [f"- {name}: {value}" for name, value in about.items()]
    parts += [
        "",
        "Medians. Bold: best peer. A ratio above 1: s3mount is ahead, whichever way the row counts.",
    ]
    for rtt_ms in dict.fromkeys(one.rtt_ms for one in results):
        table = Table(results, rtt_ms)
        head = [*table.tools, f"to {RAW}", "to best peer"]
        speed, cost = speed_and_cost(table, workloads, scale)
        distance = f"{rtt_ms:g} ms of round trip" if rtt_ms else "No added round trip"
        for title, lines in ((distance, speed), (f"{distance}: what it costs", cost)):
            parts += ["", f"## {title}", "", line(["", *head])]
            parts += [line(["---"] * (len(head) + 1)), *lines]
        failures = table.failures()
        if failures:
            parts += ["", "What failed:", "", *(f"- {one}" for one in failures)]
    return "\n".join(parts) + "\n"


def write(
    folder: Path,
    results: Sequence[Result],
    workloads: Sequence[Measured],
    scale: Amounts,
    about: dict[str, object],
) -> tuple[Path, Path]:
    """Write results.json and results.md into ``folder``, in place of earlier ones."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"about": about, "scale": asdict(scale), "results": [asdict(one) for one in results]}
    json_path, text_path = folder / "results.json", folder / "results.md"
    json_path.write_text(json.dumps(data, indent=1))
    text_path.write_text(markdown(results, workloads, scale, about))
    return json_path, text_path

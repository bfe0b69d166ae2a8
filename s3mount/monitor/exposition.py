"""The metrics of mounts in Prometheus' text format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from s3mount.metrics import SECTIONS, Metric, exported_name
from s3mount.status import Snapshot

Family = CounterMetricFamily | GaugeMetricFamily
LABELS = ("mountpoint",)
WELL = ("serving", "ending", "draining")
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Mounts(Collector):
    """The metrics of all mounts that ``look`` finds, asked for at each collection."""

    def __init__(self, look: Callable[[], Sequence[Snapshot]]) -> None:
        self._look = look

    def collect(self) -> Iterator[Family]:
        """One family for each metric; a mount that does not answer is only told to be down."""
        mounts = self._look()
        yield from _of_mounts(mounts)
        told = [each for each in mounts if each.s3 or each.pending.states or each.past]
        yield from _of_pending(told)
        for section, metrics in SECTIONS.items():
            for metric in metrics:
                yield _family(section, metric, told)
        yield from _of_processes(told)


def text_of(look: Callable[[], Sequence[Snapshot]]) -> str:
    """All of it, as it would be collected now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Mounts(look))
    return generate_latest(registry).decode()


OTHER_METRICS = (
    ("s3mount_up", "gauge", "1 while the mount answers, else 0"),
    ("s3mount_mount_info", "gauge", "what is mounted, by bucket, prefix, phase and version: 1"),
    ("s3mount_outage", "gauge", "1 while S3 cannot be reached, else 0"),
    ("s3mount_pending_changes", "gauge", "changes that are not in S3 yet, by state"),
    ("s3mount_pending_bytes", "gauge", "bytes of files that are not in S3 yet"),
    (
        "s3mount_missing_files",
        "gauge",
        "files that S3 does not hand out: archived, or a version that is gone",
    ),
    ("s3mount_process_cpu_seconds_total", "counter", "processor time, by process: mount, engine"),
    ("s3mount_process_memory_bytes", "gauge", "resident memory, by process: mount, engine"),
)
"""What is not in the table of ``metrics``: name, kind and meaning."""


def _other(name: str, *labels: str) -> Family:
    """An empty family of OTHER_METRICS."""
    kind, meaning = next(each[1:] for each in OTHER_METRICS if each[0] == name)
    if kind == "counter":
        return CounterMetricFamily(name.removesuffix("_total"), meaning, labels=(*LABELS, *labels))
    return GaugeMetricFamily(name, meaning, labels=(*LABELS, *labels))


def _of_mounts(mounts: Sequence[Snapshot]) -> Iterator[Family]:
    up, outage = _other("s3mount_up"), _other("s3mount_outage")
    info = _other("s3mount_mount_info", "bucket", "prefix", "phase", "version")
    for each in mounts:
        up.add_metric([each.mountpoint], float(each.phase in WELL))
        about = [each.mountpoint, each.bucket, each.prefix, each.phase, each.version]
        info.add_metric(about, 1.0)
        if each.phase in WELL:
            outage.add_metric([each.mountpoint], float(bool(each.outage)))
    yield from (up, info, outage)


def _of_pending(mounts: Sequence[Snapshot]) -> Iterator[Family]:
    changes = _other("s3mount_pending_changes", "state")
    size, missing = _other("s3mount_pending_bytes"), _other("s3mount_missing_files")
    for each in mounts:
        for state, count in each.pending.states.items():
            changes.add_metric([each.mountpoint, state], count)
        size.add_metric([each.mountpoint], each.pending.bytes)
        missing.add_metric([each.mountpoint], each.missing.files)
    yield from (changes, size, missing)


def _family(section: str, metric: Metric, mounts: Sequence[Snapshot]) -> Family:
    """One metric of the table, over all mounts; with a part that varies as the label ``kind``."""
    varies = metric.name.endswith("_*")
    labels = (*LABELS, "kind") if varies else LABELS
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    # Tries of all kinds together are their sum.
    name = exported_name(section, metric) + ("_by_kind" if varies else "")
    family: Family = kind(name, metric.meaning.partition(":")[0], labels=labels)
    for each in mounts:
        values = getattr(each, section)
        if not varies:
            if values.get(metric.name) is not None:
                family.add_metric([each.mountpoint], values[metric.name])
            continue
        beginning = metric.name.removesuffix("*")
        for found, value in values.items():
            part = found.removeprefix(beginning)
            if part != found and part in metric.parts:
                family.add_metric([each.mountpoint, part], value)
    return family


def _of_processes(mounts: Sequence[Snapshot]) -> Iterator[Family]:
    cpu = _other("s3mount_process_cpu_seconds_total", "process")
    memory = _other("s3mount_process_memory_bytes", "process")
    for each in mounts:
        for process, pid in _processes_of(each.pid):
            used = _used(pid)
            if used is not None:
                cpu.add_metric([each.mountpoint, process], used[0])
                memory.add_metric([each.mountpoint, process], used[1])
    yield from (cpu, memory)


def _processes_of(pid: int | None) -> list[tuple[str, int]]:
    """A mount's process, and its engine if one is there."""
    if pid is None:
        return []
    found = [("mount", pid)]
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(child) for child in file.read().split()]
        for child in children:
            with open(f"/proc/{child}/cmdline", "rb") as file:
                if b"s3mount.engine" in file.read().split(b"\0"):
                    found.append(("engine", child))
    except OSError:
        # It ends just now, or this kernel tells no children.
        return found
    return found


def _used(pid: int) -> tuple[float, int] | None:
    """Seconds of processor time and bytes of resident memory of a process (proc(5)); ``None`` if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    ticks = int(fields[11]) + int(fields[12])
    return ticks / TICKS_A_SECOND, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")

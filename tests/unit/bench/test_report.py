"""The tables of the benchmarks: medians, ratios in the right direction, failures told."""

from __future__ import annotations

from pathlib import Path

from bench.lab import Scale
from bench.report import Table, markdown, number, write
from bench.runner import Result
from bench.workloads import WORKLOADS, Row

SPEED = Row("seen_mb_s", "", "MB/s")
TIME = Row("seen_s", "", "s", more_is_better=False)


def results(**values: list[float | None]) -> list[Result]:
    """One result a run for each tool; None is a failed one."""
    return [
        Result(0.0, run, "write", tool, {}, "broke")
        if value is None
        else Result(0.0, run, "write", tool, {"seen_mb_s": value, "seen_s": 1 / value})
        for tool, runs in values.items()
        for run, value in enumerate(runs)
    ]


def test_a_median_leaves_failed_runs_out_and_tells_them() -> None:
    table = Table(results(s3mount=[1.0, None, 3.0, 8.0], rclone=[None, None]), 0.0)
    assert table.median("write", "s3mount", "seen_mb_s").text == "3.00 (1/4 fail)"
    assert table.median("write", "rclone", "seen_mb_s").text == "fails"
    assert table.median("write", "s5cmd", "seen_mb_s").text == "–"


def test_a_ratio_above_one_is_ahead_whichever_way_the_row_counts() -> None:
    table = Table(results(s3mount=[200.0], rclone=[100.0], s3fs=[50.0], s5cmd=[400.0]), 0.0)
    for row in (SPEED, TIME):
        assert table.ratio("write", row, table.peers()) == 2.0
        assert table.ratio("write", row, ["s5cmd"]) == 0.5
        assert table.best_peer("write", row) == "rclone"


def test_without_us_or_without_peers_there_is_no_ratio() -> None:
    alone = Table(results(s3mount=[1.0]), 0.0)
    assert alone.ratio("write", SPEED, alone.peers()) is None
    assert alone.best_peer("write", SPEED) is None
    others = Table(results(rclone=[1.0]), 0.0)
    assert others.ratio("write", SPEED, others.peers()) is None


def test_we_and_the_raw_tool_come_first_and_distances_stay_apart() -> None:
    near = results(rclone=[1.0], s5cmd=[1.0], s3mount=[1.0])
    far = [Result(20.0, 0, "write", "s3fs", {"seen_mb_s": 9.0})]
    assert Table(near + far, 0.0).tools == ["s3mount", "s5cmd", "rclone"]
    assert Table(near + far, 20.0).tools == ["s3fs"]


def test_the_text_holds_every_distance_failure_and_ratio(tmp_path: Path) -> None:
    found = [
        *results(s3mount=[200.0], rclone=[100.0], s3fs=[None]),
        Result(20.0, 0, "write", "s3mount", {"seen_mb_s": 150.0}),
    ]
    writes = [workload for workload in WORKLOADS if workload.name == "write"]
    _, path = write(tmp_path / "new", found, writes, Scale(big_mib=64), {"runs": 1})
    text = path.read_text()
    assert "| 64 MiB write: seen, MB/s | 200 | **100** | fails | – | 2.00 |" in text
    assert "## No added round trip\n" in text
    assert "## 20 ms of round trip\n" in text
    assert "- write, s3fs: broke" in text
    assert markdown(found, writes, Scale(), {}).count("1 GiB write: seen") == 2


def test_numbers_show_three_digits_that_count() -> None:
    assert [number(value) for value in (0.1234, 9.876, 12.34, 1234.5)] == [
        "0.12",
        "9.88",
        "12.3",
        "1,234",
    ]


def test_every_workload_states_its_rows_with_titles_that_can_be_filled() -> None:
    words = Scale().words()
    for workload in WORKLOADS:
        assert workload.rows
        assert all(row.title.format(**words) for row in workload.rows)
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)

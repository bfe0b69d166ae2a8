from __future__ import annotations

import pytest

from s3mount import metrics
from s3mount.s3.http.statistics import LATE_S, Statistics


def test_names_are_unique_and_say_their_unit() -> None:
    names = [metric.name for metric in metrics.METRICS]
    assert len(names) == len(set(names))
    for metric in metrics.METRICS:
        assert metric.meaning
        assert metric.unit in ("1", "s", "B")
        assert metric.name.endswith("_s") == (metric.unit == "s")


def test_names_with_a_part_that_varies_are_found() -> None:
    assert metrics.find("requests_put").name == "requests_*"
    assert metrics.find("requests_failed").name == "requests_failed"
    assert metrics.find("requests_running").kind == "gauge"
    assert metrics.find("requests").name == "requests"
    with pytest.raises(KeyError):
        metrics.find("nonsense")


def test_tries_that_outlive_their_deadline_are_counted() -> None:
    statistics = Statistics()
    statistics.count("get")
    statistics.ended(1.0, -4.0)
    statistics.ended(5.1, 0.1)
    statistics.ended(6.0, LATE_S + 0.1)
    told = statistics.snapshot()
    assert (told["late"], told["late_max_s"], told["request_max_s"]) == (1, LATE_S + 0.1, 6.0)
    assert (told["requests"], told["requests_get"]) == (1, 1)

"""Deadlines by their fields, and estimates that outlive a run."""

from __future__ import annotations

import click
import pytest

from s3mount.cli.param_types import timeouts as parsed
from s3mount.config import TimeoutSettings
from s3mount.flow.timeouts import Estimates, Timeouts

MIB = 1 << 20


def test_each_field_counts() -> None:
    settings = parsed(
        "base_s=2, fraction=3,backoff=2,average_weight=0.5,s_per_byte.put=1e-5,s_per_byte.other=2e-6,"
        "answer_start_s=7,answer_min_s=1,answer_max_s=9,connect_s=4,tries=3"
    )
    assert settings == TimeoutSettings(
        base_s=2,
        fraction=3,
        backoff=2,
        tries=3,
        average_weight=0.5,
        s_per_byte={"put": 1e-5, "other": 2e-6},
        answer_start_s=7,
        answer_min_s=1,
        answer_max_s=9,
        connect_s=4,
    )
    timeouts = Timeouts(settings)
    first, second = timeouts.allowance("put", MIB, 0), timeouts.allowance("put", MIB, 1)
    assert first.total_s == pytest.approx(7 + 2 + 3 * MIB * 1e-5)
    assert second.total_s == pytest.approx(9 + 2 * (2 + 3 * MIB * 1e-5)), "answers: 9 s at most"
    assert (first.connect_s, second.connect_s) == (4, 8)
    assert timeouts.s_per_byte("get") == 2e-6
    timeouts.transferred("put", MIB, MIB * 3e-5)
    assert timeouts.s_per_byte("put") == pytest.approx(2e-5), "half of it is the old value"
    timeouts.answered("put", 0.01)
    assert timeouts.allowance("put", 0, 0).answer_s == 1


def test_fields_that_are_not_named_are_as_usual() -> None:
    assert parsed("") == TimeoutSettings()
    assert parsed("tries=2") == TimeoutSettings(tries=2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("retries=2", "unknown field `retries`"),
        ("tries=0", ">= 1"),
        ("base_s=-1", "> 0"),
        ("average_weight=1", "< 1"),
        ("fraction=many", "float"),
        ("s_per_byte.put=0", "> 0"),
        ("base_s", "must be FIELD=NUMBER"),
        ("base_s=nan", "base_s"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: str, told: str) -> None:
    with pytest.raises(click.BadParameter, match=told):
        parsed(given)


def test_what_an_earlier_run_learnt_counts_at_once() -> None:
    earlier = Timeouts()
    for _ in range(20):
        earlier.answered("get", 2.0)
        earlier.transferred("get", 8 * MIB, 8.0)
    later = Timeouts(None, Estimates(earlier.estimates.latency, earlier.estimates.s_per_byte))
    assert later.allowance("get", 8 * MIB, 0) == earlier.allowance("get", 8 * MIB, 0)
    assert later.allowance("get", 8 * MIB, 0) != Timeouts().allowance("get", 8 * MIB, 0)

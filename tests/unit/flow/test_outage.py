"""When a store counts as away, and when it may be asked meanwhile."""

from __future__ import annotations

from s3mount.flow.outage import (
    AWAY_AFTER_S,
    FAILURES_MIN,
    TRIAL_REST,
    TRIAL_REST_S_MAX,
    Outage,
)


def away(changes: list[str]) -> Outage:
    outage = Outage(changes.append)
    for number in range(FAILURES_MIN):
        outage.failed(100.0, 100.0 + AWAY_AFTER_S + number, "refused")
    return outage


def test_failures_for_a_while_mean_that_it_is_away() -> None:
    changes: list[str] = []
    outage = Outage(changes.append)
    for number in range(FAILURES_MIN):
        outage.failed(100.0 + number / 10, 100.1 + number / 10, "refused")
    assert changes == [], "a server that starts again is no outage"
    outage.failed(102.0, 100.0 + AWAY_AFTER_S, "refused")
    assert outage.reason == "refused"
    assert outage.since_s == 100.0
    outage.failed(103.0, 104.0, "refused")
    assert changes == ["refused"], "told once"


def test_a_few_hung_requests_are_no_outage() -> None:
    outage = Outage()
    for number in range(1, FAILURES_MIN):
        outage.failed(100.0, 100.0 + number * AWAY_AFTER_S, "overdue")
    assert not outage.reason


def test_requests_that_began_before_the_last_answer_tell_nothing() -> None:
    outage = Outage()
    outage.answered(110.0)
    for _ in range(10):
        outage.failed(100.0, 120.0, "overdue")
    assert not outage.reason


def test_any_answer_ends_it() -> None:
    changes: list[str] = []
    outage = away(changes)
    outage.answered(110.0)
    assert changes == ["refused", ""]
    assert not outage.reason
    assert outage.may_try(110.0)
    outage.failed(109.0, 111.0, "overdue")
    assert not outage.reason


def test_one_at_a_time_looks_whether_it_is_back_and_then_rests() -> None:
    outage = away([])
    now = 200.0
    assert outage.may_try(now)
    assert not outage.may_try(now + 0.1), "one is on its way"
    outage.failed(now, now + 0.1, "refused")
    assert not outage.may_try(now + 0.1 + 0.09 * TRIAL_REST)
    assert outage.may_try(now + 0.1 + 0.11 * TRIAL_REST)
    outage.failed(now, now + 60.0, "overdue")
    assert outage.may_try(now + 60.0 + TRIAL_REST_S_MAX)


def test_a_look_that_was_given_up_keeps_nobody_from_looking() -> None:
    outage = away([])
    assert outage.may_try(200.0)
    assert outage.may_try(200.0 + TRIAL_REST_S_MAX)

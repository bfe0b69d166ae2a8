"""The table of states: what may follow what."""

from __future__ import annotations

import itertools

import pytest

from s3mount.spool.journal.states import TRANSITIONS, Event, State, after


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_step_is_in_the_table_or_an_error(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert after(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(ValueError, match=str(state)):
            after(state, event)


def test_nothing_follows_done_and_a_write_always_opens() -> None:
    by_a_start = {Event.TAKE_OVER, Event.DAMAGE}
    assert {event for state, event in TRANSITIONS if state is State.DONE} == by_a_start
    for state in set(State) - {State.DONE}:
        assert after(state, Event.WRITE) is State.OPEN


def test_nothing_but_a_success_ends_a_change() -> None:
    enders = {event for (_, event), result in TRANSITIONS.items() if result is State.DONE}
    assert enders == {Event.SUCCEED}


def test_every_state_is_reached_from_open() -> None:
    reached = {State.OPEN}
    while True:
        more = {result for (state, _), result in TRANSITIONS.items() if state in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(State)

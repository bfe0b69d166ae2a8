"""The life of a pending change: every state, every event and every allowed step, and nothing else.

A change is what S3 does not have yet. It begins OPEN while a program still writes the file,
or QUEUED when it is complete; it ends by being removed from the journal.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a change stands. Stored in the journal by value."""

    OPEN = "open"
    """A program still writes the file; not to be sent whole yet."""
    QUEUED = "queued"
    """Complete, waits for its turn (or for the time of its next try)."""
    SENDING = "sending"
    """A worker is at it. After a crash this counts as QUEUED."""
    PARKED = "parked"
    """S3 refused in a way that a repetition will hardly mend; tried again now and then."""
    DONE = "done"
    """S3 has it; the row is gone from the journal."""


class Event(StrEnum):
    """What can happen to a change."""

    WRITE = "write"
    """The file is changed again."""
    CLOSE = "close"
    """The last writer closed it, or somebody waits for it."""
    START = "start"
    """A worker takes it."""
    SUCCEED = "succeed"
    """S3 has exactly this state."""
    SUCCEED_OLD = "succeed old"
    """S3 has an earlier state of it: it was changed while it was sent."""
    DAMAGE = "damage"
    """What an earlier run left of it cannot be used as it is."""
    TAKE_OVER = "take over"
    """Another run, which nobody writes in and which sends nothing yet, goes on with it."""
    FAIL = "fail"
    """The try failed in a way that may pass by itself."""
    REFUSE = "refuse"
    """S3 refused for good."""
    RETRY = "retry"
    """Time or a person asks for another try."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.WRITE): State.OPEN,
    (State.OPEN, Event.CLOSE): State.QUEUED,
    (State.QUEUED, Event.WRITE): State.OPEN,
    (State.QUEUED, Event.CLOSE): State.QUEUED,
    (State.QUEUED, Event.START): State.SENDING,
    (State.QUEUED, Event.RETRY): State.QUEUED,
    (State.SENDING, Event.WRITE): State.OPEN,
    (State.SENDING, Event.CLOSE): State.SENDING,
    (State.SENDING, Event.SUCCEED): State.DONE,
    (State.SENDING, Event.SUCCEED_OLD): State.QUEUED,
    (State.SENDING, Event.FAIL): State.QUEUED,
    (State.SENDING, Event.REFUSE): State.PARKED,
    (State.OPEN, Event.SUCCEED_OLD): State.OPEN,
    (State.QUEUED, Event.SUCCEED_OLD): State.QUEUED,
    (State.OPEN, Event.FAIL): State.OPEN,
    (State.QUEUED, Event.FAIL): State.QUEUED,
    (State.OPEN, Event.REFUSE): State.OPEN,
    (State.QUEUED, Event.REFUSE): State.QUEUED,
    (State.PARKED, Event.WRITE): State.OPEN,
    (State.PARKED, Event.CLOSE): State.QUEUED,
    (State.PARKED, Event.RETRY): State.QUEUED,
    (State.PARKED, Event.TAKE_OVER): State.PARKED,
    **{
        (state, Event.TAKE_OVER): State.QUEUED
        for state in (State.OPEN, State.QUEUED, State.SENDING, State.DONE)
    },
    **{(state, Event.DAMAGE): State.PARKED for state in State},
}


def after(state: State, event: Event) -> State:
    """The state that ``event`` leads to. Raises ValueError for a step that must never happen."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"a change that is {state} cannot {event}") from None

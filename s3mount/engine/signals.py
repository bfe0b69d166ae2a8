"""Who answers which signal: the parent all, the engine child none but SIGKILL and SIGUSR1."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

HELD_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that reach the whole foreground group or service. The child leaves them to its parent,
which may still have files to send when they come."""


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Block HELD_SIGNALS in this thread, so that a child started meanwhile is born with them blocked.

    What comes for this process meanwhile is delivered at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """Ignore HELD_SIGNALS, then unblock them. For the child's main thread."""
    for number in HELD_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)

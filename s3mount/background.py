"""Tasks that nothing waits for: an unexpected error in one of them is logged, and ends nothing else.

An exception that leaves a task ends its nursery, and a nursery that lives as long as the mount takes the mount
with it. So what runs ahead, periodically or for one caller among many is started here. Errors that are expected
are each task's own to handle; what arrives here is a fault of the program.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar, TypeVarTuple

import trio

from s3mount.errors import S3MountError, leaf_of, unwrapped

log = logging.getLogger(__name__)

PAUSE_FIRST_S = 1.0
PAUSE_MAX_S = 60.0
"""A task that fails again and again is begun anew after pauses that double up to this."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def attempt(function: Callable[[*Ts], Awaitable[T]], *args: *Ts, otherwise: T) -> T:
    """Await ``function(*args)``; ``otherwise``, with the traceback in the log, where it raises an Exception.

    Cancellation passes, also where it comes in a group together with an error.
    """
    result = otherwise
    try:
        result = await function(*args)
    except* Exception as errors:  # noqa: BLE001 - whatever it is, it is logged and goes no further
        log_fault(_name_of(function), errors)
    return result


class contained:
    """Go on behind the block whatever goes wrong in it; the log has it, with its traceback.

    For what is of use but may as well not be done, and for what follows from something that has happened
    already and that no fault can undo.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        log_fault(self._what, error)
        return True


async def keep_running(function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
    """Await ``function(*args)``; begin it anew after a pause where it raises an Exception.

    Returns when it returns.
    """
    pause_s = PAUSE_FIRST_S

    async def run() -> bool:
        await function(*args)
        return True

    run.__qualname__ = _name_of(function)
    while True:
        began = trio.current_time()
        if await attempt(run, otherwise=False):
            return
        if trio.current_time() - began > PAUSE_MAX_S:
            pause_s = PAUSE_FIRST_S
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)


class Background:
    """A nursery in which no task can end another, or the nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start(self, function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        """Run a task; an unexpected exception ends it, and is logged."""

        async def once() -> None:
            await attempt(function, *args, otherwise=None)

        self._nursery.start_soon(once, name=_name_of(function))

    def keep(self, function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        """Run a task that goes on for ever; after an unexpected exception, which is logged, it begins anew."""

        async def on_and_on() -> None:
            await keep_running(function, *args)

        self._nursery.start_soon(on_and_on, name=_name_of(function))


def log_fault(what: str, error: Exception) -> None:
    """Log what stopped ``what``: an S3MountError by what it says, all else with its traceback."""
    plain = unwrapped(error)
    if isinstance(plain, S3MountError):
        log.warning("%s is interrupted: %s", what, plain)
    else:
        log.error("internal error: %s; the mount goes on", what, exc_info=plain)


def reason_of(error: BaseException) -> str:
    """An unexpected error in a few words; of a group its first of ours, else its first.

    >>> reason_of(ExceptionGroup("two", [KeyError("k"), ValueError()]))
    "KeyError: 'k'"
    """
    leaf = leaf_of(error)
    return f"{type(leaf).__name__}: {leaf}"


def _name_of(function: Callable[..., object]) -> str:
    named = getattr(function, "func", function)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', repr(named))}"

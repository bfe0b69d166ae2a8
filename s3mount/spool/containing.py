"""What keeps an unexpected fault where it happened: it is logged with its traceback, and all else goes on."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from s3mount.errors import S3MountError

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""A background task that ended by a fault begins again after so long."""


class contained:
    """Go on behind the block whatever goes wrong in it; the log has it, with its traceback.

    For what follows from something that has happened already, and that no fault can undo.
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
        log.error("internal error: %s", self._what, exc_info=error)
        return True


async def kept_running(what: str, task: Callable[[], Awaitable[None]]) -> None:
    """Run ``task``; when it raises, log it and begin again. Returns when it does; cancel to stop."""
    while True:
        try:
            await task()
            return
        except S3MountError as error:
            log.warning("%s is interrupted: %s", what, error)
        except Exception:
            log.exception("internal error: %s begins again", what)
        await trio.sleep(AGAIN_S)


def reason_of(error: BaseException) -> str:
    """An unexpected error in a few words; of a group its first.

    >>> reason_of(ExceptionGroup("two", [KeyError("k"), ValueError()]))
    "KeyError: 'k'"
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"

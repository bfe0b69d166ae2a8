"""What `s3mount.background` logs would have ended the mount: a test in whose process that happens fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Unexpected(AssertionError):
    """A task in the background failed in a way that nothing expects."""


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))


@contextmanager
def collected() -> Iterator[list[str]]:
    """The faults of background tasks meanwhile, each with its traceback."""
    handler = _Records()
    logger = logging.getLogger("s3mount.background")
    logger.addHandler(handler)
    try:
        yield handler.told
    finally:
        logger.removeHandler(handler)


@contextmanager
def none_expected() -> Iterator[list[str]]:
    """Raise Unexpected at the end if there were any; who expects some clears the list."""
    with collected() as told:
        yield told
    if told:
        raise Unexpected("\n".join(told))

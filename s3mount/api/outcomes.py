"""What became of the objects of one call: told one by one, added up, and raised where some failed."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeAlias

import trio

from s3mount.bulk.report import Outcome, Report
from s3mount.errors import S3MountError
from s3mount.tasks import first_error

Progress: TypeAlias = "Callable[[Outcome], None] | Callable[[Outcome], Awaitable[None]]"
"""Is told of each object as it is done or has failed; a coroutine function is awaited meanwhile."""
FAILURES_KEPT = 100


class Summary(NamedTuple):
    """How many objects were done, failed, and were there already; and the bytes that were moved."""

    objects: int
    failed: int
    skipped: int
    bytes: int
    seconds: float


class SomeFailedError(S3MountError):
    """Some of the objects of one call failed, the others are done. ``failures`` are the first hundred of them."""

    def __init__(self, summary: Summary, failures: Sequence[Outcome]) -> None:
        first = failures[0]
        super().__init__(
            f"{summary.failed} of {summary.objects} failed, first {first.source}: {first.error}"
        )
        self.summary = summary
        self.failures = failures


class Collected(Report):
    """A report that tells ``progress``; a coroutine function in ``nursery``. ``failures`` are the first of them."""

    def __init__(self, operation: str, progress: Progress | None, nursery: trio.Nursery) -> None:
        super().__init__(operation, write=_nothing, complain=_nothing, quiet=True)
        self._progress = progress
        self._nursery = nursery
        self.failures: list[Outcome] = []

    def take(self, outcome: Outcome, *, options: Sequence[str] = (), exit_code: int = 1) -> None:
        """Count it and tell it."""
        super().take(outcome, options=options, exit_code=exit_code)
        if not outcome.success and len(self.failures) < FAILURES_KEPT:
            self.failures.append(outcome)
        if self._progress is None:
            return
        if inspect.iscoroutinefunction(self._progress):
            self._nursery.start_soon(self._progress, outcome)
        else:
            self._progress(outcome)

    @property
    def summary(self) -> Summary:
        """The sums so far."""
        counts = self.counts
        return Summary(counts.objects, counts.failed, counts.skipped, counts.bytes, counts.seconds)


@asynccontextmanager
async def collected(operation: str, progress: Progress | None = None) -> AsyncIterator[Collected]:
    """What the block does, as a report. Its end waits for ``progress``, and raises SomeFailedError."""
    with first_error():
        async with trio.open_nursery() as nursery:
            report = Collected(operation, progress, nursery)
            yield report
    if report.failures:
        raise SomeFailedError(report.summary, report.failures)


def _nothing(line: str) -> None:
    pass

"""How far a command over many objects is, on a terminal: objects, bytes, rate; the total as soon as it is known."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from s3mount.cli import output
from s3mount.tasks import first_error

if TYPE_CHECKING:
    from rich.progress import Progress

    from s3mount.bulk.report import Counts

TICK_S = 0.2
SHOWN_AFTER_S = 1.0
"""What ends sooner shows no progress."""


class Shown:
    """The progress on standard error where that is a terminal, and lines that do not run into it."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_live = not is_quiet and sys.stderr.isatty()
        self._shares_terminal = sys.stdout.isatty()
        self._progress: Progress | None = None

    async def around(self, counts: Counts, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work`` and show ``counts`` meanwhile. Raises what ``work`` raises, as it is."""
        with first_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tick, counts)
                await work()
                nursery.cancel_scope.cancel()

    async def _tick(self, counts: Counts) -> None:
        began_s = time.monotonic()
        while True:
            await trio.sleep(TICK_S)
            output.flush()
            if self._is_live and time.monotonic() - began_s >= SHOWN_AFTER_S:
                self._show(counts)

    def _show(self, counts: Counts) -> None:
        if self._progress is None:
            self._progress = _new_progress()
            self._progress.start()
            self._progress.add_task("")
        task = self._progress.task_ids[0]
        by_bytes = counts.expected_bytes > 0
        total = counts.expected_bytes if by_bytes else counts.expected
        self._progress.update(
            task,
            completed=counts.bytes if by_bytes else counts.objects,
            total=total if counts.is_known and total else None,
            description=_text(counts),
        )

    def write(self, line: str) -> None:
        """A line on standard output. Raises OutputError."""
        if self._progress is not None and self._shares_terminal:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            output.write_line(line)

    def complain(self, line: str) -> None:
        """A line on standard error."""
        if self._progress is not None:
            self._progress.console.print(
                f"s3mount: {line}", markup=False, highlight=False, soft_wrap=True
            )
        else:
            output.complain(line)

    def clear(self) -> None:
        """Take the progress away. Repeatable."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _text(counts: Counts) -> str:
    from s3mount.status import size_text

    parts = [f"{counts.objects:,}"]
    if counts.expected:
        more = "" if counts.is_known else "+"
        parts = [f"{counts.objects:,} of {counts.expected:,}{more}"]
    if counts.bytes:
        parts.append(size_text(counts.bytes))
        parts.append(f"{size_text(counts.bytes / max(counts.seconds, 0.001))}/s")
    if counts.failed:
        parts.append(f"{counts.failed:,} failed")
    return ", ".join(parts)


def _new_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.description}", markup=False),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )

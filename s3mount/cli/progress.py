"""How far the uploads are, for somebody who waits for them."""

from __future__ import annotations

import shutil
import sys
import time

import click

from s3mount import status
from s3mount.daemon.client import ANSWER_TIMEOUT_S
from s3mount.daemon.protocol import Progress

EVERY_S = 10.0
"""How often a line is written where there is no terminal."""


GRACE_S = 2.0
"""What a process may be late by, that is asked for its progress."""


class Uploads:
    """Shows progress on stderr and knows when it stopped: ``timeout_s`` in all, ``stall_s`` without any.

    ``None`` stands for no such limit.
    """

    def __init__(self, timeout_s: float | None, stall_s: float | None = None) -> None:
        self._started = self._moved_at = self._told_at = time.monotonic()
        self._timeout_s = timeout_s
        self._stall_s = stall_s
        self._last: Progress | None = None
        self._moved_max = -1.0
        self._live = sys.stderr.isatty()
        self._shown = False

    def seen(self, progress: Progress) -> None:
        """Take in and show one report."""
        now = time.monotonic()
        if progress.moved > self._moved_max or self._is_other(progress):
            self._moved_at = now
            self._moved_max = max(progress.moved, self._moved_max)
        self._last = progress
        text = f"sending: {status.amount(progress.files, progress.size_bytes)} left"
        if progress.trouble:
            text += f"; not taken by S3 yet: {progress.trouble}"
        if self._live:
            # One line of the terminal, or the next would not replace it.
            text = text[: shutil.get_terminal_size().columns - 1]
            click.echo(f"\r\033[K{text}", err=True, nl=False)
            self._shown = True
        elif progress.files and now - self._told_at >= EVERY_S:
            click.echo(f"s3mount: {text}", err=True)
            self._told_at = now

    def _is_other(self, progress: Progress) -> bool:
        last = self._last
        return last is None or (progress.files, progress.size_bytes) != (
            last.files,
            last.size_bytes,
        )

    @property
    def expired(self) -> str | None:
        """Why it makes no sense to wait any longer, or ``None``."""
        now = time.monotonic()
        if self._timeout_s is not None and now - self._started >= self._timeout_s:
            return f"not everything was sent within {self._timeout_s:g} s"
        if self._stall_s is not None and now - self._moved_at >= self._stall_s:
            return f"nothing was sent for {self._stall_s:g} s"
        return None

    @property
    def silence_s(self) -> float:
        """How long to believe in a process that says nothing at all."""
        if self._timeout_s is None:
            return ANSWER_TIMEOUT_S
        return min(ANSWER_TIMEOUT_S, self._timeout_s + GRACE_S)

    @property
    def left(self) -> str:
        """What was pending at the last report and why, in words."""
        last = self._last
        if last is None:
            return "an unknown number of changes are not in S3 yet"
        text = f"{status.amount(last.files, last.size_bytes)} not in S3 yet"
        return f"{text}; {last.trouble}" if last.trouble else text

    def clear(self) -> None:
        """Take the progress line away."""
        if self._shown:
            click.echo("\r\033[K", err=True, nl=False)
            self._shown = False

"""A status line on stderr that says how far something is."""

from __future__ import annotations

import sys
import time

import click

EVERY_S = 10.0
"""How often a line is written where there is no terminal."""


class StatusLine:
    """Shows a changing line on stderr: in place on a terminal, else a new one every 10 s."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._live = sys.stderr.isatty()
        self._quiet = quiet
        self._told_at_s = time.monotonic()
        self._shown = False

    def __call__(self, text: str) -> None:
        """Show ``text``."""
        if self._quiet:
            return
        now_s = time.monotonic()
        if self._live:
            click.echo(f"\r\033[K{text}", err=True, nl=False)
            self._shown = True
        elif now_s - self._told_at_s >= EVERY_S:
            click.echo(f"s3mount: {text}", err=True)
            self._told_at_s = now_s

    def clear(self) -> None:
        """Take the line away. Repeatable."""
        if self._shown:
            click.echo("\r\033[K", err=True, nl=False)
            self._shown = False

    def say(self, text: str) -> None:
        """Write a line to stderr that stays."""
        self.clear()
        click.echo(text, err=True)

"""``--perf``: a table of all requests of a command, when it has ended."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import click

from s3mount.cli.options import recording

COLUMN = 18
TITLES = ("attempts", "bytes", "success_ms", "total_ms", "MBps", "MBps est")


@contextmanager
def requests_told(is_asked: bool) -> Iterator[None]:
    """Record the requests of what ``store_config`` configures within the block, and tell them at its end.

    On standard error, a line each, in the order in which they ended. Within another such block nothing.
    """
    if not is_asked:
        yield
        return
    descriptor, path = tempfile.mkstemp(prefix="s3mount-perf-")
    os.close(descriptor)
    try:
        with recording(path):
            yield
    finally:
        try:
            for line in table(path):
                click.echo(line, err=True)
        finally:
            os.unlink(path)


def table(path: str) -> Iterator[str]:
    """The lines of the table of a log of requests in JSON lines: s3-algo's columns, then what was asked."""
    from s3mount.s3.http.perf_log import records_in

    yield "".join(f"{title:>{COLUMN}}" for title in TITLES) + "  request"
    for record in records_in(path):
        cells = (
            str(record.attempts),
            str(record.bytes),
            f"{record.success_ms:.0f}",
            f"{record.total_ms:.0f}",
            f"{record.MBps:.5f}",
            f"{record.MBps_est:.5f}",
        )
        what = f"{record.kind} {record.key}".rstrip()
        shown = what if what.isprintable() else ascii(what)[1:-1]
        yield "".join(f"{cell:>{COLUMN}}" for cell in cells) + f"  {shown}"
    yield "Done"

"""``s3mount metrics``: what mounts count, for Prometheus, and a page that shows them."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Sequence

import click

from s3mount.cli import output
from s3mount.cli.completing import MOUNTED
from s3mount.cli.mounts.mounts import find_mount, find_mounts, snapshot_of
from s3mount.errors import UsageError
from s3mount.status import Snapshot


@click.command("metrics", short_help="What mounts count, for Prometheus, and as a web page.")
@click.argument("mountpoints", type=MOUNTED, nargs=-1, metavar="[MOUNTPOINT]...")
@click.option(
    "--with-parent", is_flag=True, hidden=True, help="End with the process that started this one."
)
@click.option(
    "--listen",
    metavar="[HOST:]PORT",
    help="Serve it by HTTP until interrupted: /metrics, and a page at /. On this machine only, unless HOST is named.",
)
def metrics(mountpoints: tuple[str, ...], listen: str | None, with_parent: bool) -> int:
    """Print the metrics of all your mounts, or of those at MOUNTPOINTs, in Prometheus' text format.

    docs/METRICS.md explains each. A process of its own asks the mounts, whose work it does not slow down.
    """
    _must_be_installed()

    def look() -> Sequence[Snapshot]:
        if not mountpoints:
            return [snapshot_of(mount) for mount in find_mounts()]
        return [snapshot_of(find_mount(path)[0]) for path in mountpoints]

    if listen is None:
        from s3mount.monitor.exposition import text_of

        output.write_line(text_of(look).rstrip("\n"))
        return 0
    from s3mount.monitor.server import Monitor

    host, port = address_of(listen)
    look()
    monitor = Monitor(look, host, port, parent=os.getppid() if with_parent else None)
    signal.signal(signal.SIGTERM, lambda *_: monitor.end())
    shown = f"[{host}]" if ":" in host else host
    output.write_line(f"http://{shown}:{monitor.port}/")
    output.flush()
    monitor.run()
    return 0


def address_of(text: str) -> tuple[str, int]:
    """Host and port to listen at. Raises UsageError, also where prometheus-client is not installed."""
    _must_be_installed()
    from s3mount.monitor.server import parse_address

    return parse_address(text)


def _must_be_installed() -> None:
    if importlib.util.find_spec("prometheus_client") is None:
        raise UsageError("metrics need prometheus-client: pip install 's3mount[metrics]'")

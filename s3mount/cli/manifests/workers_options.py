"""``--workers``, ``--batch`` and ``--resume`` of ``manifest verify``, whose work other processes may do."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s3mount.cli.options import absolute
from s3mount.cli.param_types import size
from s3mount.config import default_state_dir

if TYPE_CHECKING:
    from s3mount.app.manifests import Workers

WORKERS_MAX = 256


def workers_options(command: Any) -> Any:
    """Give a command the three."""
    for add in (
        click.option(
            "--resume",
            type=click.Path(dir_okay=False),
            metavar="LOG",
            help="Leave out what LOG says is done, and append to it; it is made if it is not there.",
        ),
        click.option(
            "--batch",
            metavar="N|SIZE",
            help="What a worker gets at a time: entries, or bytes as 4GiB.  [default: 2000, 1GiB]",
        ),
        click.option(
            "--workers", metavar="local:N", help="Let N processes of this machine do the work."
        ),
    ):
        command = add(command)
    return command


@contextmanager
def workers_of(given: dict[str, Any]) -> Iterator[Workers | None]:
    """What the options name; ``None`` without ``--workers``. Raises click.UsageError.

    At the end tells where the results are of what is not finished; else removes a log that nobody named.
    """
    from s3mount.app.manifests import Workers
    from s3mount.bulk.batches.wire import Size

    if given["workers"] is None:
        if given["resume"] or given["batch"]:
            raise click.UsageError("--resume and --batch are for --workers")
        yield None
        return
    named = re.fullmatch(r"local:([0-9]{1,3})", given["workers"], re.ASCII)
    count = int(named[1]) if named else 0
    if not 1 <= count <= WORKERS_MAX:
        raise click.UsageError(f"--workers takes local:N, N from 1 to {WORKERS_MAX}")
    batch = given["batch"]
    if batch is None:
        wanted = Size()
    elif batch.isdecimal():
        wanted = Size(entries=max(1, int(batch)))
    else:
        wanted = Size(size_bytes=max(1, size(batch)))
    log = absolute(given["resume"])
    path = Path(log or default_state_dir() / "batches" / f"{uuid.uuid4().hex}.jsonl")
    workers = Workers(count, wanted, path)
    try:
        yield workers
    finally:
        if workers.is_finished and log is None:
            path.unlink(missing_ok=True)
        elif not workers.is_finished and path.exists():
            click.echo(f"s3mount: what is done is kept; go on with --resume {path}", err=True)

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

_FORMS = re.compile(
    r"local:(?:[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])|(?:dask|tls)://[^/]+:[0-9]+|scheduler-file:.+"
)


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
            "--workers",
            metavar="local:N|dask://HOST:PORT|tls://HOST:PORT|scheduler-file:PATH",
            help="Let N processes of this machine, or the workers of a Dask cluster, do the work.",
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
    if not _FORMS.fullmatch(given["workers"]):
        raise click.UsageError(
            "--workers takes local:N (up to 255), dask://HOST:PORT, tls://HOST:PORT or scheduler-file:PATH"
        )
    batch = given["batch"]
    if batch is None:
        wanted = Size()
    elif batch.isdecimal():
        wanted = Size(entries=max(1, int(batch)))
    else:
        wanted = Size(size_bytes=max(1, size(batch)))
    log = absolute(given["resume"])
    path = Path(log or default_state_dir() / "batches" / f"{uuid.uuid4().hex}.jsonl")
    workers = Workers(given["workers"], wanted, path)
    try:
        yield workers
    finally:
        if workers.is_finished and log is None:
            path.unlink(missing_ok=True)
        elif not workers.is_finished and path.exists():
            click.echo(f"s3mount: what is done is kept; go on with --resume {path}", err=True)

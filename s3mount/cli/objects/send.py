"""``s3mount send``: hands files over to the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import absolute, option
from s3mount.errors import UsageError

if TYPE_CHECKING:
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session


HANDS_MAX = 64
"""Files that are named one by one and handed over at once."""


@click.command("send", short_help="Hand files to the daemon, which sends them.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.argument("destination", type=PLACE, metavar="S3URL")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Folders too.")
@click.option(
    "--wait", "way", flag_value="wait", default="wait", help="Until S3 has them (default)."
)
@click.option(
    "--enqueue", "way", flag_value="enqueue", help="Only until they are safe in the daemon's spool."
)
@click.option(
    "--by-reference",
    is_flag=True,
    help="With --enqueue: do not copy; each stays unchanged until S3 has it.",
)
@click.option("--delete-after", is_flag=True, help="Delete each file once it is safe.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Only these; repeatable.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="None of these; repeatable.")
@option("--socket", type=click.Path(), help="Where the daemon listens.")
@bulk.report_options
def send(files: tuple[str, ...], destination: str, **given: Any) -> int:
    """Hand each FILE (- for standard input) to the daemon for S3URL: s3://BUCKET/KEY, or s3://BUCKET/PREFIX/ for many.

    The daemon gets the open files, so that nothing is sent that you could not read. What S3 refuses is kept by the
    daemon and tried again: s3mount status.

    Exit status 0: S3 has all of it; with --enqueue: it survives a power cut. 1: some is not, which is told.
    """
    from s3mount.bulk.location import LocalPath, Stream, parse, parse_s3
    from s3mount.config import StoreConfig
    from s3mount.patterns import PathFilter

    is_waiting = given["way"] == "wait"
    if given["by_reference"] and is_waiting:
        raise UsageError("--by-reference is of --enqueue: who waits refers to the file anyway")
    if given["by_reference"] and given["delete_after"]:
        raise UsageError("--by-reference needs the file to stay: it contradicts --delete-after")
    to = parse_s3(destination, raw=True)
    sources = [parse(each, raw=True) for each in files]
    for source in sources:
        if not isinstance(source, (LocalPath, Stream)):
            raise UsageError(f"{source.url}: send takes files; s3mount cp takes other places")
    chosen = PathFilter(given["include"], [*given["exclude"]])

    async def main(session: Session, report: Report) -> None:
        from pathlib import Path

        from s3mount.bulk.copying import Chosen, Copying
        from s3mount.daemon.handing import Handing
        from s3mount.daemon.send_client import connected, default_socket

        path = Path(absolute(given["socket"]) or default_socket())
        async with connected(path) as client:
            handing = Handing(
                client,
                session,
                report,
                wait=is_waiting,
                by_reference=given["by_reference"],
                deletes_source=given["delete_after"],
            )
            copying = Copying(
                "send",
                handing,
                report,
                to,
                Chosen(given["recursive"], chosen),
                at_once=HANDS_MAX,
            )
            await copying.run(sources)

    job = bulk.Job(
        "send", StoreConfig(bucket=to.bucket), main, given["as_json"], given["quiet"], False, True
    )
    return bulk.run(job)

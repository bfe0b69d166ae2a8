"""``s3mount cp`` and ``s3mount mv``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from s3mount.cli import output
from s3mount.cli.completing import PLACE
from s3mount.cli.objects.bulk import EXIT_HINT, perform
from s3mount.cli.objects.transfer_options import (
    chosen_of,
    how_of,
    new_objects_of,
    source_config_of,
    transfer_options,
    words_of,
)

if TYPE_CHECKING:
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.config import StoreConfig


@click.command("cp", short_help="Copy files and objects.", epilog=EXIT_HINT)
@click.argument("places", type=PLACE, nargs=-1, required=True, metavar="SOURCE... DESTINATION")
@transfer_options
@click.pass_context
def cp(ctx: click.Context, /, places: tuple[str, ...], **given: Any) -> int:
    """Copy files and objects: to S3, from S3, within it.

    A place is a path, s3://BUCKET/KEY, - for standard input or output, or as a source an http://, https:// or ftp://
    URL. In keys * and ? are wildcards. A DESTINATION that ends with a slash means into; a SOURCE that ends with one
    means what lies in it. What was cut off is gone on with.
    """
    return copy(ctx, "cp", places, given)


@click.command("mv", short_help="Move files and objects.", epilog=EXIT_HINT)
@click.argument("places", type=PLACE, nargs=-1, required=True, metavar="SOURCE... DESTINATION")
@transfer_options
@click.pass_context
def mv(ctx: click.Context, /, places: tuple[str, ...], **given: Any) -> int:
    """Move files and objects: as cp, and then delete each source that has arrived.

    What was put in a source's place meanwhile stays. A bucket that keeps versions keeps those that were moved.
    """
    return copy(ctx, "mv", places, given, deletes_source=True)


def copy(
    ctx: click.Context,
    operation: str,
    places: tuple[str, ...],
    given: dict[str, Any],
    *,
    deletes_source: bool = False,
) -> int:
    """Copy or move; the exit status."""
    if len(places) < 2:
        raise click.UsageError(f"{operation} takes a source and a destination")

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk.copying import Copying
        from s3mount.bulk.location import RemoteUrl, Stream, parse
        from s3mount.bulk.transfers import Transfers
        from s3mount.errors import DestinationError, UsageError

        sources = [parse(place, raw=given["raw"]) for place in places[:-1]]
        # In the name of one that is made wildcards mean nothing.
        to = parse(places[-1], raw=True)
        if isinstance(to, RemoteUrl):
            raise DestinationError(f"{to.url}: nothing can be written there")
        if deletes_source and any(isinstance(each, (Stream, RemoteUrl)) for each in sources):
            raise UsageError("what is read from a stream or a URL cannot be moved: s3mount cp")
        how = how_of(given, deletes_source=deletes_source)
        source_config = source_config_of(given, config)
        transfers = Transfers(session, report, config, how, source_config=source_config)
        copying = Copying(
            operation,
            transfers,
            report,
            to,
            chosen_of(given),
            words=words_of(ctx),
            write=output.write_bytes,
        )
        await copying.run(sources)

    if places[-1] == "-":
        # Standard output is the object's.
        given = given | {"as_json": False, "quiet": True}
    return perform(operation, given, main, new_objects=new_objects_of(given))

"""``s3mount cat``: objects on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from s3mount.cli import output
from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from s3mount.bulk.reading import Piece
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.bulk.selecting import Item
    from s3mount.config import StoreConfig


@click.command("cat", short_help="Write objects to standard output.", epilog=bulk.EXIT_HINT)
@click.argument("places", type=PLACE, metavar="S3URL...", nargs=-1, required=True)
@click.option("--version-id", metavar="ID", help="This version of one object.")
@bulk.packs_option
@bulk.selection_options
@store_options
def cat(places: tuple[str, ...], **given: Any) -> int:
    """Write what S3URL names to standard output, one after the other: objects, s3://BUCKET/logs/*.gz, a folder.

    Ranges are read in parallel and written in order; memory stays bounded.
    """
    from s3mount.bulk import selecting
    from s3mount.bulk.reading import pieces_of, read_in_order

    located = [bulk.s3_location(place, raw=given["raw"], command="cat") for place in places]
    if given["version_id"] and (len(located) > 1 or located[0].is_pattern or located[0].is_folder):
        raise click.UsageError("--version-id is of one object alone")
    chosen = bulk.path_filter(given)

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        async def produce(send: Callable[[Piece], Awaitable[None]]) -> None:
            for location in located:
                store = await session.store(config, location.bucket)
                found = 0

                async def take(items: list[Item], store: Any = store) -> None:
                    nonlocal found
                    for item in items:
                        found += 1
                        report.expect(1, item.size or 0)
                        for piece in pieces_of(store, item.ref):
                            await send(piece)

                if location.is_pattern or location.is_folder:
                    await selecting.objects(store, location, take, takes=chosen)
                    if not found:
                        raise bulk.nothing_there(location)
                else:
                    version_id = given["version_id"]
                    await take([await selecting.one_object(store, location, version_id=version_id)])
            report.all_known()

        async def consume(piece: Piece, data: memoryview) -> None:
            await output.write_bytes(data)
            report.moved(len(data))
            report.counts.objects += piece.is_last

        async with selecting.streamed(produce) as pieces:
            await read_in_order(pieces, consume)

    return bulk.perform("cat", given, main, has_summary=False)

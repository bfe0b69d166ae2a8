"""``s3mount verify``: do two places hold the same bytes under the same names?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_options
from s3mount.errors import ChecksumError, SourceError

if TYPE_CHECKING:
    from s3mount.bulk.matching import Pair, Side
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session, Task
    from s3mount.config import StoreConfig

AT_ONCE = 8


@click.command("verify", short_help="Do two places hold the same bytes?", epilog=bulk.EXIT_HINT)
@click.argument("left", type=PLACE, metavar="SOURCE")
@click.argument("right", type=PLACE, metavar="DESTINATION")
@click.option("--one-way", is_flag=True, help="What only DESTINATION has is no fault.")
@bulk.packs_option
@bulk.selection_options
@bulk.report_options
@store_options
def verify(left: str, right: str, **given: Any) -> int:
    """Hold the bytes of two files, objects, or folders against each other.

    Objects are known by their ETag and checksums, and read only where these do not tell; local files are read.
    Each difference is told, and the exit status is 1.
    """
    from s3mount.bulk.location import parse

    places = [parse(each, raw=given["raw"]) for each in (left, right)]
    chosen = bulk.path_filter(given)

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk.matching import Pair, Pairs, Side
        from s3mount.bulk.running import Performer, for_each, refusing
        from s3mount.bulk.selecting import streamed

        sides = [await Side.of(session, config, place) for place in places]
        performer = Performer(report)

        async def do(pair: Pair) -> None:
            if given["one_way"] and pair.left is None:
                return
            report.expect(1)
            await performer.perform(_task(pair, sides))

        if not any(side.is_folder for side in sides):
            await do(Pair(await sides[0].item(), await sides[1].item()))
            return
        sides = [side.as_folder() for side in sides]
        refuse = refusing(report, "verify")
        produce = [partial(side.items, chosen, refuse) for side in sides]
        async with streamed(produce[0]) as lefts, streamed(produce[1]) as rights:
            await for_each(Pairs(lefts, rights), do, workers=AT_ONCE)
        if not report.counts.objects:
            raise SourceError(f"nothing lies in {left} nor in {right}")

    return bulk.perform("verify", given, main)


def _task(pair: Pair, sides: list[Side]) -> Task:
    from s3mount.bulk.matching import is_same
    from s3mount.bulk.running import Done, Task

    item = pair.left or pair.right
    assert item is not None
    source, destination = (
        side.url_of(item.name) if each is None else each.url
        for each, side in zip(pair, sides, strict=True)
    )

    async def work() -> Done:
        for each, side in zip(pair, sides, strict=True):
            if each is None:
                raise ChecksumError(f"{side.url_of(item.name)} is not there")
        assert pair.left is not None
        assert pair.right is not None
        if pair.left.size != pair.right.size:
            raise ChecksumError(f"{pair.left.size} bytes here, {pair.right.size} there")
        if not await is_same(pair.left, sides[0], pair.right, sides[1], may_read=True):
            raise ChecksumError("the bytes differ")
        return Done()

    return Task("verify", source, destination, work)

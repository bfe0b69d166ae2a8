"""``s3mount du``: how many objects and bytes, by storage class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from s3mount.cli import output
from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_options

if TYPE_CHECKING:
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.bulk.selecting import Item
    from s3mount.config import StoreConfig

DEFAULT_CLASS = "STANDARD"


@click.command("du", short_help="Objects and bytes, by storage class.", epilog=bulk.EXIT_HINT)
@click.argument("places", type=PLACE, metavar="S3URL...", nargs=-1, required=True)
@click.option("-g", "--group", is_flag=True, help="A line for each storage class as well.")
@click.option("-H", "--human", is_flag=True, help="Sizes as 1.5 MiB.")
@click.option("--versions", is_flag=True, help="All versions, as they are paid for.")
@bulk.packs_option
@bulk.selection_options
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each S3URL.")
@store_options
def du(places: tuple[str, ...], **given: Any) -> int:
    """Add up what lies at and below each S3URL, or fits it as a pattern."""
    from s3mount.bulk import selecting

    located = [bulk.s3_location(place, raw=given["raw"], command="du").tree() for place in places]
    chosen = bulk.path_filter(given)

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        for location in located:
            store = await session.store(config, location.bucket)
            classes: dict[str, list[int]] = {}

            async def add(items: list[Item], classes: dict[str, list[int]] = classes) -> None:
                for item in items:
                    if not item.is_delete_marker:
                        sums = classes.setdefault(item.storage_class or DEFAULT_CLASS, [0, 0])
                        sums[0] += 1
                        sums[1] += item.size or 0
                report.counts.objects += len(items)

            await selecting.objects(
                store, location, add, takes=chosen, with_versions=given["versions"]
            )
            if not classes and not location.is_everything:
                report.fail("du", location.url, None, bulk.nothing_there(location))
                continue
            _tell(location.url, classes, given)

    return bulk.perform("du", given, main, has_summary=False)


def _tell(url: str, classes: dict[str, list[int]], given: dict[str, Any]) -> None:
    from s3mount.status import size_text

    objects, size = (sum(sums[place] for sums in classes.values()) for place in (0, 1))
    if given["as_json"]:
        by_class = {
            name: {"objects": sums[0], "bytes": sums[1]} for name, sums in sorted(classes.items())
        }
        about = {"url": url, "objects": objects, "bytes": size, "storage_classes": by_class}
        output.write_json(about)
        return

    def line(count: int, size_bytes: int, what: str) -> str:
        told = size_text(size_bytes) if given["human"] else str(size_bytes)
        return f"{told:>16}  {count:>12,} objects  {what}"

    if given["group"]:
        for name, (count, size_bytes) in sorted(classes.items()):
            output.write_line(line(count, size_bytes, name))
    output.write_line(line(objects, size, url))

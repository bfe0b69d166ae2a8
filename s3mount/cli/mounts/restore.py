"""``s3mount restore``: bring archived objects back for some days, and tell how far that is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click
import msgspec

from s3mount.cli import output
from s3mount.cli.completing import PLACE
from s3mount.cli.mounts.mounts import config_of, find_mount
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_options

if TYPE_CHECKING:
    from s3mount.bulk.location import S3Location
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.bulk.selecting import Item
    from s3mount.config import StoreConfig
    from s3mount.s3.account import Restorer
    from s3mount.s3.store import Store

READABLE = "readable"
"""The state of what is in no archive."""
RESTORING = "restoring"
CLASSES = frozenset(("GLACIER", "DEEP_ARCHIVE", "INTELLIGENT_TIERING"))
"""Storage classes of which some objects may be archived, as lists tell them."""
AT_ONCE = 16
LOOK_EVERY_S = 60.0
"""A restore takes minutes to two days."""


@click.command(
    "restore", short_help="Bring archived objects back for some days.", epilog=bulk.EXIT_HINT
)
@click.argument("places", type=PLACE, metavar="PATH|S3URL...", nargs=-1, required=True)
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=7,
    show_default=True,
    help="How long they can be read.",
)
@click.option(
    "--tier",
    type=click.Choice(("Bulk", "Standard", "Expedited")),
    default="Standard",
    show_default=True,
    help="How fast, and how dear.",
)
@click.option("--wait", "is_waiting", is_flag=True, help="Return when all can be read.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell the state of each.")
@bulk.report_options
@store_options
def restore(places: tuple[str, ...], **given: Any) -> int:
    """Ask S3 to make archived objects readable: files in mounts, or s3://BUCKET/KEY; of a folder all that lies in it.

    A line tells the state of each: archived (with --dry-run), restoring, restored until when, or readable, as it is
    in no archive. Repeatable: what is being restored goes on, and what is restored stays for --days from now.
    """
    located = [_located(place) for place in places]

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        for location, of_mount in located:
            await _Restoring(given, report, location).run(session, of_mount or config)

    return bulk.perform("restore", given, main, has_summary=False)


def _located(place: str) -> tuple[S3Location, StoreConfig | None]:
    """What a place names, and how its mount asks S3. Raises UsageError, MountError."""
    from s3mount.bulk.location import S3Location

    if "://" in place:
        return bulk.s3_location(place, raw=True, command="restore").tree(), None
    mount, relative = find_mount(place)
    config = config_of(mount)
    return S3Location(config.store.bucket, f"{config.prefix}{relative}").tree(), config.store


class _Restoring:
    """What lies at and below one place."""

    def __init__(self, given: dict[str, Any], report: Report, location: S3Location) -> None:
        self._given = given
        self._report = report
        self._location = location

    async def run(self, session: Session, config: StoreConfig) -> None:
        """Ask for all; with ``--wait`` until they can be read. Raises S3MountError that all would meet."""
        import trio

        from s3mount.bulk import selecting
        from s3mount.bulk.running import FATAL, Flattened, for_each
        from s3mount.errors import S3MountError
        from s3mount.s3.account import Restorer

        config = msgspec.structs.replace(config, bucket=self._location.bucket)
        store = await session.store(config, config.bucket)
        restorer = await trio.to_thread.run_sync(Restorer, config)
        report, found = self._report, 0

        async def do(item: Item) -> None:
            nonlocal found
            found += 1
            if item.storage_class not in CLASSES and item.key != self._location.key:
                return
            try:
                state = await self._restored(store, restorer, item)
            except S3MountError as error:
                if isinstance(error, FATAL):
                    raise
                report.fail("restore", item.url, None, error)
                return
            report.counts.objects += 1
            self._tell(item.url, state)

        async def produce(send: selecting.Send) -> None:
            await selecting.objects(store, self._location, send)

        async with selecting.streamed(produce) as batches:
            await for_each(Flattened(batches), do, workers=AT_ONCE)
        if not found:
            report.fail("restore", self._location.url, None, bulk.nothing_there(self._location))

    async def _restored(self, store: Store, restorer: Restorer, item: Item) -> str:
        """Ask for one object as far as it needs that; its state then. Raises StoreError."""
        import trio

        about = await store.head(item.key)
        if about.archive is None:
            return READABLE
        if not self._given["dry_run"]:
            if about.archive != RESTORING:
                stays = about.storage_class == "INTELLIGENT_TIERING"
                ask = partial(
                    restorer.restore,
                    item.key,
                    days=None if stays else self._given["days"],
                    tier=self._given["tier"],
                )
                await trio.to_thread.run_sync(ask)
                about = await store.head(item.key)
            while self._given["is_waiting"] and about.archive in (RESTORING, "archived"):
                await trio.sleep(LOOK_EVERY_S)
                about = await store.head(item.key)
        return about.archive or READABLE

    def _tell(self, url: str, state: str) -> None:
        if self._given["quiet"]:
            return
        if self._given["as_json"]:
            word, _, until = state.partition(" until ")
            output.write_json({"url": url, "state": word, "until": until or None})
        else:
            output.write_line(f"{state}  {url}")

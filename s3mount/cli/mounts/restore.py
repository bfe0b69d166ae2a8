"""``s3mount restore``: bring archived objects back for some days, and tell how far that is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
    from s3mount.refs import Key, ObjectInfo
    from s3mount.s3.account import Restorer

READABLE = "readable"
"""The state of what is in no archive."""
ARCHIVED = "archived"
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
        restorings = [_Restoring(given, report, location) for location, _ in located]
        for restoring, (_, of_mount) in zip(restorings, located, strict=True):
            await restoring.ask(session, of_mount or config)
        for restoring in restorings:
            await restoring.wait()

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
    """What lies at and below one place. All of it is asked for before anything is waited for."""

    def __init__(self, given: dict[str, Any], report: Report, location: S3Location) -> None:
        self._given = given
        self._report = report
        self._location = location
        self._waiting: list[Item] = []

    async def ask(self, session: Session, config: StoreConfig) -> None:
        """Ask for all, and tell the state of what is not to be waited for. Raises what all would meet."""
        import trio

        from s3mount.bulk import selecting
        from s3mount.bulk.running import Flattened, for_each
        from s3mount.s3.account import Restorer

        config = msgspec.structs.replace(config, bucket=self._location.bucket)
        self._store = store = await session.store(config, config.bucket)
        restorer = await trio.to_thread.run_sync(Restorer, config)
        found = 0

        async def do(item: Item) -> None:
            nonlocal found
            found += 1
            if item.storage_class in CLASSES or item.key == self._location.key:
                await self._told(item, partial(self._asked, restorer, item.key))

        async def produce(send: selecting.Send) -> None:
            await selecting.objects(store, self._location, send)

        async with selecting.streamed(produce) as batches:
            await for_each(Flattened(batches), do, workers=AT_ONCE)
        if not found:
            error = bulk.nothing_there(self._location)
            self._report.fail("restore", self._location.url, None, error)

    async def wait(self) -> None:
        """Look each minute for what S3 has not brought back yet, and tell of it once it has. Raises as ``ask``."""
        import trio

        from s3mount.bulk.running import OneByOne, for_each

        async def do(item: Item) -> None:
            await self._told(item, partial(self._store.head, item.key))

        while self._waiting:
            await trio.sleep(LOOK_EVERY_S)
            looked_for, self._waiting = self._waiting, []
            await for_each(OneByOne(looked_for), do, workers=AT_ONCE)

    async def _asked(self, restorer: Restorer, key: Key) -> ObjectInfo:
        """Ask for one object, if it needs that; what it is then. Raises StoreError."""
        import trio

        about = await self._store.head(key)
        if about.archive in (None, RESTORING) or self._given["dry_run"]:
            return about
        stays = about.storage_class == "INTELLIGENT_TIERING"
        days = None if stays else self._given["days"]
        await trio.to_thread.run_sync(
            partial(restorer.restore, key, days=days, tier=self._given["tier"])
        )
        return await self._store.head(key)

    async def _told(self, item: Item, look: Callable[[], Awaitable[ObjectInfo]]) -> None:
        """Tell what ``look`` finds of one object, or keep it to be waited for."""
        from s3mount.bulk.running import FATAL
        from s3mount.errors import S3MountError

        try:
            state = (await look()).archive or READABLE
        except S3MountError as error:
            if isinstance(error, FATAL):
                raise
            self._report.fail("restore", item.url, None, error)
            return
        is_waiting = self._given["is_waiting"] and not self._given["dry_run"]
        if is_waiting and state in (RESTORING, ARCHIVED):
            self._waiting.append(item)
            return
        self._report.counts.objects += 1
        self._tell(item.url, state)

    def _tell(self, url: str, state: str) -> None:
        if self._given["quiet"]:
            return
        if self._given["as_json"]:
            word, _, until = state.partition(" until ")
            output.write_json({"url": url, "state": word, "until": until or None})
        else:
            output.write_line(f"{state}  {url}")

"""``s3mount rm``: objects, folders, versions and what a pattern names, deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_options

if TYPE_CHECKING:
    from s3mount.bulk.location import S3Location
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.bulk.selecting import Item, Send
    from s3mount.config import StoreConfig
    from s3mount.s3.store import Store


@click.command("rm", short_help="Delete objects, folders or versions.", epilog=bulk.EXIT_HINT)
@click.argument("places", type=PLACE, metavar="S3URL...", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="All that lies below, too.")
@click.option(
    "--versions", is_flag=True, help="Destroy all versions and delete markers, not only hide them."
)
@click.option("--version-id", metavar="ID", help="Destroy this version of one object.")
@bulk.selection_options
@bulk.names_options
@bulk.dry_run_option
@bulk.report_options
@bulk.perf_option
@store_options
def rm(places: tuple[str, ...], **given: Any) -> int:
    """Delete what S3URL names: an object, s3://BUCKET/a/*.tmp, or with -r a folder or a whole bucket.

    In a bucket that keeps versions a delete marker hides an object, and its versions stay; --versions and
    --version-id destroy them for good. 1,000 keys go by one request.
    """
    from s3mount.bulk import selecting
    from s3mount.bulk.deleting import Deleter

    located = [bulk.s3_location(place, raw=given["raw"], command="rm") for place in places]
    names = bulk.given_names(given)
    _check(located, given, has_names=names is not None)
    chosen = bulk.path_filter(given)

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        for location in located:
            store = await session.store(config, location.bucket)

            async def produce(
                send: Send, location: S3Location = location, store: Store = store
            ) -> None:
                async def take(items: list[Item]) -> None:
                    report.expect(len(items))
                    await send(items)

                if names is not None:
                    await selecting.named_objects(location, names, take)
                    return
                await _named(store, location, take)

            async with selecting.streamed(produce) as batches:
                await Deleter(store, report).run(batches)
        report.all_known()

    async def _named(store: Store, location: S3Location, take: Send) -> None:
        is_single = not (given["recursive"] or location.is_pattern)
        if is_single and given["versions"]:
            await selecting.versions_of_key(store, location, take)
        elif is_single:
            name = location.key.rpartition("/")[2]
            key = location.key
            await take(
                [selecting.Item(location.url, name, key=key, version_id=given["version_id"])]
            )
        else:
            place = location.tree() if given["recursive"] else location
            found = await _listed(store, place, take)
            if not found and not location.is_everything:
                raise bulk.nothing_there(location)

    async def _listed(store: Store, place: S3Location, take: Send) -> int:
        found = 0

        async def count(items: list[Item]) -> None:
            nonlocal found
            found += len(items)
            await take(items)

        await selecting.objects(store, place, count, takes=chosen, with_versions=given["versions"])
        return found

    return bulk.perform("rm", given, main)


def _check(located: list[S3Location], given: dict[str, Any], *, has_names: bool) -> None:
    """Raises click.UsageError for what would delete more, or other things, than was meant."""
    if given["version_id"] and (
        len(located) > 1 or given["recursive"] or given["versions"] or has_names
    ):
        raise click.UsageError("--version-id is of one object alone")
    if has_names and (len(located) > 1 or given["versions"]):
        raise click.UsageError("--files-from is for one folder, and without --versions")
    for location in located:
        if has_names or given["recursive"]:
            continue
        if given["version_id"] and location.is_pattern:
            raise click.UsageError("--version-id is of one object alone")
        if location.is_everything:
            raise click.UsageError(
                f"{location.url} is the whole bucket: to delete all in it, give -r"
            )
        if location.is_folder:
            raise click.UsageError(
                f"{location.url} is a folder: to delete all in it, give -r; "
                "for the object of that name alone: --files-from"
            )

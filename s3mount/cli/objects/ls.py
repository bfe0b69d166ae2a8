"""``s3mount ls``: what lies in a folder, below it, or fits a pattern; and the account's buckets."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from s3mount.cli import output
from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_config, store_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.bulk.selecting import Item
    from s3mount.config import StoreConfig


@click.command("ls", short_help="List objects, folders, versions, buckets.", epilog=bulk.EXIT_HINT)
@click.argument("place", type=PLACE, metavar="[S3URL]", required=False)
@click.option("-R", "-r", "--recursive", is_flag=True, help="All that lies below, too.")
@click.option("-l", "--long", "is_long", is_flag=True, help="With date, size and storage class.")
@click.option("-H", "--human", is_flag=True, help="As -l, with sizes as 1.5 MiB.")
@click.option("-e", "--etag", is_flag=True, help="With the ETag.")
@click.option("--versions", is_flag=True, help="All versions and delete markers.")
@bulk.packs_option
@bulk.selection_options
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each.")
@store_options
def ls(place: str | None, **given: Any) -> int:
    """List what lies in s3://BUCKET/FOLDER/, what fits s3://BUCKET/2020/*/x*, or without S3URL your buckets.

    In the order of keys, which are told from the folder on.
    """
    if place is None or place == "s3://":
        return _buckets(given)
    from s3mount.bulk import selecting

    location = bulk.s3_location(place, raw=given["raw"], command="ls")
    chosen = bulk.path_filter(given)
    line = _json_line if given["as_json"] else _plain_line(given)
    is_deep = given["recursive"] or location.is_pattern
    if given["recursive"]:
        location = location.tree()

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        store = await session.store(config, location.bucket)
        counts = report.counts

        async def show(items: list[Item]) -> None:
            for item in items:
                counts.objects += 1
                output.write_line(line(item))

        if is_deep or location.is_folder:
            await selecting.objects(
                store,
                location,
                show,
                takes=chosen,
                with_versions=given["versions"],
                delimiter=None if is_deep or given["versions"] else "/",
            )
        elif given["versions"]:
            await selecting.versions_of_key(store, location, show)
        else:
            await selecting.object_and_folder(store, location, show)
        if not counts.objects and not location.is_everything:
            raise bulk.nothing_there(location)

    return bulk.perform("ls", given, main, has_summary=False)


def _buckets(given: dict[str, Any]) -> int:
    """List the account's buckets."""
    from s3mount.manifest.times import format_time
    from s3mount.s3.account import list_buckets

    for bucket in list_buckets(store_config(given)):
        created = format_time(bucket.created_ns) if bucket.created_ns else None
        if given["as_json"]:
            output.write_json({"type": "bucket", "url": f"s3://{bucket.name}", "created": created})
        elif given["is_long"] or given["human"]:
            output.write_line(f"{created or '-':<20}  s3://{bucket.name}")
        else:
            output.write_line(f"s3://{bucket.name}")
    return 0


def _json_line(item: Item) -> str:
    from s3mount.manifest.times import format_time

    kind = "version" if item.version_id is not None else "object"
    if item.is_folder:
        kind = "folder"
    if item.is_delete_marker:
        kind = "delete marker"
    about: dict[str, Any] = {"type": kind, "url": item.url, "name": item.name}
    if not item.is_folder:
        about["modified"] = format_time(item.modified_ns)
    if not item.is_folder and not item.is_delete_marker:
        about |= {"bytes": item.size, "etag": item.etag, "storage_class": item.storage_class}
    if item.version_id is not None:
        about |= {"version_id": item.version_id, "is_latest": item.is_latest}
    return output.json_line(about)


def _plain_line(given: dict[str, Any]) -> Callable[[Item], str]:
    from s3mount.manifest.times import format_time
    from s3mount.status import size_text

    is_long = given["is_long"] or given["human"]
    on_terminal = sys.stdout.isatty()

    def line(item: Item) -> str:
        cells = []
        if is_long:
            date = "" if item.is_folder else format_time(item.modified_ns)[:19] + "Z"
            size = size_text(item.size or 0) if given["human"] else str(item.size)
            if item.is_folder or item.is_delete_marker:
                size = "folder" if item.is_folder else "deleted"
            kind = (
                "" if item.is_folder or item.is_delete_marker else item.storage_class or "STANDARD"
            )
            cells += [f"{date:<20}", f"{size:>14}", f"{kind:<12}"]
        if given["etag"]:
            cells.append(f"{item.etag or '-':<35}")
        if given["versions"]:
            cells.append(f"{item.version_id or '-':<32}")
        name = item.name or item.key
        cells.append(_printable(name) if on_terminal else name)
        return "  ".join(cells)

    return line


def _printable(name: str) -> str:
    """A name without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)

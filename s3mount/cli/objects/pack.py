"""``s3mount pack``: many small files as a few tar files in S3, each still readable alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from s3mount.cli import output
from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_options
from s3mount.cli.param_types import size_from

if TYPE_CHECKING:
    from s3mount.bulk.location import S3Location
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.config import StoreConfig
    from s3mount.pack.finding import Alive, Loaded
    from s3mount.s3.store import Store


def _limits(command: bulk.F) -> bulk.F:
    """``--pack-bytes`` and ``--pack-files``."""
    by_bytes = click.option(
        "--pack-bytes",
        type=size_from(1),
        default="64M",
        show_default=True,
        help="A pack is closed when it is so large.",
    )
    by_files = click.option(
        "--pack-files",
        type=click.IntRange(1, 1_000_000),
        default=10_000,
        show_default=True,
        help="A pack is closed when it has so many files.",
    )
    return by_bytes(by_files(command))


@click.group("pack", short_help="Small files as a few tar files, and any tar file by its members.")
def pack() -> None:
    """Many small files as a few tar files in S3, each of which is still read alone, by a range.

    docs/PACKS.md specifies packs and their indexes.
    """


@pack.command("create", short_help="Pack local files.", epilog=bulk.EXIT_HINT)
@click.argument("sources", type=PLACE, metavar="SRC...", nargs=-1, required=True)
@click.argument("destination", type=PLACE, metavar="S3URL/")
@_limits
@click.option("--storage-class", help="Of the packs; their indexes are STANDARD.")
@click.option("--no-follow-links", is_flag=True, help="Leave symbolic links out.")
@bulk.selection_options
@bulk.dry_run_option
@bulk.report_options
@store_options
def create(sources: tuple[str, ...], destination: str, **given: Any) -> int:
    """Put files and folders into packs in the folder S3URL/.

    A folder keeps its name, one that ends with a slash means what lies in it. A file of a name that an earlier pack
    has replaces it. Each file is told when S3 has its pack.
    """
    from s3mount.bulk.location import LocalPath, parse
    from s3mount.bulk.packs.packing import OPERATION, Packing
    from s3mount.errors import SourceError
    from s3mount.pack.writer import Limits, open_writer

    to = _folder(destination, given)
    paths = [parse(source) for source in sources]
    for path in paths:
        if not isinstance(path, LocalPath):
            raise SourceError(f"{path.url}: not a local file or folder")
    chosen = bulk.path_filter(given)
    limits = Limits(given["pack_bytes"], given["pack_files"])

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        store = await session.store(config, to.bucket)
        storage_class = given["storage_class"]
        async with open_writer(
            store, to.bucket, to.key, limits, storage_class=storage_class, gives_up=True
        ) as writer:
            await Packing(writer, report, to).run(
                [path for path in paths if isinstance(path, LocalPath)],
                takes=chosen,
                follow_links=not given["no_follow_links"],
            )

    return bulk.perform(OPERATION, given, main)


@pack.command("ls", short_help="List the names in packs.", epilog=bulk.EXIT_HINT)
@click.argument("place", type=PLACE, metavar="S3URL")
@click.option("-l", "--long", "is_long", is_flag=True, help="With date and size.")
@click.option("--packs", "tells_packs", is_flag=True, help="The packs, and how much is alive.")
@bulk.selection_options
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each.")
@store_options
def list_names(place: str, **given: Any) -> int:
    """List what lies in the packs of the folder S3URL/, or in the one tar file S3URL, in the order of keys.

    The names of all packs of a folder are held in memory: about 0.5 KiB each.
    """
    from s3mount.pack.finding import alive

    location = bulk.s3_location(place, raw=given["raw"], command="pack ls")
    chosen = bulk.path_filter(given)

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk.packs.named import loaded_packs

        store = await session.store(config, location.bucket)
        packs = await loaded_packs(store, location, report, "pack ls")
        if given["tells_packs"]:
            _tell_packs(location, packs, as_json=given["as_json"])
            return
        for found in alive(packs):
            name = found.key[len(location.base) :]
            if not chosen.takes(name):
                continue
            if given["as_json"]:
                output.write_json(_about(location, found))
            else:
                output.write_line(_line(found, name) if given["is_long"] else name)

    return bulk.perform("pack ls", given, main, has_summary=False)


@pack.command("locate", short_help="Where a name's bytes lie.", epilog=bulk.EXIT_HINT)
@click.argument("place", type=PLACE, metavar="S3URL")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@bulk.raw_option
@store_options
def locate(place: str, names: tuple[str, ...], **given: Any) -> int:
    """Tell as JSON where NAME lies in the packs of the folder S3URL/, or in the tar file S3URL.

    A GET of key with Range: bytes=BODY-(BODY+SIZE-1) brings it, by whatever client.
    """
    location = bulk.s3_location(place, raw=True, command="pack locate")

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk.packs.named import loaded_packs
        from s3mount.errors import SourceError
        from s3mount.pack.finding import alive

        store = await session.store(config, location.bucket)
        packs = await loaded_packs(store, location, report, "pack locate")
        wanted = {location.base + name for name in names}
        found = {each.key: each for each in alive(packs) if each.key in wanted}
        for name in names:
            there = found.get(location.base + name)
            if there is None:
                error = SourceError(f"no pack at {location.url} has it")
                report.fail("pack locate", name, None, error)
                continue
            version_id = await _version_of(store, there)
            output.write_json(_about(location, there) | {"version_id": version_id})
            report.counts.objects += 1

    return bulk.perform("pack locate", given, main, has_summary=False)


@pack.command("index", short_help="Make the index of any tar file.", epilog=bulk.EXIT_HINT)
@click.argument("places", type=PLACE, metavar="S3URL...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="In place of an index that is there.")
@bulk.report_options
@store_options
def index(places: tuple[str, ...], **given: Any) -> int:
    """Put an index beside tar files in S3, whoever wrote them, so that pack ls, locate and unpack read them.

    Headers alone are read: v7, ustar, pax and GNU tar, not packed by gzip or the like.
    """
    from s3mount.bulk.packs.named import INDEXING, make_index

    located = [bulk.s3_location(place, raw=True, command=INDEXING) for place in places]

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk.running import FATAL
        from s3mount.errors import S3MountError

        report.expect(len(located))
        report.all_known()
        for location in located:
            store = await session.store(config, location.bucket)
            try:
                await make_index(store, location, report, replaces=given["force"])
            except S3MountError as error:
                if isinstance(error, FATAL):
                    raise
                report.fail(INDEXING, location.url, None, error)

    return bulk.perform(INDEXING, given, main)


@pack.command("unpack", short_help="Members as files or objects.", epilog=bulk.EXIT_HINT)
@click.argument("place", type=PLACE, metavar="S3URL")
@click.argument("destination", type=PLACE, metavar="FOLDER|S3URL/")
@click.argument("names", metavar="[NAME...]", nargs=-1)
@bulk.selection_options
@bulk.report_options
@store_options
def unpack(place: str, destination: str, names: tuple[str, ...], **given: Any) -> int:
    """Write what lies in the packs of the folder S3URL/, or in the tar file S3URL, into a folder, here or in S3.

    All of it, or the names that are given. Each is held to the digest that its index has.
    """
    from s3mount.bulk.location import LocalPath, S3Location, parse
    from s3mount.bulk.packs.unpacking import OPERATION
    from s3mount.errors import DestinationError

    location = bulk.s3_location(place, raw=given["raw"], command=OPERATION)
    chosen = bulk.path_filter(given)
    to = parse(destination, raw=True)
    if not isinstance(to, LocalPath | S3Location) or (
        isinstance(to, S3Location) and not to.is_folder
    ):
        raise DestinationError(f"{destination}: a folder, or s3://BUCKET/FOLDER/ with its slash")

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk.packs.unpacking import Unpacking

        store = await session.store(config, location.bucket)
        target = await session.store(config, to.bucket) if isinstance(to, S3Location) else None
        unpacking = Unpacking(store, location, report, to, target)
        await unpacking.run(names=names, takes=chosen)

    return bulk.perform(OPERATION, given, main)


@pack.command("compact", short_help="Write anew what little is alive.", epilog=bulk.EXIT_HINT)
@click.argument("place", type=PLACE, metavar="S3URL/")
@click.option(
    "--live-below",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Packs of whose bytes a smaller share is alive.",
)
@click.option(
    "--keep-versions", is_flag=True, help="Hide old packs by delete markers, where there are such."
)
@_limits
@bulk.dry_run_option
@bulk.report_options
@store_options
def compact(place: str, **given: Any) -> int:
    """Copy what is alive in packs of the folder S3URL/ into new ones, and remove those.

    Others may read, write and compact meanwhile. Tar files that others wrote stay as they are.
    """
    from s3mount.bulk.packs.compacting import OPERATION
    from s3mount.pack.writer import Limits

    location = _folder(place, given | {"raw": True})
    limits = Limits(given["pack_bytes"], given["pack_files"])

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk.packs.compacting import Compacting

        compacting = Compacting(
            await session.store(config, location.bucket),
            location,
            report,
            limits=limits,
            live_below=given["live_below"],
            keeps_versions=given["keep_versions"],
        )
        await compacting.run()

    return bulk.perform(OPERATION, given, main)


async def _version_of(store: Store, found: Alive) -> str | None:
    """The version of the pack that its index is of. Raises PreconditionFailedError where another one is there."""
    from s3mount.errors import PreconditionFailedError

    tar = found.loaded.pack.tar
    info = await store.head(tar.key)
    if (info.size, info.etag) != (tar.size, tar.etag):
        raise PreconditionFailedError("the pack was replaced since it was listed", key=tar.key)
    return info.version_id


def _folder(text: str, given: dict[str, Any]) -> S3Location:
    from s3mount.errors import DestinationError

    to = bulk.s3_location(text, raw=given["raw"], command="pack create")
    if not to.is_folder:
        raise DestinationError(f"{text}: packs lie in a folder, which ends with a slash")
    return to


def _about(location: S3Location, found: Alive) -> dict[str, Any]:
    """What there is to tell of a name, for programs."""
    entry, tar = found.entry, found.loaded.pack.tar
    about = {
        "type": entry.kind,
        "name": found.key[len(location.base) :],
        "bucket": location.bucket,
        "key": tar.key,
        "etag": tar.etag,
        "header": entry.header,
        "body": entry.body,
        "size": entry.size,
        "sha256": entry.sha256 or None,
        "mtime": entry.mtime or None,
        "mode": entry.mode or None,
    }
    return about | {"target": entry.target} if entry.kind == "link" else about


def _line(found: Alive, name: str) -> str:
    from s3mount.manifest.times import format_time

    entry = found.entry
    when = format_time(entry.mtime_ns)[:19] + "Z" if entry.mtime_ns is not None else "-"
    size = str(entry.size) if entry.kind == "file" else entry.kind
    return f"{when:<20}  {size:>14}  {name}"


def _tell_packs(location: S3Location, packs: list[Loaded], *, as_json: bool) -> None:
    """Each pack, and how much of it is alive."""
    from s3mount.pack.finding import alive
    from s3mount.status import size_text

    names: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for found in alive(packs):
        key = found.loaded.pack.tar.key
        names[key] = names.get(key, 0) + 1
        sizes[key] = sizes.get(key, 0) + found.entry.stop - found.entry.header
    for loaded in sorted(packs, key=lambda each: each.pack.tar.key):
        tar, head = loaded.pack.tar, loaded.contents.head
        entries = len(loaded.contents.entries)
        live, live_bytes = names.get(tar.key, 0), sizes.get(tar.key, 0)
        if as_json:
            output.write_json(
                {
                    "type": "pack",
                    "bucket": location.bucket,
                    "key": tar.key,
                    "id": head.id,
                    "bytes": tar.size,
                    "entries": entries,
                    "live": live,
                    "live_bytes": live_bytes,
                    "foreign": head.foreign,
                }
            )
        else:
            share = f"{live:,} of {entries:,} alive, {size_text(live_bytes)}"
            output.write_line(f"{size_text(tar.size):>12}  {share:<40}  {tar.key}")

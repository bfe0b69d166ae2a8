"""``s3mount sum``: digests of objects and files, as md5sum writes and checks them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from s3mount.cli import output
from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_options

if TYPE_CHECKING:
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Done, Session
    from s3mount.bulk.selecting import Item
    from s3mount.config import StoreConfig

AT_ONCE = 4
"""Objects or files that are read at the same time: a digest is work for a processor."""


@click.command("sum", short_help="Digests of objects and files.", epilog=bulk.EXIT_HINT)
@click.argument("places", type=PLACE, metavar="[S3URL|PATH]...", nargs=-1)
@click.option(
    "-a",
    "--algorithm",
    metavar="NAME",
    help="md5, sha256 and what else Python's hashlib has; crc64nvme, crc32c, crc32.  [default: md5]",
)
@click.option(
    "-c",
    "--check",
    metavar="FILE",
    help="Check the digests that FILE holds (- for standard input).",
)
@bulk.selection_options
@bulk.report_options
@store_options
def sums(places: tuple[str, ...], **given: Any) -> int:
    """Write the digest of each object and file, in md5sum's format; of a folder those of all that lies in it.

    With -c whatever differs from what FILE says, or is not there, is told, and the exit status is 1.
    """
    from s3mount.bulk.digesting import new_hash

    if bool(places) == bool(given["check"]):
        raise click.UsageError("either name what to read, or a FILE with -c")
    new_hash(given["algorithm"] or "md5")
    if given["check"]:
        return bulk.perform("sum", given, _Checking(given).main)
    return bulk.perform("sum", given, _Summing(places, given).main, has_summary=False)


class _Summing:
    """Digests of what is named, in that order."""

    def __init__(self, places: tuple[str, ...], given: dict[str, Any]) -> None:
        self._places = places
        self._given = given
        self._algorithm = (given["algorithm"] or "md5").lower()

    async def main(self, session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk import selecting
        from s3mount.bulk.location import LocalPath, S3Location, parse
        from s3mount.bulk.running import refusing
        from s3mount.errors import SourceError

        chosen = bulk.path_filter(self._given)
        for text in self._places:
            place = parse(text, raw=self._given["raw"])

            async def show(items: list[Item]) -> None:
                for item in items:
                    await self._tell(session, report, config, item)

            if isinstance(place, S3Location):
                store = await session.store(config, place.bucket)
                if place.is_pattern or place.is_folder:
                    await selecting.objects(store, place, show, takes=chosen)
                else:
                    await show([await selecting.one_object(store, place)])
            elif not isinstance(place, LocalPath):
                raise SourceError(
                    f"{text} cannot be read twice: sum takes files and s3://BUCKET/KEY"
                )
            elif os.path.isdir(place.path):
                files = selecting.walk(place.path, refusing(report, "sum"), takes=chosen)
                await selecting.local_files(files, show)
            else:
                await show([selecting.Item(place.path, place.path)])

    async def _tell(
        self, session: Session, report: Report, config: StoreConfig, item: Item
    ) -> None:
        from s3mount.bulk.digesting import sum_line
        from s3mount.errors import S3MountError

        try:
            digest = await _digest(session, config, item, self._algorithm)
        except S3MountError as error:
            report.fail("sum", item.url, None, error)
            return
        report.counts.objects += 1
        if self._given["as_json"]:
            output.write_json({"url": item.url, "algorithm": self._algorithm, "digest": digest})
        else:
            output.write_line(sum_line(digest, item.url))


async def _digest(session: Session, config: StoreConfig, item: Item, algorithm: str) -> str:
    from s3mount.bulk.digesting import digest_of_file, digest_of_object
    from s3mount.bulk.location import parse_s3

    if not item.key:
        return (await digest_of_file(item.url, algorithm)).hex()
    store = await session.store(config, parse_s3(item.url, raw=True).bucket)
    return (await digest_of_object(store, item.ref, algorithm)).hex()


class _Checking:
    """The digests that a file holds, held against what is there."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given

    async def main(self, session: Session, report: Report, config: StoreConfig) -> None:
        import trio

        from s3mount.bulk.running import Performer, Task, for_each
        from s3mount.bulk.selecting import streamed

        performer = Performer(report)

        async def produce(send: Any) -> None:
            lines = self._lines()
            while (line := await trio.to_thread.run_sync(next, lines, None)) is not None:
                report.expect(1)
                await send(line)
            report.all_known()

        async def do(line: str) -> None:
            name = line.partition(" ")[2][1:]

            async def work() -> Done:
                return await self._check(session, config, line)

            await performer.perform(Task("sum", name or line, None, work))

        async with streamed(produce) as lines:
            await for_each(lines, do, workers=AT_ONCE)

    def _lines(self) -> Iterator[str]:
        from s3mount.bulk.selecting import file_names

        return file_names(self._given["check"], is_nul_separated=False)

    async def _check(self, session: Session, config: StoreConfig, line: str) -> Done:
        from s3mount.bulk.digesting import BY_LENGTH, parse_sum_line
        from s3mount.bulk.location import parse_s3
        from s3mount.bulk.running import Done
        from s3mount.bulk.selecting import Item, one_object
        from s3mount.errors import ChecksumError

        digest, name = parse_sum_line(line)
        algorithm = self._given["algorithm"] or BY_LENGTH.get(len(digest))
        if algorithm is None:
            raise ChecksumError(f"{digest} has {len(digest)} digits: name its algorithm with -a")
        item = Item(name, name)
        if name.startswith("s3://"):
            place = parse_s3(name, raw=True)
            item = await one_object(await session.store(config, place.bucket), place)
        found = await _digest(session, config, item, algorithm)
        if found != digest:
            raise ChecksumError(f"its {algorithm} is {found}, not {digest}")
        return Done()

"""``s3mount upload`` and ``s3mount download``: one file, in s3am's words and with its exit statuses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from s3mount.cli.completing import PLACE
from s3mount.cli.objects.bulk import EXIT_HINT, perform
from s3mount.cli.objects.transfer_options import (
    EXISTS,
    how_of,
    new_objects_of,
    single_options,
    source_config_of,
    words_of,
)

if TYPE_CHECKING:
    from s3mount.bulk.location import LocalPath, S3Location
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.config import StoreConfig

_RESUME = click.option(
    "--resume", is_flag=True, help="Go on with what is unfinished; also done when not said."
)
_SLOTS = click.IntRange(1, 1000)


@click.command("upload", short_help="Upload one file or URL, in parts.", epilog=EXIT_HINT)
@click.argument("source", type=PLACE, metavar="SOURCE")
@click.argument("destination", type=PLACE, metavar="S3URL")
@_RESUME
@click.option(
    "--exists",
    type=EXISTS,
    default="fail",
    show_default=True,
    help="What becomes of an object that is there.",
)
@click.option("--upload-slots", type=_SLOTS, default=16, help="Parts on their way to S3 at once.")
@click.option(
    "--download-slots", type=_SLOTS, default=16, help="Ranges of the source on their way at once."
)
@single_options
@click.pass_context
def upload(ctx: click.Context, /, source: str, destination: str, **given: Any) -> int:
    """Upload SOURCE (a path, an http, https, ftp or file URL, or an object) to S3URL.

    A S3URL that ends with a slash, or names a bucket alone, takes the source's name. An unfinished upload of the key is
    gone on with; where it is of something else the exit status is 4, and 13 where there are several.
    """
    from s3mount.bulk.location import parse_s3

    _check(given)
    to = parse_s3(destination, raw=True)
    return _copy(ctx, source, to, given, slots=given["upload_slots"], exists=given["exists"])


@click.command("download", short_help="Download one object, in ranges.", epilog=EXIT_HINT)
@click.argument("source", type=PLACE, metavar="S3URL")
@click.argument("destination", type=PLACE, metavar="FILE")
@_RESUME
@click.option(
    "--file-exists",
    type=EXISTS,
    default="fail",
    show_default=True,
    help="What becomes of a file that is there.",
)
@click.option(
    "--download-exists",
    type=click.Choice(["resume", "discard"]),
    default="resume",
    show_default=True,
    help="What becomes of an unfinished download; --force discards it.",
)
@click.option("--download-slots", type=_SLOTS, default=16, help="Ranges on their way at once.")
@single_options
@click.pass_context
def download(ctx: click.Context, /, source: str, destination: str, **given: Any) -> int:
    """Download S3URL, or an http, https or ftp URL, to FILE, or into it where it is a folder or ends with a slash.

    What is unfinished lies in .NAME.partial beside it.
    """
    from s3mount.bulk.location import LocalPath, RemoteUrl, parse, parse_s3
    from s3mount.errors import DestinationError

    _check(given)
    if not isinstance(parse(source, raw=True), RemoteUrl):
        parse_s3(source)
    to = parse(destination)
    if not isinstance(to, LocalPath):
        raise DestinationError(f"{destination}: not a local file")
    if os.path.basename(to.path).endswith((".partial", ".progress")):
        raise DestinationError(f"{destination}: a name that unfinished downloads have")
    given["force"] |= given["download_exists"] == "discard"
    slots = given["download_slots"]
    return _copy(ctx, source, to, given, slots=slots, file_exists=given["file_exists"])


def _check(given: dict[str, Any]) -> None:
    if given["resume"] and given["force"]:
        raise click.UsageError("--resume and --force contradict each other")


def _copy(
    ctx: click.Context,
    source: str,
    to: S3Location | LocalPath,
    given: dict[str, Any],
    *,
    slots: int,
    exists: Any = "overwrite",
    file_exists: Any = "overwrite",
) -> int:
    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk.copying import Chosen, Copying
        from s3mount.bulk.location import parse
        from s3mount.bulk.transfers import Transfers
        from s3mount.cli import output

        session.slots.total_tokens = slots
        how = how_of(
            given,
            is_strict=True,
            exists=exists,
            file_exists=file_exists,
            source_slots=given["download_slots"],
        )
        transfers = Transfers(
            session, report, config, how, source_config=source_config_of(given, config)
        )
        copying = Copying(
            ctx.info_name or "",
            transfers,
            report,
            to,
            Chosen(version_id=given["version_id"]),
            words=words_of(ctx),
            write=output.write_bytes,
        )
        await copying.run([parse(source, raw=True)])

    return perform(ctx.info_name or "", given, main, new_objects=new_objects_of(given))

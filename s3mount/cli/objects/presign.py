"""``s3mount presign``: a URL by which whoever has it may read or write one object for a while."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_config, store_options
from s3mount.cli.param_types import seconds


@click.command(
    "presign", short_help="A URL that others may use for a while.", epilog=bulk.EXIT_HINT
)
@click.argument("place", type=PLACE, metavar="S3URL")
@click.option(
    "--expires",
    type=seconds,
    default="1h",
    metavar="TIME",
    help="How long it is good for: 15m, 7d at most.  [default: 1h]",
)
@click.option(
    "--method",
    type=click.Choice(("GET", "PUT")),
    default="GET",
    help="What it allows.  [default: GET]",
)
@click.option("--version-id", metavar="ID", help="Of this version.")
@store_options
def presign(place: str, **given: Any) -> int:
    """Print a URL by which whoever has it may GET or PUT the object, with your rights and no credentials.

    Nothing is asked of the store: whether the object is there shows when the URL is used.
    """
    from s3mount.s3.account import PRESIGNED_S_MAX, presigned_url

    location = bulk.s3_location(place, raw=True, command="presign")
    if location.is_folder:
        raise click.UsageError(f"{location.url} is a folder: a URL is of one object")
    expires_s = int(given["expires"])
    if not 1 <= expires_s <= PRESIGNED_S_MAX:
        raise click.UsageError("--expires is from 1s to 7d")
    config = msgspec.structs.replace(store_config(given), bucket=location.bucket)
    if not config.sign_requests:
        raise click.UsageError("--no-sign-request leaves nothing to sign with")
    url = presigned_url(
        config,
        location.key,
        method=given["method"],
        expires_s=expires_s,
        version_id=given["version_id"],
    )
    click.echo(url)
    return 0

"""``s3mount cancel``: unfinished uploads, aborted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.options import store_options
from s3mount.cli.param_types import seconds

if TYPE_CHECKING:
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Done, Session
    from s3mount.config import StoreConfig
    from s3mount.refs import UploadInfo

AT_ONCE = 16


@click.command("cancel", short_help="Abort unfinished uploads.", epilog=bulk.EXIT_HINT)
@click.argument("place", type=PLACE, metavar="S3URL")
@click.option("--prefix", "is_prefix", is_flag=True, help="Of all keys that begin so.")
@click.option(
    "--older-than", type=seconds, metavar="TIME", help="Only those begun longer ago: 12h, 7d."
)
@bulk.raw_option
@bulk.dry_run_option
@bulk.report_options
@store_options
def cancel(place: str, **given: Any) -> int:
    """Abort the unfinished uploads of exactly the key in S3URL; of all below it, if it ends with a slash.

    Their parts are paid for until then, and no list of objects shows them.
    """
    location = bulk.s3_location(place, raw=given["raw"] or given["is_prefix"], command="cancel")
    if location.is_everything and not given["is_prefix"] and not place.endswith("/"):
        raise click.UsageError(
            f"{location.url} is the whole bucket: to cancel all uploads in it, end it with a slash"
        )
    before_ns = time.time_ns()
    if given["older_than"] is not None:
        before_ns -= int(given["older_than"] * 1e9)

    def is_meant(upload: UploadInfo) -> bool:
        if given["older_than"] is not None and upload.initiated_ns > before_ns:
            return False
        return given["is_prefix"] or location.matches(upload.key)

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        import trio

        from s3mount.bulk.running import Done, Performer, Task
        from s3mount.tasks import in_parallel

        store = await session.store(config, location.bucket)
        uploads = [each for each in await store.list_uploads(location.beginning) if is_meant(each)]
        report.expect(len(uploads))
        report.all_known()
        performer = Performer(report)

        async def abort(upload: UploadInfo) -> None:
            async def work() -> Done:
                await store.abort_multipart(upload.key, upload.upload_id)
                return Done()

            url = f"s3://{location.bucket}/{upload.key}"
            await performer.perform(Task("cancel", url, None, work, store=store))

        await in_parallel(trio.CapacityLimiter(AT_ONCE), uploads, abort)

    return bulk.perform("cancel", given, main)

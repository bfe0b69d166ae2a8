"""``s3mount sync``: one place made to hold what another holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from s3mount.cli.completing import PLACE
from s3mount.cli.objects import bulk
from s3mount.cli.objects.transfer_options import (
    how_of,
    new_objects_of,
    single_options,
    source_config_of,
)
from s3mount.cli.options import absolute, option
from s3mount.config import default_cache_dir

if TYPE_CHECKING:
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.config import StoreConfig


@click.command("sync", short_help="Make a folder hold what another holds.", epilog=bulk.EXIT_HINT)
@click.argument("source", type=PLACE, metavar="SOURCE")
@click.argument("destination", type=PLACE, metavar="DESTINATION")
@click.option("--size-only", is_flag=True, help="What has the same size is the same.")
@click.option(
    "--checksum", is_flag=True, help="Compare bytes, by ETags and checksums: no object is read."
)
@click.option("--no-clobber", is_flag=True, help="Never replace what is there.")
@click.option("--update", is_flag=True, help="Do not replace what is as new, or newer.")
@click.option("--delete", is_flag=True, help="Then delete what SOURCE does not have.")
@click.option(
    "--max-delete",
    type=click.IntRange(0),
    metavar="N",
    help="Delete nothing if there is more to delete.",
)
@bulk.selection_options
@option("--cache-dir", type=click.Path(), help="Where to remember what was found to be the same.")
@bulk.dry_run_option
@single_options
@click.pass_context
def sync(context: click.Context, /, source: str, destination: str, **given: Any) -> int:
    """Make DESTINATION hold what lies in SOURCE: from a folder to S3, from S3, or within it.

    What has another size or time of change is copied. The time is kept with each object; where it is not, as
    other tools put it, an object that is younger than its file is taken to be the same. What is excluded is
    neither copied nor deleted. Where SOURCE is a manifest (m.csv), this is s3mount checkout.
    """
    from s3mount.cli.manifests.at_option import is_manifest

    if is_manifest(source, is_forced=False):
        return _checkout(context, source, destination)
    if sum(map(bool, (given["size_only"], given["checksum"], given["no_clobber"]))) > 1:
        raise click.UsageError("--size-only, --checksum and --no-clobber contradict each other")
    if given["version_id"]:
        raise click.UsageError("--version-id is for one object: s3mount cp")
    if given["max_delete"] is not None and not given["delete"]:
        raise click.UsageError("--max-delete is of --delete")
    chosen = bulk.path_filter(given)

    async def main(session: Session, report: Report, config: StoreConfig) -> None:
        from s3mount.bulk.location import LocalPath, S3Location, parse
        from s3mount.bulk.matching import Side
        from s3mount.bulk.running import refusing
        from s3mount.bulk.sync_memory import SyncMemory
        from s3mount.bulk.syncing import Rules, Sync
        from s3mount.bulk.transfers import Transfers
        from s3mount.errors import UsageError

        source_config = source_config_of(given, config)
        left = (await Side.of(session, source_config, parse(source, raw=given["raw"]))).as_folder()
        right = (await Side.of(session, config, parse(destination, raw=True))).as_folder()
        if left.store is None and right.store is None:
            raise UsageError("neither is in S3: rsync does that")
        if given["delete"] and isinstance(left.place, S3Location) and left.place.is_pattern:
            raise UsageError(
                "--delete needs a folder as SOURCE, or it would delete what does not fit: choose by --include"
            )
        local = next(
            (side.place.path for side in (left, right) if isinstance(side.place, LocalPath)), ""
        )
        remote = right.place.url if left.store is None else left.place.url
        rules = Rules(
            size_only=given["size_only"],
            checksum=given["checksum"],
            no_clobber=given["no_clobber"],
            update=given["update"],
            delete=given["delete"],
            deletes_max=given["max_delete"],
        )
        cache = Path(absolute(given["cache_dir"]) or default_cache_dir())
        memory = SyncMemory(cache, local, f"{config.endpoint_url or 'aws'} {remote}")
        # What is made meanwhile by others is not replaced either.
        exists: Literal["overwrite", "skip"] = "skip" if given["no_clobber"] else "overwrite"
        how = how_of(given, exists=exists, file_exists=exists)
        transfers = Transfers(session, report, config, how, source_config=source_config)
        try:
            await Sync(
                left,
                right,
                rules,
                transfers,
                report,
                memory,
                takes=chosen,
                refuse=refusing(report, "sync"),
            ).run()
        finally:
            memory.close()

    return bulk.perform("sync", given, main, new_objects=new_objects_of(given))


def _checkout(context: click.Context, manifest: str, folder: str) -> int:
    """The same by ``s3mount checkout``, which knows manifests. Raises click.UsageError for what it does not take."""
    from click.core import ParameterSource

    from s3mount.cli.manifests.checkout import checkout

    own = {parameter.name: parameter for parameter in checkout.params}
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if not isinstance(parameter, click.Option) or (
            context.get_parameter_source(name) is not ParameterSource.COMMANDLINE
        ):
            continue
        spelt = max(parameter.opts, key=len)
        if name not in own:
            raise click.UsageError(
                f"a manifest says which versions there are: {spelt} means nothing then"
            )
        value = context.params[name]
        for each in value if parameter.multiple else (value,):
            words += [spelt] if parameter.is_flag else [spelt, str(each)]
    result: int = checkout.main(args=[*words, "--", manifest, folder], standalone_mode=False)
    return result

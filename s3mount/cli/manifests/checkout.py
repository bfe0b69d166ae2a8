"""``s3mount checkout``: the versions that a manifest names, as files in a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s3mount.cli.options import absolute, option, store_config, store_options
from s3mount.config import default_cache_dir

if TYPE_CHECKING:
    from s3mount.checkout.summary import Progress, Summary
    from s3mount.cli.manifests.status_line import StatusLine


@click.command(
    "checkout",
    short_help="Make a folder hold the versions that a manifest names.",
    epilog="PATTERN means what it does in a .gitignore: '*.tmp' or 'build' in any folder, with all that is in "
    "it, '/build' and 'a/b' from the top, 'logs/' only a folder; '{a,b}' is either; or it is a regular expression: "
    "'re:[0-9]+[.]csv$'. What is excluded is neither written nor deleted.",
)
@click.argument("manifest")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--at", metavar="TIME", help="MANIFEST is a bucket, which is taken as it was then.")
@click.option("--delete", is_flag=True, help="Remove from DIR what the manifest does not have.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Only these; repeatable.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="None of these; repeatable.")
@click.option(
    "--keep-changed", is_flag=True, help="Leave what was edited in DIR since its last checkout."
)
@click.option(
    "--overwrite-changed",
    is_flag=True,
    help="Replace it.  [default: keep it beside the version, as NAME.orig]",
)
@click.option(
    "--accept-unproven",
    is_flag=True,
    help="What neither ETag nor checksum proves is not fetched again the next time.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option("--bucket", help="The bucket, for a manifest that names none.")
@click.option("--json", "as_json", is_flag=True, help="The summary for programs.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what failed.")
@option("--cache-dir", type=click.Path(), help="Where to remember what was hashed.")
@store_options
def checkout(manifest: str, folder: Path, **given: Any) -> int:
    """Make DIR hold exactly the versions that MANIFEST names, as files.

    What is there and right is left alone: known by size, times and the digest remembered of it, else by its
    ETag or checksum. Each file appears whole; interrupted or killed, the next run does the rest. What was
    edited in DIR since it was checked out is kept beside the version, as NAME.orig.

    MANIFEST is a file, - for standard input, or s3://BUCKET/KEY; with --at it is BUCKET or s3://BUCKET/PREFIX.

    Exit status 0: all of it is there. 1: something is not, which is named; the rest is.
    """
    from s3mount.app.checkout import check_out_manifest
    from s3mount.checkout.options import Changed, Options

    if given["keep_changed"] and given["overwrite_changed"]:
        raise click.UsageError("--keep-changed and --overwrite-changed contradict each other")
    options = Options(
        cache_dir=Path(absolute(given["cache_dir"]) or default_cache_dir()),
        include=given["include"],
        exclude=given["exclude"],
        delete=given["delete"],
        is_rehearsal=given["dry_run"],
        accept_unproven=given["accept_unproven"],
        changed=Changed.KEEP
        if given["keep_changed"]
        else Changed.OVERWRITE
        if given["overwrite_changed"]
        else Changed.ASIDE,
    )
    at_ns = None
    if given["at"] is not None:
        from s3mount.cli.manifests.at_option import is_manifest
        from s3mount.cli.param_types import parse_bucket
        from s3mount.manifest.times import parse_time

        if manifest == "-" or is_manifest(manifest, is_forced=False):
            raise click.UsageError("--at is for a bucket; a manifest says itself what it shows")
        at_ns = parse_time(given["at"], time.time_ns())
        manifest = "s3://{}/{}".format(*parse_bucket(manifest))
    shown = _Shown(quiet=given["quiet"] or given["as_json"])
    try:
        summary = check_out_manifest(
            manifest,
            given["bucket"],
            folder,
            store_config(given),
            options,
            watch=shown.watch,
            tell=shown.tell,
            warn=shown.warn,
            at_ns=at_ns,
        )
    finally:
        shown.clear()
    _report(summary, folder, as_json=given["as_json"], quiet=given["quiet"])
    return 0 if summary.is_complete else 1


class _Shown:
    """The progress line, and the lines of a rehearsal; what words them is loaded when there are any."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._status_line: StatusLine | None = None
        self._began_s = time.monotonic()

    def watch(self, progress: Progress) -> None:
        if self._quiet:
            return
        from s3mount.cli.manifests.status_line import StatusLine
        from s3mount.status import size_text

        if self._status_line is None:
            self._status_line = StatusLine()
        rate = progress.size_bytes / max(time.monotonic() - self._began_s, 0.001)
        done, text = progress.size_bytes, size_text(progress.size_bytes)
        if progress.is_planned:
            total = progress.size_bytes_total
            share = f"{min(100 * done // total, 100)}% " if total else ""
            self._status_line(
                f"downloading: {share}{progress.files:,} of {progress.files_total:,} files, "
                f"{text} of {size_text(total)}, {size_text(rate)}/s"
            )
        else:
            self._status_line(f"downloading: {progress.files:,} files, {text}, {size_text(rate)}/s")

    def tell(self, action: str, path: str, size_bytes: int) -> None:
        if not self._quiet:
            edited = " (edited here)" if action in ("keep aside", "leave") else ""
            click.echo(f"would {action} {path}{edited}")

    def warn(self, line: str) -> None:
        self.clear()
        click.echo(f"s3mount: {line}", err=True)

    def clear(self) -> None:
        if self._status_line is not None:
            self._status_line.clear()


def _report(summary: Summary, folder: Path, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps({"folder": str(folder), **summary.to_json()}, indent=2))
    elif not quiet:
        click.echo(_in_words(summary))
    if as_json:
        return
    for line in () if quiet or summary.is_rehearsal else summary.edited_lines():
        click.echo(f"s3mount: {line}", err=True)
    for line in summary.failure_lines():
        click.echo(f"s3mount: {line}", err=True)
    if summary.stopped:
        click.echo(f"s3mount: {summary.stopped}; run it again to go on", err=True)


def _in_words(summary: Summary) -> str:
    from s3mount.status import size_text

    would = "would be " if summary.is_rehearsal else ""
    parts = [
        f"{summary.files:,} files",
        f"{summary.right:,} right already",
        f"{summary.downloaded:,} {would}downloaded ({size_text(summary.downloaded_bytes)})",
    ]
    if summary.unproven:
        parts.append(f"{summary.unproven:,} not proven by any digest")
    if summary.deleted:
        parts.append(f"{summary.deleted:,} {would}deleted")
    if summary.edited:
        parts.append(f"{summary.edited:,} edited here")
    if summary.left_out:
        parts.append(f"{summary.left_out:,} left out")
    if summary.failed:
        parts.append(f"{summary.failed:,} failed")
    return f"{', '.join(parts)}; {summary.seconds:.1f} s"

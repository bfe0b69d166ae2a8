"""``s3mount manifest``: lists of versions, made, compared, checked and restored."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from s3mount import logs
from s3mount.cli.manifests.status_line import StatusLine
from s3mount.cli.manifests.workers_options import workers_of, workers_options
from s3mount.cli.options import store_config, store_options
from s3mount.cli.param_types import parse_bucket
from s3mount.errors import UsageError
from s3mount.manifest.times import format_time, parse_time
from s3mount.status import size_text

if TYPE_CHECKING:
    from s3mount.app.manifests import Access
    from s3mount.manifest.comparing import Difference
    from s3mount.manifest.model import Entry
    from s3mount.manifest.restoring import Plan, Step
    from s3mount.manifest.verifying import Problem

FORMATS = ("csv", "legacy", "batch", "parquet")
_SIGNS = {"added": "+", "removed": "-", "changed": "!"}


@click.group("manifest", short_help="Lists of versions: make, compare, check, restore.")
def manifest() -> None:
    """Lists of the versions that a bucket held at one time, as files.

    docs/MANIFESTS.md specifies the formats. A manifest may be a local file, - for standard input, or
    s3://BUCKET/KEY.
    """


def bucket_option(command: Any) -> Any:
    """``--bucket``, for manifests that name none."""
    return click.option(
        "--bucket", metavar="BUCKET", help="Of manifests that name none (two columns)."
    )(command)


def json_option(command: Any) -> Any:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Tell the outcome as JSON.")(
        command
    )


@manifest.command("create")
@click.argument("bucket")
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="FILE",
    help="Where to: a file, s3://BUCKET/KEY, or - for standard output.  [default: -]",
)
@click.option(
    "--at",
    metavar="TIME",
    help="As of when: 2026-10-01T12:00Z, 2026-10-01 (UTC), -3d.  [default: now]",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    default="csv",
    help="[default: csv]",
)
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@store_options
def create(**given: Any) -> int:
    """List every key of BUCKET (or s3://BUCKET/PREFIX) with the version that was current at a time.

    The same time in the past gives the same bytes, whoever writes meanwhile; their SHA-256 is the
    manifest's identity.
    """
    from s3mount.app import manifests

    bucket, prefix = parse_bucket(given["bucket"])
    at_ns = None if given["at"] is None else parse_time(given["at"], time.time_ns())
    output = given["output"]
    if output == "-" and given["output_format"] == "parquet" and sys.stdout.isatty():
        raise click.UsageError("Parquet is no text for a terminal: give a file with -o")
    with _status_line(given["quiet"]) as status_line:
        made = manifests.create(
            _access(given), bucket, prefix, at_ns, output, given["output_format"], status_line
        )
    about = {
        "at": format_time(made.at_ns),
        "count": made.keys,
        "size_bytes": made.size_bytes,
        "sha256": made.digest,
        "lifecycle": made.rule or None,
    }
    if given["as_json"]:
        _echo_json(about, err=output == "-")
    elif not given["quiet"] or output != "-":
        click.echo(
            f"{made.keys:,} keys, {size_text(made.size_bytes)}, as of {about['at']}, sha256 {made.digest}",
            err=True,
        )
    if made.rule and not given["quiet"]:
        click.echo(
            f"s3mount: warning: {_lost_by_rule(made.rule, is_past=at_ns is not None)}", err=True
        )
    return 0


def _lost_by_rule(rule: str, *, is_past: bool) -> str:
    if is_past:
        return (
            f"{rule}: what was destroyed since then is not in this manifest, older content or nothing stands in its "
            "place; a manifest that is made in time is exact"
        )
    return f"{rule}: versions that this manifest names will be gone then; s3mount manifest verify tells which"


@manifest.command("show")
@click.argument("source", metavar="MANIFEST")
@bucket_option
@json_option
@store_options
def show(**given: Any) -> int:
    """Tell what MANIFEST holds: keys, bytes, span of time, and its SHA-256, which is its identity."""
    from s3mount.app import manifests

    found = manifests.show(_access(given), given["source"])
    summary = found.summary
    first, last = summary.first_modified_ns, summary.last_modified_ns
    about = {
        "format": found.format,
        "sha256": found.digest,
        "count": summary.count,
        "size_bytes": summary.size_bytes,
        "without_size": summary.without_size,
        "without_version": summary.without_version,
        "first_modified": None if first is None else format_time(first),
        "last_modified": None if last is None else format_time(last),
        "buckets": summary.buckets,
        "in_order": summary.is_in_order,
        "scope": [str(scope) for scope in found.scopes.found],
        "changed": found.scopes.is_changed,
    }
    if given["as_json"]:
        _echo_json(about)
        return 0
    click.echo(f"format    {found.format}")
    click.echo(f"sha256    {found.digest}")
    click.echo(f"keys      {summary.count:,}")
    click.echo(
        f"bytes     {size_text(summary.size_bytes)}{_unknown(summary.without_size, 'sizes')}"
    )
    click.echo(f"versions  {summary.count - summary.without_version:,} named")
    if first is not None and last is not None:
        click.echo(f"modified  {format_time(first)} to {format_time(last)}")
    for bucket, count in sorted(summary.buckets.items()):
        click.echo(f"bucket    {bucket}: {count:,} keys")
    for scope in found.scopes.found:
        what = "all keys" if scope.is_whole else "what one mount has put"
        place = _quoted(f"s3://{scope.bucket}/{scope.prefix}")
        click.echo(f"lists     {what} below {place} as of {format_time(scope.at_ns)}")
    if found.scopes.is_changed:
        click.echo("changed   since it was written: it lists nothing in particular")
    if not summary.is_in_order:
        click.echo("order     none; manifests that s3mount writes are sorted by key")
    return 0


@manifest.command("diff")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option(
    "--at", metavar="TIME", help="A bucket among them as it was then; of two buckets the first."
)
@click.option(
    "--content", is_flag=True, help="Versions of the same size and ETag count as the same."
)
@bucket_option
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Only the exit status.")
@store_options
def diff(**given: Any) -> int:
    """Tell which keys differ from manifest A to manifest B: + added, - removed, ! changed.

    Either may be a live bucket: s3://BUCKET, or s3://BUCKET/PREFIX/ with its last slash.
    Exit status 0: none differs. 1: some do. 2: trouble, nothing is known.
    """
    with _trouble_is(2):
        return _diff(given)


def _diff(given: dict[str, Any]) -> int:
    from s3mount.app import manifests
    from s3mount.manifest.location import is_live_bucket

    if given["before"] == "-" and given["after"] == "-":
        raise click.UsageError("only one of the two can come from standard input")
    at_ns = None if given["at"] is None else parse_time(given["at"], time.time_ns())
    if at_ns is not None and not any(is_live_bucket(given[side]) for side in ("before", "after")):
        raise click.UsageError("--at is for a bucket: s3://BUCKET, or s3://BUCKET/PREFIX/")
    counts = {"added": 0, "removed": 0, "changed": 0}
    quiet = given["quiet"]

    def report(difference: Difference) -> None:
        counts[difference.kind] += 1
        if quiet:
            return
        if given["as_json"]:
            _echo_json(_difference(difference))
        else:
            click.echo(f"{_SIGNS[difference.kind]} {_name(difference.entry)}")

    with _status_line(quiet) as status_line:
        manifests.diff(
            _access(given),
            given["before"],
            given["after"],
            report,
            status_line,
            by_content=given["content"],
            at_ns=at_ns,
        )
    if given["as_json"]:
        _echo_json(counts)
    elif not quiet:
        text = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        click.echo(text if any(counts.values()) else "no difference", err=True)
    return 1 if any(counts.values()) else 0


@manifest.command("verify")
@click.argument("source", metavar="MANIFEST")
@click.option(
    "--content", is_flag=True, help="Read every byte and compare with ETag and checksums."
)
@workers_options
@bucket_option
@json_option
@store_options
def verify(**given: Any) -> int:
    """Check that every version of MANIFEST is still there, with its size and ETag.

    With --content a version whose bytes no ETag of MD5s and no checksum tells is not proven: --json names it, and it is
    not counted as wrong. With --workers other processes ask and read.
    Exit status 0: none is wrong. 1: some are, or could not be checked; they are named.
    """
    from s3mount.app import manifests

    as_json, content = given["as_json"], given["content"]
    with _status_line(False) as status_line, workers_of(given) as workers:

        def report(problem: Problem) -> None:
            if as_json:
                what = "unproven" if problem.is_unproven else "problem"
                _echo_json({**_version(problem.entry), what: problem.why})
            elif not problem.is_unproven:
                status_line.clear()
                click.echo(f"{_name(problem.entry)} {problem.why}")

        found = manifests.verify(
            _access(given), given["source"], report, status_line, content=content, workers=workers
        )
    if as_json:
        _echo_json(msgspec.to_builtins(found))
    else:
        text = f"{found.checked:,} versions checked, {found.problems - found.unread:,} wrong"
        if found.unread:
            text += f", {found.unread:,} could not be read"
        if found.unproven:
            text += (
                f", {found.unproven:,} not proven (their store tells no digest; --json names them)"
            )
        if content:
            text += f", {size_text(found.bytes_read)} read"
        click.echo(text, err=True)
        if found.stopped:
            click.echo(f"s3mount: the rest was not checked: {found.stopped}", err=True)
    return 1 if found.problems or found.stopped else 0


@manifest.command("restore")
@click.argument("source", metavar="MANIFEST")
@click.option(
    "--prefix",
    metavar="FOLDER",
    help="Only keys in this folder; '' for the whole bucket.  [default: what MANIFEST lists]",
)
@click.option(
    "--delete",
    is_flag=True,
    help="Delete keys there that MANIFEST does not name: of all that it says it lists, or in --prefix.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@bucket_option
@json_option
@store_options
def restore(**given: Any) -> int:
    """Bring the live bucket back to MANIFEST: copies of old versions inside S3, and delete markers.

    Nothing is lost: what is there now stays as older versions. Asks first. Keys that MANIFEST does not name
    stay, unless --delete is given.
    Exit status 0: the keys are as the manifest says. 1: some are not; what failed is named.
    """
    from s3mount.app import manifests

    dry_run, yes, as_json = given["dry_run"], given["yes"], given["as_json"]
    if not dry_run and not yes and not sys.stdin.isatty():
        raise UsageError(
            "restore asks first, and there is no terminal to ask on: give --yes or --dry-run"
        )
    status_line = StatusLine()

    def agree(plans: list[Plan]) -> bool:
        status_line.clear()
        show_plans(plans, with_steps=dry_run)
        if dry_run or not any(plan.steps for plan in plans):
            return False
        return yes or click.confirm("Restore this?", err=True)

    def report(step: Step, why: str) -> None:
        status_line.say(f"s3mount: {step.key}: {why}")

    with _status_line(False, status_line):
        done = manifests.restore(
            _access(given),
            given["source"],
            given["prefix"],
            agree,
            report,
            status_line,
            deletes=given["delete"],
        )
    progress = done.progress
    if as_json:
        _echo_json({"plan": done.counts, "done": done.is_done, **msgspec.to_builtins(progress)})
    elif done.is_done:
        click.echo(
            f"{progress.copied:,} keys restored ({size_text(progress.copied_bytes)} copied inside S3), "
            f"{progress.deleted:,} deleted, {progress.failed:,} failed",
            err=True,
        )
    if progress.stopped and not as_json:
        click.echo(f"s3mount: {progress.stopped}; run it again to go on", err=True)
    refused = not (dry_run or done.is_done) and bool(
        done.counts["copy"] + done.counts["look"] + done.counts["delete"]
    )
    failed = progress.failed or progress.stopped or done.counts["missing"] or refused
    return 1 if failed else 0


def show_plans(plans: list[Plan], *, with_steps: bool) -> None:
    """Tell on standard error what a restore would do; ``with_steps``: and to which keys, the first of them."""
    verbs = {"copy": "restore", "look": "compare", "delete": "delete", "missing": "missing"}
    for plan in plans:
        counts = plan.counts
        click.echo(
            f"s3://{plan.bucket}/{plan.prefix}: {counts['copy'] + counts['look']:,} keys to restore "
            f"({size_text(plan.copy_bytes)}), {counts['delete']:,} to delete, {counts['right']:,} right already, "
            f"{counts['missing']:,} whose version is gone",
            err=True,
        )
        if counts["other"]:
            click.echo(
                f"{counts['other']:,} more keys are there that the manifest does not name; they stay without --delete",
                err=True,
            )
        for key in plan.kept:
            click.echo(
                f"{_quoted(key)} holds this manifest and stays as it is, so that the restore can be repeated",
                err=True,
            )
        for step in plan.shown if with_steps else []:
            click.echo(f"{verbs[step.do]} {_quoted(step.key)} {step.version_id}".rstrip())
        more = plan.steps + counts["missing"] - len(plan.shown)
        if with_steps and more > 0:
            click.echo(f"... and {more:,} more")


@contextlib.contextmanager
def _trouble_is(status: int) -> Iterator[None]:
    """Whatever goes wrong ends the command with this exit status, and one line; but for an interruption."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except BrokenPipeError:
        # The reader of our output has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(status) from None
    except Exception as error:  # noqa: BLE001  what reaches it becomes one line
        message, _ = logs.explain(error, None)
        click.echo(f"s3mount: {message}", err=True)
        raise click.exceptions.Exit(status) from None


@contextlib.contextmanager
def _status_line(quiet: bool, status_line: StatusLine | None = None) -> Iterator[StatusLine]:
    """A line of progress, gone at the end; only what goes wrong is logged to the terminal."""
    if not logging.getLogger().handlers:
        logs.to_terminal("error")
    status_line = status_line or StatusLine(quiet=quiet)
    try:
        yield status_line
    finally:
        status_line.clear()


def _access(given: dict[str, Any]) -> Access:
    from s3mount.app.manifests import Access

    given_bucket = given.get("bucket") if "source" in given or "before" in given else None
    bucket = parse_bucket(given_bucket)[0] if given_bucket else None
    return Access(store_config(given), bucket)


def _echo_json(value: object, *, err: bool = False) -> None:
    click.echo(msgspec.json.encode(value).decode(), err=err)


def _quoted(key: str) -> str:
    """A key on one line, whatever it holds."""
    return key if key.isprintable() else ascii(key)


def _name(entry: Entry) -> str:
    version = f" {entry.version_id}" if entry.version_id else ""
    return f"s3://{entry.bucket}/{_quoted(entry.key)}{version}"


def _version(entry: Entry) -> dict[str, Any]:
    return {"bucket": entry.bucket, "key": entry.key, "version_id": entry.version_id}


def _difference(difference: Difference) -> dict[str, Any]:
    def told(entry: Entry | None) -> dict[str, Any] | None:
        if entry is None:
            return None
        moment = entry.last_modified_ns
        return {
            "version_id": entry.version_id,
            "size": entry.size,
            "etag": entry.etag,
            "last_modified": None if moment is None else format_time(moment),
        }

    entry = difference.entry
    return {
        "kind": difference.kind,
        "bucket": entry.bucket,
        "key": entry.key,
        "before": told(difference.before),
        "after": told(difference.after),
    }


def _unknown(count: int, what: str) -> str:
    return f" ({count:,} {what} are not known)" if count else ""

"""What the commands over many objects share: their options, a session, lines, progress, the exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
import msgspec

from s3mount.cli import output
from s3mount.cli.objects.perf import requests_told
from s3mount.cli.options import store_config
from s3mount.errors import S3MountError, SourceError, reason
from s3mount.names import normal_prefix

if TYPE_CHECKING:
    from s3mount.bulk.location import S3Location
    from s3mount.bulk.report import Report
    from s3mount.bulk.running import Session
    from s3mount.cli.objects.bulk_progress import Shown
    from s3mount.config import StoreConfig
    from s3mount.patterns import PathFilter
    from s3mount.refs import ObjectHeaders

F = TypeVar("F", bound=Callable[..., Any])

LEAST_PRIORITY = 19
EXIT_HINT = "Exit status: 0 done, 1 some failed, 2 wrong usage, 3 to 14 and 130: docs/TRANSFER.md."


def _added(command: F, options: tuple[Callable[[Any], Any], ...]) -> F:
    for add in reversed(options):
        command = add(command)
    return command


def report_options(command: F) -> F:
    """``--json`` and ``--quiet``."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="A line of JSON for each object."),
        click.option("-q", "--quiet", is_flag=True, help="Tell only what failed."),
    )
    return _added(command, options)


def perf_option(command: F) -> F:
    """``--perf``."""
    told = "A table of all requests at the end, on standard error."
    return click.option("--perf", is_flag=True, help=told)(command)


def dry_run_option(command: F) -> F:
    """``--dry-run``."""
    told = "Only tell what would be done, in lines that s3mount run takes."
    return click.option("-n", "--dry-run", is_flag=True, help=told)(command)


def raw_option(command: F) -> F:
    """``--raw``."""
    told = "* and ? in s3:// keys stand for themselves."
    return click.option("--raw", is_flag=True, help=told)(command)


def packs_option(command: F) -> F:
    """``--packs``."""
    told = "Members of the packs in s3://BUCKET/FOLDER/ are objects, too."
    return click.option("--packs", metavar="FOLDER", help=told)(command)


def selection_options(command: F) -> F:
    """``--raw``, and the options that choose among what is named."""
    options = (
        raw_option,
        click.option("--include", multiple=True, metavar="PATTERN", help="Only these; repeatable."),
        click.option(
            "--exclude", multiple=True, metavar="PATTERN", help="None of these; repeatable."
        ),
        click.option(
            "--exclude-from",
            multiple=True,
            metavar="FILE",
            help="None of the patterns in FILE, one a line; # begins a comment.",
        ),
    )
    return _added(command, options)


def names_options(command: F) -> F:
    """``--files-from`` and ``--files-from0``."""
    options = (
        click.option(
            "--files-from",
            metavar="FILE",
            help="The names that FILE holds (- for standard input), one a line, below the folder that is named.",
        ),
        click.option(
            "--files-from0", metavar="FILE", help="The same, with a NUL behind each name."
        ),
    )
    return _added(command, options)


def path_filter(given: dict[str, Any]) -> PathFilter:
    """What ``selection_options`` leave. Raises UsageError, SourceError."""
    from s3mount.bulk.selecting import pattern_lines
    from s3mount.patterns import PathFilter

    excluded = [*given["exclude"]]
    for path in given["exclude_from"]:
        excluded += pattern_lines(path)
    return PathFilter(given["include"], excluded)


def given_names(given: dict[str, Any]) -> Iterator[str] | None:
    """The names of ``names_options``, if they are given. Raises click.UsageError."""
    from s3mount.bulk.selecting import file_names

    plain, nul = given["files_from"], given["files_from0"]
    if plain and nul:
        raise click.UsageError("--files-from and --files-from0 contradict each other")
    if not plain and not nul:
        return None
    return file_names(plain or nul, is_nul_separated=bool(nul))


def s3_location(text: str, *, raw: bool, command: str) -> S3Location:
    """The place in S3 that an argument names; ``command`` takes no other. Raises LocationError."""
    from s3mount.bulk.location import parse_s3
    from s3mount.errors import LocationError

    if "://" not in text and os.path.exists(text):
        raise LocationError(
            f"s3mount {command} takes s3://BUCKET/KEY; {text} is a local path, for which {command} itself is there"
        )
    return parse_s3(text, raw=raw)


def nothing_there(location: S3Location) -> SourceError:
    """The error for a place where nothing lies that is meant."""
    what = "fits" if location.is_pattern else "lies below"
    return SourceError(f"nothing {what} {location.url}")


class Job(NamedTuple):
    """One command, parsed."""

    operation: str
    config: StoreConfig
    main: Callable[[Session, Report], Awaitable[None]]
    as_json: bool
    quiet: bool
    is_dry_run: bool
    has_summary: bool


_collected: ContextVar[list[Job] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting() -> Iterator[list[Job]]:
    """Within the block commands do not run, but are put into this list."""
    jobs: list[Job] = []
    token = _collected.set(jobs)
    try:
        yield jobs
    finally:
        _collected.reset(token)


def perform(
    operation: str,
    given: dict[str, Any],
    main: Callable[[Session, Report, StoreConfig], Awaitable[None]],
    *,
    has_summary: bool = True,
    new_objects: ObjectHeaders | None = None,
) -> int:
    """Run a command: its exit status. ``given`` are its options, among them the store's.

    Without ``has_summary`` standard output is the command's own.
    """
    with requests_told(given.get("perf", False) and _collected.get() is None):
        return _perform(operation, given, main, has_summary, new_objects)


def _perform(
    operation: str,
    given: dict[str, Any],
    main: Callable[[Session, Report, StoreConfig], Awaitable[None]],
    has_summary: bool,
    new_objects: ObjectHeaders | None,
) -> int:
    config = store_config(given)
    if given.get("packs"):
        packs = s3_location(given["packs"], raw=True, command=operation)
        folder = f"{packs.bucket}/{normal_prefix(packs.key)}"
        config = msgspec.structs.replace(config, packs_in=folder)
    if new_objects is not None:
        config = msgspec.structs.replace(config, new_objects=new_objects)
    job = Job(
        operation,
        config,
        lambda session, report: main(session, report, config),
        given.get("as_json", False),
        given.get("quiet", False),
        given.get("dry_run", False),
        has_summary,
    )
    collected = _collected.get()
    if collected is not None:
        collected.append(job)
        return 0
    return run(job)


def yield_if_asked(config: StoreConfig) -> None:
    """With ``--background`` this process is the last that gets a processor or the disk."""
    if config.background:
        os.setpriority(os.PRIO_PROCESS, 0, LEAST_PRIORITY)


def run(job: Job) -> int:
    """Run one command in a trio loop of its own; its exit status."""
    from s3mount import tasks
    from s3mount.bulk.report import exit_code_of
    from s3mount.bulk.running import open_session
    from s3mount.cli.objects.bulk_progress import Shown

    shown = Shown(is_quiet=job.quiet)
    report = new_report(job, shown)

    async def main() -> None:
        async with open_session() as session:
            await shown.around(report.counts, lambda: job.main(session, report))

    yield_if_asked(job.config)
    status = 0
    try:
        tasks.run(main)
    except output.ReaderGoneError:
        raise BrokenPipeError from None
    except S3MountError as error:
        shown.clear()
        output.complain(reason(error))
        status = exit_code_of(error)
    finally:
        shown.clear()
        if job.has_summary:
            tell_summary(report)
        sys.stdout.flush()
    return status or report.counts.exit_code


def new_report(job: Job, shown: Shown) -> Report:
    """The report of one command, which writes past the progress that is shown."""
    from s3mount.bulk.report import Report

    return Report(
        job.operation,
        write=shown.write,
        complain=shown.complain,
        as_json=job.as_json,
        quiet=job.quiet,
        is_dry_run=job.is_dry_run,
    )


def tell_summary(report: Report) -> None:
    """The sums of a command that ended, well or not."""
    from s3mount.status import size_text

    counts = report.counts
    if report.as_json:
        output.write_line(report.summary_line())
        return
    if report.quiet or counts.objects < 2:
        return
    parts = [f"{counts.objects:,} {'lines' if report.operation == 'run' else 'objects'}"]
    if counts.bytes:
        parts.append(size_text(counts.bytes))
    parts += [
        f"{n:,} {what}" for n, what in ((counts.skipped, "skipped"), (counts.failed, "failed")) if n
    ]
    dry = (
        "nothing was changed, as this was a dry run"
        if report.is_dry_run
        else f"{counts.seconds:.1f} s"
    )
    click.echo(f"s3mount: {report.operation}: {', '.join(parts)}; {dry}", err=True)

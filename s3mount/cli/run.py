"""``s3mount run``: many commands, one a line, in one process."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from s3mount.cli import output
from s3mount.cli.objects import bulk
from s3mount.cli.objects.perf import requests_told
from s3mount.cli.options import store_config, store_options
from s3mount.errors import S3MountError, SourceError, UsageError, reason

if TYPE_CHECKING:
    from s3mount.bulk.report import Counts, Report
    from s3mount.bulk.running import Session
    from s3mount.cli.objects.bulk_progress import Shown

RUNNABLE = (
    *("cp", "mv", "rm", "ls", "du", "cat", "sync", "cancel", "sum", "verify"),
    *("upload", "download"),
)
"""Commands that a line may hold, as far as there are such."""
LINES_MAX = 1100
"""A quoted key may hold so many newlines, and a few between words; more are a quote that was forgotten."""


class Line(NamedTuple):
    """One command. ``number`` is that of its first line."""

    number: int
    words: list[str]


@click.command("run", short_help="Run commands from a file, in one process.", epilog=bulk.EXIT_HINT)
@click.argument("source", metavar="FILE|-")
@click.option(
    "--numworkers",
    type=click.IntRange(1, 1024),
    default=16,
    metavar="N",
    help="Commands under way at once.  [default: 16]",
)
@bulk.dry_run_option
@bulk.report_options
@bulk.perf_option
@store_options
@click.pass_context
def run_lines(context: click.Context, /, source: str, numworkers: int, **given: Any) -> int:
    """Run the commands in FILE, one a line, without s3mount in front: rm s3://BUCKET/KEY.

    Quotes and backslashes are as a shell has them, a line that begins with # is a comment. They share one
    process and its connections and run side by side, in no order. Options here are those of every line,
    unless it says otherwise. A line that fails is told, the others go on, and the exit status is 1.
    """
    with requests_told(given["perf"]):
        return _run(_options_given(context), source, numworkers, given)


def _run(options: dict[str, Any], source: str, numworkers: int, given: dict[str, Any]) -> int:
    from s3mount import tasks
    from s3mount.bulk.running import for_each, open_session
    from s3mount.bulk.selecting import streamed
    from s3mount.cli.objects.bulk_progress import Shown

    shown = Shown(is_quiet=given["quiet"])
    runner = Runner(given, options, shown)

    async def main() -> None:
        async def work() -> None:
            async with open_session() as session, streamed(lines_of(source)) as lines:
                await for_each(lines, lambda line: runner.run(session, line), workers=numworkers)

        await shown.around(runner.counts, work)

    bulk.yield_if_asked(store_config(given))
    try:
        tasks.run(main)
    except output.ReaderGoneError:
        raise BrokenPipeError from None
    finally:
        shown.clear()
        bulk.tell_summary(runner.report)
        sys.stdout.flush()
    return 1 if runner.counts.failed else 0


async def _nothing(session: Session, report: Report) -> None:
    """The lines do all."""


def _options_given(context: click.Context) -> dict[str, Any]:
    """The options on the command line, as they were written; lines find those of variables themselves."""
    parser = context.command.make_parser(context)
    return parser.parse_args(list(context.obj[1:]))[0]


class Runner:
    """Runs lines, and counts them."""

    def __init__(self, given: dict[str, Any], shared: dict[str, Any], shown: Shown) -> None:
        job = bulk.Job(
            "run",
            store_config(given),
            _nothing,
            given["as_json"],
            given["quiet"],
            given["dry_run"],
            True,
        )
        self._shared = shared
        self._shown = shown
        self.report = bulk.new_report(job, shown)
        self.counts: Counts = self.report.counts

    async def run(self, session: Session, line: Line) -> None:
        """Run one, and tell how it failed."""
        try:
            job = self._parsed(line.words)
            report = bulk.new_report(job, self._shown)
            await job.main(session, report)
            self.counts.bytes += report.counts.bytes
            self.counts.failed += report.counts.exit_code != 0
        except (output.ReaderGoneError, KeyboardInterrupt):
            raise
        except click.ClickException as error:
            self._fail(line, " ".join(error.format_message().split()))
        except S3MountError as error:
            self._fail(line, reason(error))
        self.counts.objects += 1

    def _fail(self, line: Line, why: str) -> None:
        self.counts.failed += 1
        self._shown.complain(f"line {line.number}: {why}")

    def _parsed(self, words: list[str]) -> bulk.Job:
        """The job of a line. Raises click.ClickException, S3MountError."""
        from s3mount.cli.commands import COMMANDS, group

        name, *rest = words
        if name == "s3mount" and rest:
            name, *rest = rest
        if name not in RUNNABLE or name not in COMMANDS:
            raise UsageError(f"{name!r} is no command for a line: {', '.join(RUNNABLE)}")
        command = group.get_command(click.Context(group), name)
        assert command is not None
        with bulk.collecting() as jobs:
            given = [name, *self._inherited(command), *rest]
            try:
                group.main(args=given, prog_name="s3mount", standalone_mode=False)
            except click.exceptions.Exit:
                raise UsageError(f"{name}: this says nothing to do") from None
        if not jobs:
            raise UsageError(f"{shlex.join(words)!r} cannot be run from a line")
        return jobs[0]

    def _inherited(self, command: click.Command) -> Iterator[str]:
        """The options of ``run`` itself that ``command`` has as well."""
        for parameter in command.params:
            value = self._shared.get(parameter.name or "")
            if not isinstance(parameter, click.Option) or value is None:
                continue
            for each in value if isinstance(value, list) else [value]:
                yield parameter.opts[-1]
                if not parameter.is_flag:
                    yield str(each)


def lines_of(source: str) -> Any:
    """Sends the lines of a file, or of standard input, as they are read. Raises SourceError, UsageError."""
    import trio

    async def produce(send: Any) -> None:
        with ExitStack() as stack:
            try:
                file = (
                    sys.stdin
                    if source == "-"
                    else stack.enter_context(
                        open(source, encoding="utf-8", errors="surrogateescape", newline="\n")
                    )
                )
            except OSError as error:
                raise SourceError(f"{source}: {error.strerror}") from error
            lines = parsed(iter(file))
            while (
                line := await trio.to_thread.run_sync(next, lines, None, abandon_on_cancel=True)
            ) is not None:
                await send(line)

    return produce


def parsed(lines: Iterator[str]) -> Iterator[Line]:
    """Commands as words; what is quoted may reach over several lines. Raises UsageError."""
    held, begun = "", 0
    for number, line in enumerate(lines, 1):
        if not held:
            if line.lstrip().startswith("#"):
                continue
            begun = number
        held += line
        try:
            # Not with comments=True, which would cut a key at its "#".
            words = shlex.split(held)
        except ValueError as error:
            if number - begun < LINES_MAX:
                continue
            raise UsageError(f"line {begun}: {error}") from None
        held = ""
        if words:
            yield Line(begun, words)
    if held:
        raise UsageError(f"line {begun}: a quote is not closed")

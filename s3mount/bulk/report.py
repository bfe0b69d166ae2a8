"""What became of each object of a bulk command: lines for people, for programs, for ``run``; and the sums."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence

import msgspec

from s3mount.bulk.location import has_wildcards
from s3mount.errors import AccessDeniedError, NoSuchKeyError, S3MountError, SourceError, reason

EXIT_PERMISSION = 14
"""The exit status where S3 denies the one thing that was asked for."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one object. ``skipped`` says why nothing was to be done; it is a success then."""

    operation: str
    success: bool
    source: str
    destination: str | None = None
    bytes: int = 0
    seconds: float = 0.0
    version_id: str | None = None
    error: str | None = None
    skipped: str | None = None


class Counts(msgspec.Struct):
    """The sums. ``expected`` and ``expected_bytes`` grow until all that is to be done ``is_known``."""

    objects: int = 0
    failed: int = 0
    skipped: int = 0
    bytes: int = 0
    expected: int = 0
    expected_bytes: int = 0
    is_known: bool = False
    first_exit_code: int = 0
    began_s: float = msgspec.field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began_s

    @property
    def exit_code(self) -> int:
        """0: nothing failed. Of a single object its own; else 1."""
        if not self.failed:
            return 0
        return self.first_exit_code if self.objects == 1 else 1


class Report:
    """Takes outcomes in. ``write`` prints a line on standard output, ``complain`` one on standard error.

    A line says what was done, in the words by which ``run`` does it; with ``as_json`` each is an object of JSON,
    with ``quiet`` only failures are told. Both may be called from the trio loop alone.
    """

    def __init__(
        self,
        operation: str,
        *,
        write: Callable[[str], None],
        complain: Callable[[str], None],
        as_json: bool = False,
        quiet: bool = False,
        is_dry_run: bool = False,
    ) -> None:
        self.operation = operation
        self.write = write
        self.complain = complain
        self.as_json = as_json
        self.quiet = quiet
        self.is_dry_run = is_dry_run
        self.counts = Counts()

    def expect(self, objects: int, size_bytes: int = 0) -> None:
        """So many more are to be done."""
        self.counts.expected += objects
        self.counts.expected_bytes += size_bytes

    def all_known(self) -> None:
        """No more will be expected."""
        self.counts.is_known = True

    def moved(self, size_bytes: int) -> None:
        """So many more bytes have been moved; negative where some count no longer."""
        self.counts.bytes += size_bytes

    def take(self, outcome: Outcome, *, options: Sequence[str] = (), exit_code: int = 1) -> None:
        """Count and tell one outcome. Its ``bytes`` are not counted: ``moved`` has had them.

        ``options`` are what ``run`` needs beside source and destination; ``exit_code`` is a failure's.
        """
        counts = self.counts
        counts.objects += 1
        counts.skipped += outcome.skipped is not None
        if not outcome.success:
            counts.failed += 1
            counts.first_exit_code = counts.first_exit_code or exit_code
        if self.as_json:
            if not self.quiet or not outcome.success:
                self.write(msgspec.json.encode(outcome).decode())
        elif not outcome.success:
            places = [outcome.source, *filter(None, (outcome.destination,))]
            self.complain(f"{outcome.operation} {' '.join(places)}: {outcome.error}")
        elif not self.quiet and outcome.skipped is None:
            self.write(command_line(outcome, options))

    def fail(
        self,
        operation: str,
        source: str,
        destination: str | None,
        error: S3MountError,
        seconds: float = 0.0,
    ) -> None:
        """Count and tell that one object failed by ``error``."""
        outcome = Outcome(
            operation=operation,
            success=False,
            source=source,
            destination=destination,
            seconds=round(seconds, 6),
            error=reason(error),
        )
        self.take(outcome, exit_code=exit_code_of(error))

    def summary_line(self) -> str:
        """The sums as a JSON line."""
        counts = self.counts
        told = {
            "summary": self.operation,
            "success": not counts.failed,
            "objects": counts.objects,
            "failed": counts.failed,
            "skipped": counts.skipped,
            "bytes": counts.bytes,
            "seconds": round(counts.seconds, 3),
            "dry_run": self.is_dry_run,
        }
        return msgspec.json.encode(told).decode()


def command_line(outcome: Outcome, options: Sequence[str] = ()) -> str:
    """The line by which ``run`` does again what ``outcome`` tells of; a comment where that deletes a local file."""
    places = [outcome.source, *filter(None, (outcome.destination,))]
    raw = ["--raw"] if any(p.startswith("s3://") and has_wildcards(p) for p in places) else []
    # What begins with a dash would be an option.
    safe = [f"./{p}" if p.startswith("-") and p != "-" else p for p in places]
    line = shlex.join([*outcome.operation.split(), *raw, *options, *safe])
    if outcome.operation == "rm" and not outcome.source.startswith("s3://"):
        return "# " + line.replace("\n", "\\n")
    return line


def exit_code_of(error: S3MountError) -> int:
    """The exit status of a command that ``error`` is all that comes of."""
    if isinstance(error, AccessDeniedError):
        return EXIT_PERMISSION
    if isinstance(error, NoSuchKeyError):
        return SourceError.exit_code
    return error.exit_code

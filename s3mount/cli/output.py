"""What commands print on: standard descriptors that are there, and output that can be written."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

import click

from s3mount.errors import OutputError
from s3mount.logs import without_secrets

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Output(io.FileIO):
    """Standard output, whose failures say that they are its own."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            _give_up(self.fileno())
            raise OutputError(f"the output cannot be written: {error.strerror}") from None


def prepare() -> None:
    """Make standard input, output and error fit to be used. To be called before anything is opened.

    Where they are closed, /dev/null takes their place: else the first pipe or file that is opened gets such
    a number, and what C code or a child process prints or reads goes there. From now on a failure to write
    standard output is an OutputError.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one. Children inherit it, as they would a terminal.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    before = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(1, "w", closefd=False)),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=bool(before and before.line_buffering),
    )
    sys.stderr = sys.stderr or io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


class ReaderGoneError(OutputError):
    """Nobody reads standard output any more. Ends a trio loop, out of which BrokenPipeError would come in a group."""


def write_line(line: str) -> None:
    """A line on standard output, for ``flush`` to send. Raises OutputError, ReaderGoneError."""
    try:
        sys.stdout.write(f"{line}\n")
    except BrokenPipeError:
        raise ReaderGoneError("nobody reads the output") from None


def json_line(value: object) -> str:
    """A value as one line of JSON."""
    import msgspec

    return msgspec.json.encode(value).decode()


def write_json(value: object) -> None:
    """A line of JSON on standard output. Raises as ``write_line``."""
    write_line(json_line(value))


def flush() -> None:
    """Send what was written so far. Raises OutputError, ReaderGoneError."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGoneError("nobody reads the output") from None


async def write_bytes(data: memoryview) -> None:
    """Bytes on standard output, as they are. Whoever reads slowly holds up the caller alone. Raises as ``flush``."""
    import trio

    # A copy: a thread that is left behind, as the reader does not read, would go on with the caller's memory.
    copied = bytes(data)

    def write() -> None:
        try:
            sys.stdout.buffer.write(copied)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise ReaderGoneError("nobody reads the output") from None

    await trio.to_thread.run_sync(write, abandon_on_cancel=True)


def complain(message: str) -> None:
    """Print one line on standard error, if that can be written."""
    try:
        click.echo(f"s3mount: {without_secrets(message)}", err=True)
    except OSError:
        _give_up(2)


def _give_up(number: int) -> None:
    """What is still buffered is tried again as Python ends, which would tell of it by its exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)

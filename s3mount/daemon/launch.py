"""Starting a mount in the background: its first process waits until the mount answers, or tells why not.

The mount runs in a process of its own from the first instruction on (no fork of a process that has
threads), tied to its parent by a pipe on which it tells how the start goes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TypeAlias

import msgspec

from s3mount import mountinfo
from s3mount.customer_key import child_stdin, kept_descriptors

STEP_TIMEOUT_S = 30.0
"""How long one step of the start may take before the parent gives up on it."""


class Step(msgspec.Struct, frozen=True, tag="step"):
    """What the starting mount does now, as the end of "while ..."."""

    doing: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The mount is there."""

    mountpoint: str
    message: str


class NotReady(msgspec.Struct, frozen=True, tag="failed"):
    """The mount could not be made, for a reason in one line."""

    message: str
    exit_code: int


News: TypeAlias = Step | Ready | NotReady

_news: msgspec.json.Decoder[News] = msgspec.json.Decoder(News)


class Reporter:
    """The child's end: tells the parent, once, how the start went. Without a pipe it keeps silent."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    def step(self, doing: str) -> None:
        """Say what comes next; gives it STEP_TIMEOUT_S."""
        self._tell(Step(doing))

    def ready(self, mountpoint: str, message: str) -> None:
        """Say that the mount answers. The last word; later ones are not sent."""
        self._tell(Ready(mountpoint, message))
        self.close()

    def failed(self, message: str, exit_code: int) -> bool:
        """Say why there will be no mount; whether there was a parent to hear it. The last word."""
        heard = self._tell(NotReady(message, exit_code))
        self.close()
        return heard

    def close(self) -> None:
        """Say nothing more. Repeatable."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _tell(self, news: News) -> bool:
        if self._fd is None:
            return False
        try:
            os.write(self._fd, msgspec.json.encode(news) + b"\n")
        except OSError:
            # The parent is gone (interrupted); the mount goes on without it.
            self.close()
            return False
        return True


def start_in_background(
    arguments: Sequence[str],
    *,
    command: Sequence[str] | None = None,
    step_timeout_s: float = STEP_TIMEOUT_S,
) -> Ready | NotReady:
    """Run ``s3mount ARGUMENTS --ready-fd N`` in a session of its own; how it went.

    Returns when the mount answers, when it failed, or when one step took longer than
    ``step_timeout_s``; the process is ended in the latter case. Interrupted, it ends the process.
    ``command`` stands for s3mount in tests.
    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                [*(command or own_command()), *arguments, "--ready-fd", str(writing)],
                stdin=child_stdin(),
                stdout=said,
                stderr=said,
                start_new_session=True,
                pass_fds=[writing, *kept_descriptors()],
                env=own_environment(),
            )
        finally:
            os.close(writing)
        try:
            with _signals_interrupt():
                return _watch(process, reading, said, step_timeout_s)
        except BaseException:
            _end(process)
            raise
        finally:
            os.close(reading)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """While we wait, be ended by any signal as by Ctrl-C, so that the child is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def own_command() -> list[str]:
    """The command that runs this very s3mount, whatever PATH and the current folder hold."""
    return [sys.executable, "-P", "-m", "s3mount"]


def own_environment() -> dict[str, str]:
    """The environment, in which ``own_command`` finds this very package."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parent.parent.parent)
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else root
    return environment


def _watch(
    process: subprocess.Popen[bytes], reading: int, said: IO[bytes], step_timeout_s: float
) -> Ready | NotReady:
    doing = "starting"
    buffer = bytearray()
    deadline = time.monotonic() + step_timeout_s
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([reading], [], [], remaining)[0]:
            _end(process)
            return NotReady(
                f"gave up after {step_timeout_s:g} s while {doing}{_last_line(said)}", 1
            )
        chunk = os.read(reading, 1 << 16)
        if not chunk:
            status = process.wait()
            ended = f"signal {-status}" if status < 0 else f"status {status}"
            return NotReady(
                f"the mount's process ended with {ended} while {doing}{_last_line(said)}", 1
            )
        buffer += chunk
        while b"\n" in buffer:
            line, _, rest = bytes(buffer).partition(b"\n")
            buffer = bytearray(rest)
            news = _news.decode(line)
            if isinstance(news, Step):
                doing = news.doing
                deadline = time.monotonic() + step_timeout_s
            elif isinstance(news, Ready):
                return _confirm(process, news)
            else:
                _wait_or_end(process)
                return news


def _confirm(process: subprocess.Popen[bytes], news: Ready) -> Ready | NotReady:
    """Look at the mount from outside, as the first user will."""
    health = mountinfo.health(news.mountpoint, STEP_TIMEOUT_S)
    if health == "answers":
        # It outlives this process; without a status Popen would warn of that.
        process.returncode = 0
        return news
    _end(process)
    why = "does not answer" if health == "silent" else "ended at once"
    return NotReady(f"the mount at {news.mountpoint} {why}", 1)


def _wait_or_end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
        return
    process.kill()
    process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    _wait_or_end(process)


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""

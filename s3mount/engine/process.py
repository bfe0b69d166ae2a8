"""The engine child as an operating system process: start, watch, kill.

The child is made by ``subprocess`` from the thread that runs the trio loop, never from a worker
thread: the child asks the kernel to be killed when its parent dies, and to the kernel the parent
is the *thread* that made it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import site
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import trio

from s3mount.customer_key import child_stdin, kept_descriptors
from s3mount.engine.signals import signals_held

log = logging.getLogger(__name__)

STDERR_BYTES_KEPT = 8 << 10
"""How much of an unfinished line of the child's stderr is kept."""


class Child(Protocol):
    """A process (or what stands for one in tests) at the other end of ``socket``."""

    socket: socket.socket

    async def read_stderr(self) -> None:
        """Log what the child writes to stderr until it ends."""
        ...

    def kill(self) -> None:
        """SIGKILL; no error when it is dead already."""
        ...

    async def wait(self) -> str:
        """Wait until the process is gone, threads included, and say how it ended."""
        ...

    def close(self) -> None:
        """Close the socket and all else that belongs to the parent's side. After ``wait``."""
        ...


Spawn: TypeAlias = Callable[[], Child]
"""Starts a child. Raises OSError when that is impossible. Called in the trio loop's thread."""


def child_command(module: str) -> list[str]:
    """The command line of ``module`` as a child, without ``--fd N``.

    ``-P`` keeps the current directory off the child's import path: a mount may be made from a
    folder that somebody else can write to.
    """
    flags = ["-I"] if sys.flags.isolated else ["-P"]
    return [sys.executable, *flags, "-m", module]


def default_command() -> list[str]:
    """The command line of the real engine, without ``--fd N``."""
    return child_command("s3mount.engine")


class EngineProcess:
    """One running child, started by the constructor, in ``folder`` if given. Raises OSError when it cannot be."""

    def __init__(self, command: Sequence[str], *, folder: str | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket = ours
        self._line = b""
        self._last_said = ""
        self._stderr_ended = False
        try:
            with theirs, signals_held():
                self._process = subprocess.Popen(
                    [*command, "--fd", str(theirs.fileno())],
                    stdin=child_stdin(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=_environment(),
                    cwd=folder,
                    close_fds=True,
                    pass_fds=[theirs.fileno(), *kept_descriptors()],
                )
        except BaseException:
            ours.close()
            raise
        assert self._process.stderr is not None
        self._stderr_fd = self._process.stderr.fileno()
        os.set_blocking(self._stderr_fd, False)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    async def read_stderr(self) -> None:
        """Log each line as a warning. Nothing is expected there but what a crash leaves."""
        while not self._stderr_ended:
            await trio.lowlevel.wait_readable(self._stderr_fd)
            self._log_stderr()

    def _log_stderr(self) -> None:
        """Log the lines that are there now."""
        try:
            data = os.read(self._stderr_fd, 64 << 10)
        except BlockingIOError:
            return
        self._stderr_ended = not data
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-STDERR_BYTES_KEPT:]
        if not data and self._line:
            lines.append(self._line)
        for line in lines:
            self._last_said = line.decode(errors="replace").strip() or self._last_said
            log.warning("engine: %s", line.decode(errors="replace"))

    def kill(self) -> None:
        """SIGKILL; no error when it is dead already."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> str:
        """Wait for the end; ``"killed by SIGKILL"``, or the exit status and the last line said."""
        try:
            pidfd = os.pidfd_open(self._process.pid)
        except OSError:  # kernels before 5.3, and sandboxes that do not know the call
            while self._process.poll() is None:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.005)
        else:
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        self._log_stderr()
        return self._describe(self._process.wait())

    def _describe(self, status: int) -> str:
        if status < 0:
            try:
                return f"killed by {signal.Signals(-status).name}"
            except ValueError:
                return f"killed by signal {-status}"
        said = f": {self._last_said}" if self._last_said and status else ""
        return f"exit status {status}{said}"

    def close(self) -> None:
        """Close the socket and the pipe. After ``wait``."""
        self.socket.close()
        assert self._process.stderr is not None
        self._process.stderr.close()


def _environment() -> dict[str, str]:
    """This process's environment, in which the child finds the same s3mount package."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parent.parent.parent)
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else root
    return environment


class _Prepared:
    """The child that was started ahead and is not handed out yet."""

    child: EngineProcess | None = None


def prepare_engine(*, folder: str | None = None) -> None:
    """Start the real engine ahead of its use: it gets ready while this process does.

    ``spawn_engine`` hands it out first; unused it ends with this process. Once per process, from the thread
    that will run the trio loop. Raises OSError.
    """
    _Prepared.child = EngineProcess(default_command(), folder=folder)


def spawn_engine() -> Child:
    """The engine that was prepared, or else one that is started now."""
    child, _Prepared.child = _Prepared.child, None
    return child or EngineProcess(default_command())

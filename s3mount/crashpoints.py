"""Crash points: named steps of the durable protocols at which tests kill the process.

``crashpoint`` stands between two things that must not be torn apart. It costs a look at a global unless
somebody listens: the simulation does, and the environment variable ``S3MOUNT_CRASH_AT=NAME[:COUNT]``
lets a process kill itself (SIGKILL) when it passes the step for the COUNTth time. Steps that begin
with ``engine: `` are passed by the engine process, all others by the mount's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from s3mount.errors import UsageError

VARIABLE = "S3MOUNT_CRASH_AT"

Listener = Callable[[str], None]

STEPS = (
    # Writing: a blob, then its row, then the answer to the program.
    "blob: created",
    "blob: unsettled",
    "blob: written",
    "blob: truncated",
    "blob: cloned",
    "journal: before commit",
    "journal: committed",
    "spool: labelled",
    "spool: recorded",
    "spool: saved",
    "step: written ahead",
    "step: settled in part",
    "close: journalled",
    "fsync: blob forced",
    "fsync: journal forced",
    # Names.
    "rename: file recorded",
    "rename: directory recorded",
    "rename: exchange recorded",
    "unlink: recorded",
    "discard: recorded",
    # Parts.
    "upload: created",
    "upload: noted",
    "part: sent",
    "part: noted",
    "part: copied",
    "zeros: put",
    "zeros: removed",
    "part: taken back",
    "complete: before",
    "complete: answered",
    "upload: forgotten",
    "abort: answered",
    # A change on its way.
    "send: before",
    "put: answered",
    "pack: tar put",
    "pack: index put",
    "copy: answered",
    "delete: answered",
    "change: superseded",
    "change: content is in S3",
    "change: earlier state is in S3",
    "change: finished",
    "conflict: recorded",
    "cache: adopted",
    "blob: before removal",
    "blob: removed",
    # The next start.
    "recovery: change taken over",
    "recovery: blob removed",
    "recovery: parts confirmed",
    "recovery: parts adopted",
    # The end, and the engine.
    "drain: ended",
    "engine: request received",
    "engine: request done",
)
"""Every name that ``crashpoint`` may be called with."""

_listener: Listener | None = None


def crashpoint(name: str) -> None:
    """The step ``name`` is passed."""
    if _listener is not None:
        _listener(name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of every step meanwhile, in place of whoever listens now."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def killer(wanted: str) -> Listener:
    """Kills this process at the step that ``wanted`` (``NAME`` or ``NAME:COUNT``) says; names it on stderr.

    ``NAME`` may hold colons followed by a space. Raises UsageError when there is no such step.
    """
    name, colon, number = wanted.rpartition(":")
    if not colon or not number.isdecimal():
        name, number = wanted, "1"
    if name not in STEPS:
        raise UsageError(f"{VARIABLE}: there is no step {name!r}")
    left = int(number)

    def count(reached: str) -> None:
        nonlocal left
        if reached != name:
            return
        left -= 1
        if left == 0:
            os.write(2, f"killed at the step {name!r}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def arm(environment: Mapping[str, str] = os.environ) -> None:
    """Obey ``S3MOUNT_CRASH_AT`` from now on, where it is set. Raises UsageError."""
    global _listener
    wanted = environment.get(VARIABLE)
    if wanted:
        _listener = killer(wanted)

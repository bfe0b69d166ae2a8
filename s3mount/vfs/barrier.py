"""Waiting until S3 has a file: ``--fsync s3`` and ``--write-through``.

A program whose request is being answered cannot be woken by a signal: the kernel waits for the
answer. pyfuse3 does not hand on that the kernel asked for the request to be interrupted, so a
request that may take long looks at the program's signals itself, in /proc (proc(5)).
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import trio

from s3mount.spool.journal.changes import Change
from s3mount.spool.journal.states import State
from s3mount.spool.upload.uploader import Uploader
from s3mount.tree.node import Node
from s3mount.vfs.state import MountState

LOOK_S = 0.1
"""How often a waiter looks whether the program that it answers is being stopped."""

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_STOPPING_MASK = sum(1 << (number - 1) for number in _STOPPING)
_EXITING = 0x4
"""PF_EXITING: the process ends already, and closes its files."""
_FLAGS_FIELD = 6
"""Of /proc/PID/stat, counted behind the name in parentheses."""


class UploadBarrier:
    """Waits for single files. After ``release`` nobody waits any more."""

    def __init__(self, state: MountState, uploader: Uploader) -> None:
        self._state = state
        self._uploader = uploader
        self._is_released = False

    def release(self) -> None:
        """The mount is about to end: who waits, now or later, is told that S3 has it not. Repeatable."""
        self._is_released = True

    async def wait(self, node: Node, pid: int) -> None:
        """Return when S3 has what is pending for ``node``, or a later state of it.

        Raises OSError: EIO when a try to send it failed (it stays pending, and the next call tries again),
        at once where it is parked already; EINTR when process ``pid`` is being stopped.
        """
        change = self._state.change_of(node)
        if change is None:
            return
        mark, failed_before = change.seq, change.attempts
        is_lined_up = False
        while change is not None and change.first_seq <= mark:
            failed_before = min(failed_before, change.attempts)
            if change.state is State.PARKED or change.attempts > failed_before:
                raise _failure(change)
            self._must_not_be_stuck(change)
            if not is_lined_up or change.state is State.OPEN:
                # Open again: somebody else wrote to the file meanwhile.
                self._uploader.send_now(change)
                is_lined_up = True
            if self._is_released:
                raise OSError(errno.EIO, "the mount ends; it is sent after the next start")
            if is_told_to_stop(pid):
                raise OSError(errno.EINTR, "interrupted")
            with trio.move_on_after(LOOK_S):
                await self._uploader.wait_for_news()
            change = self._state.change_of(node)

    def _must_not_be_stuck(self, change: Change) -> None:
        """Raise the error of the change that ``change`` has to wait for, if that one is parked."""
        blocker = self._state.spool.dependencies.blocker_of(change)
        blocking = None if blocker is None else self._state.spool.changes.get(blocker)
        if blocking is not None and blocking.state is State.PARKED:
            raise _failure(blocking)


def _failure(change: Change) -> OSError:
    """What a program is told of the last failed try: EIO, as write-back errors are told by every file system."""
    return OSError(errno.EIO, change.error)


def is_told_to_stop(pid: int) -> bool:
    """Has a signal reached process ``pid`` that would end it, or with which people stop programs?

    True as well where it is ending already. False where nothing is known of it.
    """
    if pid <= 0:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        if int(stat.rpartition(")")[2].split()[_FLAGS_FIELD]) & _EXITING:
            return True
        threads = os.listdir(f"/proc/{pid}/task")
        return any(
            _stops(Path(f"/proc/{pid}/task/{thread}/status").read_bytes()) for thread in threads
        )
    except (OSError, ValueError, IndexError):
        return False


def _stops(status: bytes) -> bool:
    """Does a thread, whose /proc/PID/task/TID/status this is, have such a signal pending?"""
    masks = {
        name: int(value, 16)
        for name, _, value in (line.partition(b":\t") for line in status.splitlines())
        if name.startswith((b"Sig", b"Shd")) and name != b"SigQ"
    }
    pending = (masks[b"SigPnd"] | masks[b"ShdPnd"]) & ~masks[b"SigBlk"] & ~masks[b"SigIgn"]
    return bool(pending & (~masks[b"SigCgt"] | _STOPPING_MASK))

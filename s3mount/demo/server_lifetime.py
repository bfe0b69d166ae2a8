"""Runs one command and ends it when the process that asked for it is gone.

A script of its own, run by path, with the standard library alone: it must start in any interpreter.

    python server_lifetime.py [--remove FOLDER] [--patience SECONDS] -- COMMAND...

The keeper's standard input is a pipe whose other end the asker holds. When that end closes, by intent
or because the asker was killed, the command's process group gets SIGTERM and, SECONDS later, SIGKILL;
then FOLDER is removed. After a command that ended by itself it stays, so that its log can be read.
The exit status is the command's, 128 + n when signal n ended it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Keep the command named by ``arguments`` until it ends or standard input does; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--remove", action="append", default=[])
    parser.add_argument("--patience", type=float, default=5.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    # The asker decides when this ends. A Ctrl-C at its terminal is for the asker to hear.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    status, by_itself = keep(options.command, options.patience)
    if not by_itself:
        for folder in options.remove:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def keep(command: list[str], patience_s: float) -> tuple[int, bool]:
    """Run ``command`` in a process group of its own until it ends or standard input does.

    Its exit status, and whether it ended by itself.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # Should the keeper itself be killed, the command goes with it. This process has one
        # thread, so "the parent thread ended", which is what the kernel looks at, means just that.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127, True
    ended = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(sys.stdin.fileno(), select.POLLIN)
    poll.register(ended, select.POLLIN)
    by_itself = False
    while not by_itself:
        by_itself = ended in [descriptor for descriptor, _ in poll.poll()]
        if not by_itself and not os.read(sys.stdin.fileno(), 4096):
            os.killpg(process.pid, signal.SIGTERM)
            select.select([ended], [], [], patience_s)
            break
    # Not waited for yet, so the group's number cannot belong to somebody else by now.
    os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    return (code if code >= 0 else 128 - code), by_itself


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

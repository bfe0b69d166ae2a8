"""A server process that ends with the process that started it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3mount.errors import S3MountError

KEEPER = Path(__file__).with_name("server_lifetime.py")
LOG_TAIL_BYTES = 16 << 10


class ServerProcess:
    """``command`` running under a keeper (server_lifetime.py), in a session of its own, with its output in a file.

    It ends by ``stop``, or when the process that made this object is gone, however that ended. Then
    the folders in ``remove`` are removed. Not for use from two threads at once.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        remove: Sequence[Path] = (),
        patience_s: float = 5.0,
    ) -> None:
        """Start it. ``patience_s`` is how long it may take to end after SIGTERM.

        Raises S3MountError when the keeper cannot be started. A command that cannot be started
        shows as a process that ended at once, with the reason in the log.
        """
        self.log_path = log_path
        self._patience_s = patience_s
        keep = [sys.executable, "-I", "-S", str(KEEPER), "--patience", str(patience_s)]
        for folder in remove:
            keep += ["--remove", str(folder)]
        try:
            with log_path.open("ab") as log:
                self._keeper = subprocess.Popen(
                    [*keep, "--", *command],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    start_new_session=True,
                )
        except OSError as error:
            raise S3MountError(f"cannot start {command[0]}: {error}") from error

    def is_running(self) -> bool:
        """Is it still there?"""
        return self._keeper.poll() is None

    def log_tail(self) -> str:
        """The last lines of its output."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
        return ""

    def stop(self) -> None:
        """End it and return when it is gone; repeatable."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        try:
            self._keeper.wait(self._patience_s + 10)
        except subprocess.TimeoutExpired:
            self._keeper.kill()  # the kernel kills the command then
            self._keeper.wait()

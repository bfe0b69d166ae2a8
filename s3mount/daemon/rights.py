"""Opening a file for somebody who only named it: with his rights, not with the daemon's."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from s3mount.daemon import opener
from s3mount.daemon.launch import own_command, own_environment

OPEN_TIMEOUT_S = 10.0
"""A file on a server that is away is not waited for longer: others wait behind it."""
NO_GROUP = 65534


class Rights:
    """Opens files for local users. What lies below ``roots`` anybody may have sent.

    ``open_as`` may be called in threads; ``close`` ends the process that it may have started.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = [Path(os.path.realpath(root)) for root in roots]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def open_as(self, path: str, uid: int | None) -> int:
        """An open file that user ``uid`` (``None``: nobody knows whom) may read. Raises OSError."""
        if uid is not None and uid in (0, os.geteuid()):
            return os.open(path, opener.OPEN_FLAGS)
        if uid is not None and os.geteuid() == 0:
            try:
                return self._open_by_child(path, uid)
            except PermissionError:
                if not self._roots:
                    raise
        return self._open_below_roots(path)

    def _open_below_roots(self, path: str) -> int:
        if not self._roots:
            raise _denied()
        fd = os.open(path, opener.OPEN_FLAGS)
        # Where what was opened lies, whatever its name has become since.
        real = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if any(real.is_relative_to(root) for root in self._roots):
            return fd
        os.close(fd)
        raise _denied()

    def _open_by_child(self, path: str, uid: int) -> int:
        gid, groups = _groups_of(uid)
        with self._lock:
            connection = self._connection or self._started()
            try:
                connection.send(opener.request(path, uid, gid, groups))
                said, fds, _, _ = socket.recv_fds(connection, opener.PACKET_BYTES_MAX, 1)
            except OSError as error:
                self._stop()
                raise OSError(errno.EIO, f"it cannot be opened: {error}") from error
            if not said:
                self._stop()
                raise OSError(errno.EIO, "it cannot be opened")
        for fd in fds:
            os.set_inheritable(fd, False)
            return fd
        number = int(said)
        raise OSError(number, os.strerror(number))

    def _started(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*own_command()[:-1], "s3mount.daemon.opener", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=own_environment(),
                cwd="/",
            )
        ours.settimeout(OPEN_TIMEOUT_S)
        self._connection = ours
        return ours

    def _stop(self) -> None:
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End. Repeatable."""
        with self._lock, contextlib.suppress(OSError):
            self._stop()


def _groups_of(uid: int) -> tuple[int, list[int]]:
    """The groups of a user, as the machine's lists tell."""
    try:
        about = pwd.getpwuid(uid)
    except KeyError:
        return NO_GROUP, []
    return about.pw_gid, os.getgrouplist(about.pw_name, about.pw_gid)


def _denied() -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES))

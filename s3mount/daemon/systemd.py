"""What systemd and a service that it started tell each other: sd_notify (Type=notify), and sockets."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Send lines such as ``READY=1`` to the supervisor; nothing happens where there is none.

    Format: sd_notify(3). Never raises: a supervisor that does not listen must not end a mount.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as supervisor,
    ):
        supervisor.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, address)


FIRST_PASSED_FD = 3


def passed_sockets() -> list[socket.socket]:
    """The listening sockets that systemd opened for this process: sd_listen_fds(3). To be asked once."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return []
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    os.environ.pop("LISTEN_FDNAMES", None)
    passed = []
    for fd in range(FIRST_PASSED_FD, FIRST_PASSED_FD + count):
        os.set_inheritable(fd, False)
        passed.append(socket.socket(fileno=fd))
    return passed

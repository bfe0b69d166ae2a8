"""sd_notify: tells systemd how the service fares, where systemd started it (Type=notify)."""

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

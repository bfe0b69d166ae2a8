"""A process that opens files as other users would: ``python -m s3mount.daemon.opener FD``, started by root.

For each request it makes a child that becomes that user, groups and all, opens the file, and passes it on. So the
kernel itself decides what may be read: modes, ACLs, the folders on the way. It has one thread, as a fork needs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys

PACKET_BYTES_MAX = 64 << 10
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def request(path: str, uid: int, gid: int, groups: list[int]) -> bytes:
    """The packet that asks for a file."""
    return json.dumps([os.fsencode(path).hex(), uid, gid, groups]).encode()


def serve(connection: socket.socket) -> None:
    """Answer until the other end closes: a file, or the number of the error."""
    while packet := connection.recv(PACKET_BYTES_MAX):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _answer(connection, packet)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        if status:
            connection.send(str(errno.EIO).encode())


def _answer(connection: socket.socket, packet: bytes) -> None:
    path, uid, gid, groups = json.loads(packet)
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        fd = os.open(bytes.fromhex(path), OPEN_FLAGS)
    except OSError as error:
        connection.send(str(error.errno or errno.EIO).encode())
        return
    socket.send_fds(connection, [b"0"], [fd])


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError, KeyboardInterrupt):
        serve(socket.socket(fileno=int(sys.argv[1])))

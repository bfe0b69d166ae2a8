"""``s3daemon`` and ``s3nd``, under the names and with the words that they always had."""

from __future__ import annotations

import os
import socket
import sys

from s3mount.cli.commands import main


def serve() -> int:
    """``s3daemon``: the daemon with ``--tcp``; further options are those of ``s3mount daemon``."""
    return main(["daemon", "--tcp", *sys.argv[1:]])


def send() -> int:
    """``s3nd FILENAME ALIAS/BUCKET/KEY``: 0 when S3 has it, else 1 and the error on standard error."""
    if len(sys.argv) != 3:
        sys.stderr.write("usage: s3nd FILENAME ALIAS/BUCKET/KEY\n")
        return 1
    host = os.environ.get("S3DAEMON_HOST", "localhost")
    port = int(os.environ.get("S3DAEMON_PORT", "15555"))
    request = b"%s %s\n" % (os.fsencode(os.path.abspath(sys.argv[1])), os.fsencode(sys.argv[2]))
    said = b""
    try:
        with socket.create_connection((host, port)) as connection:
            connection.sendall(request)
            while chunk := connection.recv(4096):
                said += chunk
    except OSError as error:
        said = f"the daemon at {host}:{port} cannot be asked: {error.strerror or error}".encode()
    if said.startswith(b"Success"):
        return 0
    sys.stderr.write(said.decode(errors="replace") + "\n")
    return 1

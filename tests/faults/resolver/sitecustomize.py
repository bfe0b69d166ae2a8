"""On the PYTHONPATH of a mount under test: one host name is found only while a file is there.

Python imports a module of this name at its start, so the mount and the process that it starts for S3
both look names up through it. $TEST_HOST is the name; it means 127.0.0.1 while $TEST_HOST_FILE exists.
"""

from __future__ import annotations

import os
import socket
from typing import Any

_HOST = os.environ.get("TEST_HOST", "")
_FILE = os.environ.get("TEST_HOST_FILE", "")
_system = socket.getaddrinfo


def _lookup(host: str | bytes | None, *arguments: Any, **named: Any) -> Any:
    if _HOST and host in (_HOST, _HOST.encode()):
        if not os.path.exists(_FILE):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        host = "127.0.0.1"
    return _system(host, *arguments, **named)


socket.getaddrinfo = _lookup

"""Who is at the other end of a TCP connection of this machine: as the kernel tells, in /proc/net."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

Address: TypeAlias = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


class _Row(NamedTuple):
    """One connection as one of its ends sees it. ``inode`` is 0 when no process has that end any more."""

    local: Address
    remote: Address
    uid: int
    inode: int


def uid_of_peer(connection: socket.socket) -> int | None:
    """The user whose process has the other end; ``None`` when there is none (any more). Raises OSError.

    Of an end that was closed the table says root, and has no inode: whose it was is not known then.
    """
    ours, theirs = _plain(connection.getsockname()), _plain(connection.getpeername())
    for table in TABLES:
        for row in _rows(Path(table)):
            if row.local == theirs and row.remote == ours and row.inode:
                return row.uid
    return None


def _plain(name: tuple[str, int]) -> Address:
    return _unmapped(ipaddress.ip_address(name[0].partition("%")[0])), name[1]


def _unmapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _rows(table: Path) -> Iterator[_Row]:
    try:
        lines = table.read_text().splitlines()[1:]
    except FileNotFoundError:
        # No IPv6 here.
        return
    for line in lines:
        fields = line.split()
        if len(fields) >= 10:
            yield _Row(_address(fields[1]), _address(fields[2]), int(fields[7]), int(fields[9]))


def _address(text: str) -> Address:
    """An address as the table has it: words of four bytes, each as this machine stores it.

    >>> _address("0100007F:3CC3")
    (IPv4Address('127.0.0.1'), 15555)
    """
    digits, _, port = text.partition(":")
    raw = bytes.fromhex(digits)
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return _unmapped(ipaddress.ip_address(raw)), int(port, 16)

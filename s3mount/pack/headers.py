"""The headers of a tar file that is written: POSIX pax, and the old form of 1979 (v7)."""

from __future__ import annotations

import tarfile

from s3mount.errors import UsageError
from s3mount.pack.entry import BLOCK_BYTES, time_text

V7_NAME_BYTES_MAX = 100
END = bytes(2 * BLOCK_BYTES)
"""Two blocks of zeros end a tar file."""


def pax_header(
    name: str, size: int, *, mode: int, mtime_ns: int, uid: int = 0, gid: int = 0
) -> bytes:
    """All headers of a file: 512 bytes, and 1,024 or more before them for what those cannot hold.

    That is a name beyond 100 bytes or ASCII, a part of a second, and numbers that are too large.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid = size, mode & 0o7777, uid, gid
    info.mtime = mtime_ns // 1_000_000_000
    if mtime_ns % 1_000_000_000:
        info.pax_headers = {"mtime": time_text(mtime_ns)}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def v7_header(name: str, size: int, *, mode: int, mtime_ns: int) -> bytes:
    """The one header of a file in the old form, always 512 bytes; neither owner nor group.

    Raises UsageError for a name or size that it cannot hold.
    """
    raw = name.encode()
    if len(raw) > V7_NAME_BYTES_MAX:
        raise UsageError(f"a name of {len(raw)} bytes: the v7 layout takes {V7_NAME_BYTES_MAX}")
    if size >= 8**11:
        raise UsageError(f"{size} bytes: the v7 layout takes less than 8 GiB")
    seconds = min(max(mtime_ns // 1_000_000_000, 0), 8**11 - 1)
    header = bytearray(BLOCK_BYTES)
    header[: len(raw)] = raw
    header[100:108] = b"%07o\0" % (mode & 0o7777)
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"%011o\0" % seconds
    header[148:156] = b" " * 8
    header[148:156] = b"%07o\0" % sum(header)
    return bytes(header)

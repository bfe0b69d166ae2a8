"""Bodies of the store in memory that lie in real files."""

from __future__ import annotations

import os

from s3mount.errors import DamagedBodyError, RejectedError
from s3mount.refs import Body, FileSlice
from s3mount.s3.checksums import CacheBlockSums, crc64nvme


def read_body(body: Body) -> bytes:
    """The bytes of a body. Raises RejectedError when the local file cannot give them all."""
    if isinstance(body, bytes):
        return body
    try:
        fd = os.open(body.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RejectedError(f"{body.path}: {error.strerror}") from error
    try:
        data = os.pread(fd, body.length, body.offset)
    finally:
        os.close(fd)
    if len(data) != body.length:
        raise DamagedBodyError(f"{body.path} ends inside the part to send")
    if body.expected is not None and crc64nvme(data) != body.expected:
        raise DamagedBodyError(f"{body.path} has other bytes at {body.offset} than were written")
    return data


def write_slice(sink: FileSlice, position: int, data: bytes) -> None:
    """Write ``data`` at ``position`` of ``sink``. Raises RejectedError when the disk does not take it."""
    try:
        fd = os.open(sink.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, data, sink.offset + position)
            if sink.sums_offset:
                _write_sums(fd, sink, position + len(data))
        finally:
            os.close(fd)
    except OSError as error:
        raise RejectedError(f"{sink.path}: {error.strerror}") from error


def _write_sums(fd: int, sink: FileSlice, arrived: int) -> None:
    """The checksums of the blocks that are complete now, from what lies in the file."""
    is_end = arrived == sink.length
    count = (arrived + (1 << sink.sums_shift) - 1 if is_end else arrived) >> sink.sums_shift
    if count:
        length = min(count << sink.sums_shift, sink.length)
        with open(sink.path, "rb") as file:
            file.seek(sink.offset)
            data = file.read(length)
        part = FileSlice(sink.path, sink.offset, length, None, sink.sums_offset, sink.sums_shift)
        CacheBlockSums(fd, part).update(data)

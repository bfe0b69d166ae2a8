"""File handles as NFS servers give them to their clients: they mean one file of one mount, or ESTALE."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounting import Mount

HANDLE_BYTES_MAX = 128
libc = ctypes.CDLL(None, use_errno=True)


class FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * HANDLE_BYTES_MAX),
    )


def handle_of(path: Path) -> FileHandle:
    handle = FileHandle(handle_bytes=HANDLE_BYTES_MAX)
    mount_id = ctypes.c_int()
    place = os.fsencode(path)
    if libc.name_to_handle_at(-100, place, ctypes.byref(handle), ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle


def read_by(handle: FileHandle, mount: Mount) -> bytes:
    place = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor = libc.open_by_handle_at(place, ctypes.byref(handle), os.O_RDONLY)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
    finally:
        os.close(place)
    with open(descriptor, "rb") as file:
        return file.read()


def test_a_file_handle_from_before_a_new_mount_opens_no_other_file(
    bucket: str, mount_factory: Callable[..., Mount]
) -> None:
    mount = mount_factory(bucket)
    names = [f"f{number}" for number in range(4)]
    for name in names:
        (mount.path / name).write_bytes(name.encode())
    mount.wait()
    try:
        handles = {name: handle_of(mount.path / name) for name in names}
        for name, handle in handles.items():
            assert read_by(handle, mount) == name.encode()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            pytest.skip(f"files cannot be opened by handle here: {error.strerror}")
        raise
    mount.remount()
    for name in reversed(names):
        # What is looked at now gets the numbers from before, in another order.
        assert (mount.path / name).read_bytes() == name.encode()
    for handle in handles.values():
        with pytest.raises(OSError, match="open_by_handle_at") as refused:
            read_by(handle, mount)
        assert refused.value.errno == errno.ESTALE
    mount.unmount()

"""Where a key for SSE-C (encryption by S3 with a key of its customer) is to be read from, and the reading.

Settings name the place and never hold the key, so that what shows, logs or stores settings cannot tell it.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import subprocess

import msgspec

from s3mount.errors import EncryptionKeyError

KEY_BYTES = 32
_BASE64_BYTES = 44
_READ_BYTES = 4096


class CustomerKey(msgspec.Struct, frozen=True):
    """One place of a key: a file, a variable of the environment, or the number of an open descriptor.

    ``is_master``: each object has a key of its own, made of this one and the object's URL
    (``s3.customer_keys``).
    """

    path: str = ""
    variable: str = ""
    descriptor: int | None = None
    is_master: bool = False

    def read(self) -> bytes:
        """The 32 bytes, which may be written as base64. Repeatable, but for a pipe. Raises EncryptionKeyError."""
        try:
            if self.path:
                with open(self.path, "rb") as file:
                    return _decoded(file.read(_READ_BYTES), self.path)
            if self.descriptor is not None:
                return _decoded(_read_descriptor(self.descriptor), f"descriptor {self.descriptor}")
        except OSError as error:
            place = self.path or f"descriptor {self.descriptor}"
            raise EncryptionKeyError(
                f"the key for SSE-C cannot be read from {place}: {error.strerror}"
            ) from error
        found = os.environb.get(os.fsencode(self.variable))
        if found is None:
            raise EncryptionKeyError(f"{self.variable} is not set, and was to hold a key for SSE-C")
        return _decoded(found, self.variable)


def _read_descriptor(descriptor: int) -> bytes:
    """All of it, from its start where it has one."""
    try:
        return os.pread(descriptor, _READ_BYTES, 0)
    except OSError as error:
        if error.errno != errno.ESPIPE:
            raise
    found = b""
    while len(found) < _READ_BYTES and (piece := os.read(descriptor, _READ_BYTES)):
        found += piece
    return found


def _decoded(found: bytes, place: str) -> bytes:
    if len(found) == KEY_BYTES:
        return found
    text = found.strip()
    if len(text) == _BASE64_BYTES:
        try:
            key = base64.b64decode(text, validate=True)
        except binascii.Error:
            key = b""
        if len(key) == KEY_BYTES:
            return key
    raise EncryptionKeyError(
        f"{place} holds no key for SSE-C: 32 bytes, or those in base64, and it has {len(found)} bytes"
    )


_kept: set[int] = set()


def keep_descriptor(descriptor: int) -> None:
    """Let processes that are started from now on read a key by this very number, as often as they like.

    What may be read once only, as a pipe, becomes a file in memory. Raises EncryptionKeyError.
    """
    if descriptor in _kept:
        return
    key = CustomerKey(descriptor=descriptor).read()
    in_memory = os.memfd_create("sse-c-key")
    try:
        os.write(in_memory, key)
        os.dup2(in_memory, descriptor, inheritable=False)
    finally:
        os.close(in_memory)
    _kept.add(descriptor)


def child_stdin() -> int:
    """What a process that is started gets as standard input: nothing, unless a key is read from there."""
    return 0 if 0 in _kept else subprocess.DEVNULL


def kept_descriptors() -> list[int]:
    """The descriptors that a process which is started is to inherit."""
    return sorted(_kept)

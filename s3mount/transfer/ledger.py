"""Which unfinished upload is whose: one small file for each key that this user uploads in parts.

Which parts an upload has is S3's to tell (ListParts). The ledger holds what S3 does not know: what the source was when
the upload began, so that one which changed meanwhile is noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType

import msgspec

from s3mount.errors import LocalDiskError, UploadExistsError
from s3mount.refs import Key

RECORD_BYTES_MAX = 1 << 16


class Record(msgspec.Struct, frozen=True):
    """An upload that was begun. ``source`` and ``headers`` change when what is to be uploaded does."""

    upload_id: str
    part_bytes: int
    step_parts: int
    source: str
    headers: str
    where: str = ""
    """For people: what is uploaded to where."""


class Ledger:
    """The record of one key, held by one process at a time: use it as a context manager.

    ``identity`` names the store (endpoint and bucket). Entering raises UploadExistsError while another process
    uploads to this key, and LocalDiskError.
    """

    def __init__(self, folder: Path, identity: str, key: Key) -> None:
        name = hashlib.sha256(f"{identity}\0{key}".encode("utf-8", "surrogateescape")).hexdigest()
        self._path = folder / f"{name[:32]}.json"
        self._key = key
        self._fd = -1

    def __enter__(self) -> Ledger:
        """Take the file."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while not self._is_held():
                os.close(self._fd)
                self._fd = -1
        except BlockingIOError:
            raise UploadExistsError("another process uploads to this key just now") from None
        except OSError as error:
            raise self._failed(error) from error
        return self

    def _is_held(self) -> bool:
        """Open and lock the file; is it still the one of this name?"""
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the file go, and remove it where it holds nothing."""
        if os.fstat(self._fd).st_size == 0:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def read(self) -> Record | None:
        """What is noted; ``None`` where nothing is, or nothing that can be read. Raises LocalDiskError."""
        try:
            data = os.pread(self._fd, RECORD_BYTES_MAX, 0)
        except OSError as error:
            raise self._failed(error) from error
        try:
            return msgspec.json.decode(data, type=Record) if data else None
        except msgspec.DecodeError:
            return None

    def write(self, record: Record | None) -> None:
        """Note ``record``, or that there is none. Raises LocalDiskError."""
        try:
            os.ftruncate(self._fd, 0)
            if record is not None:
                os.pwrite(self._fd, msgspec.json.encode(record), 0)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> LocalDiskError:
        return LocalDiskError(f"what is uploaded cannot be noted: {self._path}: {error.strerror}")

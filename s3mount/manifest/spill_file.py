"""A spill file: rows that wait for their turn on the disk, so that memory stays bounded."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from s3mount.errors import DiskFullError, LocalDiskError

T = TypeVar("T", bound=msgspec.Struct)


class Chunk(NamedTuple):
    """Some rows in the file."""

    offset: int
    length: int


class Spill(Generic[T]):
    """Takes lists of structs of one ``kind`` and gives them back, in any order, any number of times.

    The file has no name and is gone with the process; it lies in ``$TMPDIR``. Raises DiskFullError
    and LocalDiskError.
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._encoder = msgspec.msgpack.Encoder()
        self._file: Any = None
        self._size = 0

    @property
    def size_bytes(self) -> int:
        """How large the file is."""
        return self._size

    def put(self, rows: Sequence[T]) -> Chunk:
        """Write rows; where they lie."""
        data = self._encoder.encode([msgspec.structs.astuple(row) for row in rows])
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="s3mount-", buffering=0)  # noqa: SIM115
            self._file.seek(self._size)
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            folder = tempfile.gettempdir()
            kind = DiskFullError if error.errno == 28 else LocalDiskError
            raise kind(
                f"{folder} cannot hold what is being sorted: {error.strerror}; "
                "set TMPDIR to a folder with more room"
            ) from error
        chunk = Chunk(self._size, len(data))
        self._size += len(data)
        return chunk

    def get(self, chunk: Chunk) -> list[T]:
        """The rows of a chunk."""
        try:
            self._file.seek(chunk.offset)
            data = self._file.read(chunk.length)
        except OSError as error:
            raise LocalDiskError(f"a temporary file cannot be read: {error.strerror}") from error
        return [self._kind(*row) for row in msgspec.msgpack.decode(data)]

    def close(self) -> None:
        """Give the file up. Repeatable."""
        if self._file is not None:
            self._file.close()
            self._file = None

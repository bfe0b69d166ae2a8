"""One pack that is being filled: a tar file in a local file without a name, and what its index will say."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Literal, NamedTuple, TypeAlias

import msgspec

from s3mount.errors import DiskFullError, SourceError
from s3mount.pack import index
from s3mount.pack.entry import INDEX_NAME, MODE, Entry, check_name, padded, time_text
from s3mount.pack.headers import END, pax_header, v7_header
from s3mount.refs import FileSlice, Key
from s3mount.transfer.scratch import path_of, temporary
from s3mount.transfer.source import SourceChangedError

Layout: TypeAlias = Literal["pax", "v7"]
"""``v7``: only headers of 512 bytes, and no index within the tar file."""
READ_BYTES = 1 << 20
PACK_BYTES_MAX = 5 << 30
"""S3 takes no more by one PUT."""


class About(NamedTuple):
    """What a member is stored with beside its name and bytes."""

    mtime_ns: int
    mode: int = MODE
    uid: int = 0
    gid: int = 0
    metadata: dict[str, str] | None = None
    type: str = ""


def header_of(layout: Layout, name: str, size: int, about: About) -> bytes:
    """The headers that a member gets. Raises UsageError for a name that cannot be."""
    check_name(name)
    if layout == "v7":
        return v7_header(name, size, mode=about.mode, mtime_ns=about.mtime_ns)
    return pax_header(
        name, size, mode=about.mode, mtime_ns=about.mtime_ns, uid=about.uid, gid=about.gid
    )


class Batch:
    """A pack from its first member on, until S3 has it. ``add``... block; none is half there when one raises.

    Not for several threads at once.
    """

    def __init__(self, batch_id: str, key: Key, layout: Layout = "pax") -> None:
        self.id = batch_id
        self.key = key
        self.size = 0
        self.entries: list[Entry] = []
        self.is_finished = False
        self._layout = layout
        self._file: BinaryIO = temporary()

    def add(self, name: str, body: bytes, about: About) -> Entry:
        """A member from memory. Raises UsageError, DiskFullError."""
        header = header_of(self._layout, name, len(body), about)
        with self._whole():
            self._file.write(header)
            self._file.write(body)
            self._file.write(bytes(padded(len(body)) - len(body)))
        return self._added(name, len(header), len(body), hashlib.sha256(body).hexdigest(), about)

    def add_file(self, name: str, file: BinaryIO, size: int, about: About) -> Entry:
        """A member of ``size`` bytes from a file. Raises UsageError, DiskFullError, SourceError, SourceChangedError."""
        header = header_of(self._layout, name, size, about)
        digest = hashlib.sha256()
        with self._whole():
            self._file.write(header)
            left = size
            while left:
                data = _read(file, min(left, READ_BYTES))
                if not data:
                    raise SourceChangedError("the file became shorter while it was read")
                digest.update(data)
                self._file.write(data)
                left -= len(data)
            self._file.write(bytes(padded(size) - size))
        return self._added(name, len(header), size, digest.hexdigest(), about)

    def add_member(self, entry: Entry, member: IO[bytes]) -> Entry:
        """A member of another pack as it is there, headers included, with its place in the order of writes.

        ``member`` has the bytes from ``entry.header`` to ``entry.stop``.
        """
        length = entry.stop - entry.header
        with self._whole():
            shutil.copyfileobj(member, self._file)
            if self._file.tell() != self.size + length:
                raise SourceChangedError(f"a member of {length} bytes has another length")
        body = self.size + entry.body - entry.header
        moved = msgspec.structs.replace(entry, header=self.size, body=body)
        self.size += length
        self.entries.append(moved)
        return moved

    def add_tombstone(self, name: str, order: str = "") -> Entry:
        """From now on ``name`` is deleted, whatever earlier packs hold. Raises UsageError."""
        check_name(name)
        entry = Entry(name, deleted=True, order="" if order == self.id else order)
        self.entries.append(entry)
        return entry

    def _added(self, name: str, header_bytes: int, size: int, digest: str, about: About) -> Entry:
        entry = Entry(
            name,
            self.size,
            self.size + header_bytes,
            size,
            digest,
            time_text(about.mtime_ns),
            f"{about.mode & 0o7777:04o}",
            metadata=about.metadata,
            type=about.type,
        )
        self.size = entry.stop
        self.entries.append(entry)
        return entry

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What the block writes is there as a whole, or not at all. Raises DiskFullError."""
        try:
            yield
            self._file.flush()
        except BaseException as error:
            # Behind this place the next member is written, or the end.
            self._rewind()
            if isinstance(error, OSError):
                raise DiskFullError(f"a temporary file cannot be written: {error}") from error
            raise

    def _rewind(self) -> None:
        """Forget what lies behind the last whole member, and what is still buffered."""
        descriptor = os.dup(self._file.fileno())
        # What could not be written is what is to be forgotten.
        with contextlib.suppress(OSError):
            self._file.close()
        os.ftruncate(descriptor, self.size)
        os.lseek(descriptor, self.size, os.SEEK_SET)
        self._file = os.fdopen(descriptor, "r+b")

    def head(self, etag: str = "") -> index.Head:
        """The first line of its index: within the pack, or with ETag beside it."""
        pack = self.key.rpartition("/")[2]
        size = self.size if etag else 0
        return index.Head(index.VERSION, self.id, pack, size, etag)

    def finish(self) -> None:
        """Write the index as the last member, and the end. Once, before ``body``. Raises DiskFullError."""
        size = self.size
        with self._whole():
            if self._layout == "pax":
                inside = index.encode(self.head(), self.entries)
                newest = max((entry.mtime_ns or 0 for entry in self.entries), default=0)
                self._file.write(
                    pax_header(INDEX_NAME, len(inside), mode=MODE, mtime_ns=newest // 10**9 * 10**9)
                )
                self._file.write(inside)
                self._file.write(bytes(padded(len(inside)) - len(inside)))
            self._file.write(END)
            size = self._file.tell()
        self.size = size
        self.is_finished = True

    @property
    def body(self) -> FileSlice:
        """The tar file, as it is sent."""
        return FileSlice(path_of(self._file), 0, self.size)

    def index_body(self, etag: str) -> FileSlice:
        """The index that lies beside the pack, as it is sent. Raises DiskFullError."""
        data = index.encode(self.head(etag), self.entries)
        with self._whole():
            self._file.seek(self.size)
            self._file.write(data)
        return FileSlice(path_of(self._file), self.size, len(data))

    def close(self) -> None:
        """Give up the local file. Repeatable."""
        self._file.close()


def _read(file: BinaryIO, most: int) -> bytes:
    try:
        return file.read(most)
    except OSError as error:
        raise SourceError(f"it cannot be read: {error.strerror}") from error

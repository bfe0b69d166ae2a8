"""Blobs: the local files that hold what is written until S3 has it, and their folder."""

from __future__ import annotations

import errno
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3mount.crashpoints import crashpoint
from s3mount.errors import LocalDiskError
from s3mount.refs import ContentRef, FileSlice
from s3mount.s3.checksums import BLOCK_BYTES, crc64nvme
from s3mount.spool.blobs.block_checksums import BlockSums
from s3mount.spool.blobs.extents import Extents
from s3mount.transfer.parts import PartsUpload

UNCHANGED = 1 << 63
"""Behind the end of every file."""
COPY_CHUNK_BYTES = 8 << 20
READ_BYTES = 1 << 20

_buffer = memoryview(bytearray(BLOCK_BYTES))
"""Blocks are read into it to be checked: one at a time, in one thread."""


class Blob:
    """One file's content as written locally, possibly over a base that is still in S3.

    Bytes in ``extents`` are here. Other bytes below ``base_limit`` are those of ``base``; other
    bytes at or above it are zero. ``size`` is the content's size. The descriptor is opened when
    needed and closed by ``release``, so that many pending files cost no open descriptors.
    While it ``is_being_sent`` whole, nobody writes to it: who wants to clones it, and then it ``is_replaced``.
    ``filled`` are those of its bytes that came from the base since the file was last forced to the disk.
    ``sums`` tells what the file must hold. It ``is_dropped`` when the spool needs it no more: whoever still
    reads it is told that it is not there. It ``is_gone`` when its file was not found at the start; ``is_unsure``
    when S3 has what it stands for, but not by this run's sending: a power cut may have taken bytes of it.
    Below ``changed_from`` nothing was written since the base was taken: what is here below is the base's.
    One that ``is_reference`` is a link to a file of somebody's own, and is only read.
    With a ``fault`` it is not known what the file must hold: it is neither read nor written, until it is emptied.
    ``open_files`` counts who reads and writes it for programs. ``whole_crc`` is the CRC-32 of all its bytes, where
    they were read since they last changed.
    """

    __slots__ = (
        "_fd",
        "_folder",
        "_is_reference",
        "base",
        "base_limit",
        "changed_from",
        "extents",
        "fault",
        "filled",
        "id",
        "is_being_sent",
        "is_dropped",
        "is_gone",
        "is_replaced",
        "is_unsure",
        "open_files",
        "size",
        "sums",
        "upload",
        "was_synced",
        "whole_crc",
    )

    def __init__(
        self,
        blob_id: str,
        folder: str,
        *,
        size: int = 0,
        base: ContentRef | None = None,
        base_limit: int = 0,
        extents: Extents | None = None,
    ) -> None:
        self.id = blob_id
        self._folder = folder
        self.size = size
        self.base = base
        self.base_limit = base_limit if base else 0
        self.took(Extents() if extents is None else extents)
        self.filled: Extents | None = None
        self.sums = BlockSums()
        self.upload: PartsUpload | None = None
        self.is_being_sent = False
        self.is_replaced = False
        self.is_gone = False
        self.is_dropped = False
        self.open_files = 0
        self.is_unsure = False
        self.was_synced = False
        self.whole_crc: int | None = None
        self.fault = ""
        self._fd = -1
        self._is_reference: bool | None = None

    def took(self, extents: Extents) -> None:
        """These of its bytes are here, by an earlier run's telling: any of them may be other than the base's."""
        self.extents = extents
        self.changed_from = next((start for start, _ in extents), UNCHANGED)

    @property
    def location(self) -> str:
        """The path of its file."""
        return f"{self._folder}/{self.id}"

    @property
    def path(self) -> Path:
        """The path of its file, as a Path. Made when asked for: 100,000 of them would take 40 MiB."""
        return Path(self._folder, self.id)

    @property
    def fd(self) -> int:
        """An open descriptor for reading and writing. Raises OSError."""
        if self.fault:
            raise OSError(errno.EIO, self.fault)
        if self.is_dropped:
            raise FileNotFoundError(errno.ENOENT, "it was removed from the spool", self.location)
        if self._fd < 0:
            access = os.O_RDONLY if self.is_reference else os.O_RDWR
            self._fd = os.open(self.location, access | os.O_CLOEXEC)
        return self._fd

    @property
    def is_reference(self) -> bool:
        """Is it a link to somebody's file, which is not the spool's to change?"""
        if self._is_reference is None:
            self._is_reference = os.path.islink(self.location)
        return self._is_reference

    @property
    def held_bytes(self) -> int:
        """What it takes of the spool's room: nothing, where the bytes are somebody's file."""
        return 0 if self.is_reference else self.extents.total

    @property
    def place(self) -> int | str:
        """The descriptor, if it is open, else the path: for calls that take either."""
        return self._fd if self._fd >= 0 else self.location

    def hold(self, fd: int) -> None:
        """Take over the open descriptor of the file, which is the spool's own."""
        self._fd = fd
        self._is_reference = False

    def release(self) -> None:
        """Close the descriptor, if it is open; the next use opens it again."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges of ``[start, stop)`` whose bytes are only in the base."""
        if self.base is None:
            return []
        return self.extents.missing(start, min(stop, self.base_limit))

    def is_hole(self, start: int, stop: int) -> bool:
        """Are these bytes, all below the size, zeros because nobody wrote them, here or in the base?"""
        if self.base is not None and start < self.base_limit:
            return False
        return not self.extents.touches(start, stop) and not self.sums.touches(start, stop)

    @property
    def complete(self) -> bool:
        """Is every byte here?"""
        return not self.missing(0, self.base_limit)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes at ``offset``, cut at the size; what is ``missing`` there comes as zeros. Raises OSError."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        data = os.pread(self.fd, length, offset)
        if len(data) < length:
            data += bytes(length - len(data))
        return data

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """What is read to be sent leaves no descriptor open that was not."""
        was_open = self._fd >= 0
        try:
            yield
        finally:
            if not was_open:
                self.release()

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Put ``data`` at ``offset``; how many bytes the spool grew by. Raises OSError (ENOSPC...).

        After an error the bytes written so far count as written.
        """
        self.whole_crc = None
        before, end = self.extents.total, self.size
        view = memoryview(data)
        at = offset
        if self.upload is not None and view:
            # First, so that a kill in between cannot leave a part that counts as sent and is not.
            # A write behind the end makes the last part longer, by zeros.
            self.upload.wrote(min(offset, end), offset + len(view))
        sums = self.sums.prepare(offset, view, self.size, self._pread) if view else []
        try:
            while view:
                done = os.pwrite(self.fd, view, at)
                at += done
                view = view[done:]
            self.sums.commit(offset, sums)
            crashpoint("blob: written")
        finally:
            if view:
                self.sums.lose(offset, at + len(view))
            if at > offset:
                self.extents.add(offset, at)
                self.changed_from = min(self.changed_from, offset)
                if self.filled is not None:
                    self.filled.remove(offset, at)
                self.size = max(self.size, at)
        return self.extents.total - before

    def append(self, source_fd: int, stop: int) -> None:
        """Take the bytes of another file from the end of this one up to ``stop``, by the kernel where it can.

        A reference has them already. Blocks; once begun, for this blob's caller alone. Raises OSError.
        """
        self.whole_crc = None
        start = self.size
        if not self.is_reference:
            _copy_range(source_fd, self.fd, start, stop - start)
        buffer = memoryview(bytearray(min(READ_BYTES, stop - start)))
        while self.size < stop:
            length = os.preadv(self.fd, [buffer[: stop - self.size]], self.size)
            if not length:
                raise OSError(errno.EIO, "it is shorter than it was")
            at = self.size
            self.sums.commit(at, self.sums.prepare(at, buffer[:length], at, self._pread))
            self.size = at + length
        self.extents.add(start, stop)
        self.changed_from = min(self.changed_from, start)

    def _pread(self, offset: int, length: int) -> memoryview:
        """Up to a block of the file, in a buffer that the next call overwrites."""
        return _buffer[: os.preadv(self.fd, [_buffer[:length]], offset)]

    def fill(self, offset: int, data: bytes) -> int:
        """Put bytes of the base where nothing newer is; how many bytes the spool grew by. Raises OSError."""
        self.whole_crc = None
        before = self.extents.total
        for start, stop in self.missing(offset, offset + len(data)):
            self._put_base(start, memoryview(data)[start - offset : stop - offset])
            self.extents.add(start, stop)
            if self.filled is None:
                self.filled = Extents()
            self.filled.add(start, stop)
        return self.extents.total - before

    def _put_base(self, start: int, piece: memoryview) -> None:
        sums = self.sums.prepare(start, piece, self.size, self._pread)
        try:
            done = 0
            while done < len(piece):
                done += os.pwrite(self.fd, piece[done:], start + done)
        except OSError:
            self.sums.lose(start, start + len(piece))
            raise
        self.sums.commit(start, sums)

    def truncate(self, size: int) -> int:
        """Set the size; what is cut off is gone, what is added is zero. How many bytes the spool shrank by."""
        self.whole_crc = None
        before = self.extents.total
        if not size:
            self.fault = ""
        if self.upload is not None and size < self.size:
            self.upload.cut(size)
        elif self.upload is not None and size > self.size:
            self.upload.wrote(self.size, size)
        if size < self.size:
            self.sums.cut(size, self._pread)
        os.ftruncate(self.fd, size)
        self.changed_from = min(self.changed_from, size)
        crashpoint("blob: truncated")
        if size < self.size:
            self.extents.cut(size)
            self.base_limit = min(self.base_limit, size)
        self.size = size
        return before - self.extents.total

    def body(self, start: int, stop: int) -> FileSlice:
        """The bytes from ``start`` to ``stop`` as a body to send, with the checksum that they must have.

        Raises DamagedBlockError where a part of a block had to be read, and OSError.
        """
        with self.as_it_was():
            expected = self.sums.of_range(start, stop, self._pread) if stop > start else None
        return FileSlice(self.location, start, stop - start, expected)

    def read_checked(self) -> bytes:
        """The whole content, for small ones. Raises DamagedBlockError when the disk altered it, OSError."""
        with self.as_it_was():
            data = self.read(0, self.size)
            if data and self.sums.of_range(0, self.size, self._pread) not in (
                None,
                crc64nvme(data),
            ):
                self.check(0, self.size)
        self.whole_crc = zlib.crc32(data)
        return data

    def check(self, start: int, stop: int) -> None:
        """Read a range. Raises DamagedBlockError when it is not what was written, and OSError."""
        with self.as_it_was():
            self.sums.check(start, min(stop, self.size), self._pread)

    @property
    def is_longer(self) -> bool:
        """Has it all of its base's length, and more behind it?"""
        base = self.base
        return base is not None and self.base_limit == base.size < self.size

    def detach(self) -> None:
        """Forget the base: every byte is here now, or holes are meant to be zero."""
        self.base = None
        self.base_limit = 0
        self.filled = None


class BlobFolder:
    """The folder that holds the blobs of one spool."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LocalDiskError(
                f"cannot use the spool folder {folder}: {error.strerror}"
            ) from error

    def create(self) -> Blob:
        """A new, empty blob. Raises OSError."""
        blob_id = secrets.token_hex(10)
        blob = Blob(blob_id, self._folder)
        blob.hold(os.open(blob.location, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        crashpoint("blob: created")
        return blob

    def refer(self, path: str) -> Blob:
        """A new blob that is a link to the file at ``path``, still empty. Raises OSError."""
        blob = Blob(secrets.token_hex(10), self._folder)
        os.symlink(path, blob.location)
        crashpoint("blob: created")
        return blob

    def described(
        self,
        blob_id: str,
        *,
        size: int = 0,
        base: ContentRef | None = None,
        base_limit: int = 0,
        extents: Extents | None = None,
    ) -> Blob:
        """The blob with this id, as the journal describes it; its file is not looked at."""
        return Blob(
            blob_id, self._folder, size=size, base=base, base_limit=base_limit, extents=extents
        )

    def clone(self, blob: Blob) -> Blob:
        """A copy of ``blob`` that can change while the original is being sent. Raises OSError."""
        copy = self.create()
        for start, stop in blob.extents:
            _copy_range(blob.fd, copy.fd, start, stop - start)
        copy.truncate(blob.size)
        copy.sums = blob.sums.copy()
        copy.base, copy.base_limit = blob.base, blob.base_limit
        copy.extents = Extents(blob.extents)
        copy.changed_from = blob.changed_from
        copy.filled = None if blob.filled is None else Extents(blob.filled)
        copy.was_synced = blob.was_synced
        crashpoint("blob: cloned")
        return copy

    def ids(self) -> set[str]:
        """The ids of all blobs in the folder. Raises OSError."""
        return set(self.sizes())

    def path_of(self, blob_id: str) -> Path:
        """Where the blob with this id lies."""
        return Path(self._folder, blob_id)

    def size_of(self, blob_id: str) -> int | None:
        """The size in bytes of one blob's file, ``None`` when it is gone. Raises OSError."""
        try:
            return os.stat(f"{self._folder}/{blob_id}").st_size
        except FileNotFoundError:
            return None

    def sizes(self) -> dict[str, int]:
        """The sizes in bytes of all blobs in the folder, by id. Raises OSError."""
        with os.scandir(self._folder) as entries:
            return {each.name: each.stat().st_size for each in entries if each.is_file()}


def _copy_range(source_fd: int, target_fd: int, offset: int, length: int) -> None:
    """Copy bytes between files at the same offset, by the kernel where it can (reflink on XFS and btrfs)."""
    at = offset
    left = length
    while left:
        try:
            done = os.copy_file_range(source_fd, target_fd, left, at, at)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            done = os.pwrite(target_fd, os.pread(source_fd, min(left, COPY_CHUNK_BYTES), at), at)
        if done == 0:
            raise OSError(errno.EIO, "a file is shorter than it was")
        at += done
        left -= done

"""Recovery of a blob that an earlier run left: as the disk has it, or as its row tells."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator

import msgspec

from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.blobs.extents import Extents
from s3mount.spool.journal.changes import Put
from s3mount.spool.journal.journal import Journal

log = logging.getLogger(__name__)

SPARSE_BYTES_MIN = 64 << 10
"""Holes of smaller files are not worth a look."""


def follow_disk(change: Put, blob: Blob, on_disk_bytes: int, *, is_rebooted: bool) -> None:
    """Kill -9 came after writes or a truncate that were not journalled yet: the file is as they left it.

    A power cut leaves files as it comes: then the row tells the size, and checksums what is damaged.
    """
    if is_rebooted:
        os.ftruncate(blob.fd, blob.size)
        blob.release()
        return
    if on_disk_bytes > blob.size:
        blob.extents.add(blob.size, on_disk_bytes)
        blob.changed_from = min(blob.changed_from, blob.size)
    elif on_disk_bytes < blob.size and blob.sums.is_settled:
        # Not by us: it keeps its size, is found to be damaged when it is its turn, and waits for a person.
        log.error("%r is shorter on disk than it was written: %s", change.key, blob.path)
        return
    elif on_disk_bytes < blob.size:
        log.warning("%r was cut to %d bytes and not closed", change.key, on_disk_bytes)
        blob.extents.cut(on_disk_bytes)
        blob.base_limit = min(blob.base_limit, on_disk_bytes)
        blob.changed_from = min(blob.changed_from, on_disk_bytes)
    change.size = blob.size = on_disk_bytes


def recall_filled(blob: Blob, change: Put, *, is_rebooted: bool) -> None:
    """Bytes of the base that were brought to a synced file, and not forced to the disk with it.

    A power cut may have taken them; the base has them still.
    """
    filled = Extents(change.filled)
    if not is_rebooted:
        blob.filled = filled
    elif blob.base is not None:
        blob.took(
            Extents(kept for start, stop in blob.extents for kept in filled.missing(start, stop))
        )


def data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """Where in a file something lies on the disk; all of it, where the file system does not tell. Raises OSError."""
    stop, size = 0, os.fstat(descriptor).st_size
    while stop < size:
        try:
            start = os.lseek(descriptor, stop, os.SEEK_DATA)
            stop = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            start, stop = stop, size
        yield start, stop


def extents_of(change: Put, path: str) -> Extents:
    """Which bytes of the blob at ``path`` are here: a hole takes no room, and is not there. Raises OSError."""
    if change.base is not None:
        return Extents(change.extents)
    # Also where a row was written before its blob was described.
    found = Extents([(0, change.size)])
    with contextlib.suppress(FileNotFoundError):
        on_disk = os.stat(path)
        if on_disk.st_size >= SPARSE_BYTES_MIN and on_disk.st_blocks * 512 < on_disk.st_size:
            with open(path, "rb", buffering=0) as file:
                found = Extents(data_ranges(file.fileno()))
            found.cut(change.size)
    return found


def settle(journal: Journal, change: Put, unsettled: set[str], *, is_settled: bool) -> None:
    """Let the journal say that the checksums of a blob are to be trusted, or that they are not."""
    blob_id = change.blob_id
    if is_settled and blob_id in unsettled:
        journal.record([change], settled=[blob_id])
        unsettled.discard(blob_id)
    elif not is_settled and blob_id not in unsettled:
        journal.unsettle(blob_id)
        unsettled.add(blob_id)


def tell_from_earlier(change: Put) -> None:
    """The blob was written after the row: what S3 may have with the row's ctime is not what it holds."""
    if change.attributes is not None:
        later_ns = told_from_earlier(change.attributes.ctime_ns)
        change.attributes = msgspec.structs.replace(change.attributes, ctime_ns=later_ns)


def told_from_earlier(ctime_ns: int) -> int:
    """The ctime that such a blob is sent with; the row keeps its own."""
    return ctime_ns + 1

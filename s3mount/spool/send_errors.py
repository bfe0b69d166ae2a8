"""Errors by which a try to send a change can end, beside what S3 itself reports."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

from s3mount.errors import S3MountError, StoreError
from s3mount.refs import ContentRef, Key, PutResult
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.blobs.block_checksums import DamagedBlockError

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """What S3 has now: the answer, and how many bytes that were. ``is_copied``: it had them already."""

    result: PutResult
    size: int
    is_copied: bool = False

    def ref(self, key: Key) -> ContentRef:
        """The bytes, under ``key``."""
        return ContentRef(key, self.result.etag, self.size, self.result.version_id)


class TryAgain(S3MountError):
    """The try is void, not failed: begin it again at once."""

    retryable = True


class ForeignWriteError(StoreError):
    """Somebody else wrote the key first."""


class NothingLeftError(StoreError):
    """Somebody else replaced the version whose attributes were to be changed."""


class SourceGoneError(StoreError):
    """Somebody else replaced or removed what was to be moved, before S3 copied it."""


class BlobGoneError(S3MountError):
    """The blob is not in the spool any more, and S3 does not have what it held."""


class BaseGoneError(S3MountError):
    """The version that a change is laid over cannot be read any more."""


class DamagedBlobError(S3MountError):
    """The disk altered what was written to the spool: it must not be sent, and waits for a person."""


def damage_of(blob: Blob, start: int, stop: int, error: Exception) -> S3MountError:
    """What it means that a body from ``start`` to ``stop`` was not as expected.

    The file may have been written while it was read: then it is as it should be now. Or it was removed
    meanwhile: then that is all. Raises OSError.
    """
    if blob.is_dropped:
        return TryAgain("removed while it was read")
    try:
        blob.check(start, stop)
    except DamagedBlockError as found:
        if blob.is_reference:
            path = os.path.realpath(blob.location)
            return DamagedBlobError(
                f"{path} was changed after it was handed over by reference, so it is not sent: send it again"
            )
        return DamagedBlobError(
            f"its bytes at {found.offset} in {blob.location} are not those that were written (a failing "
            "disk?), so it is not sent: write the file again, or discard it"
        )
    if os.fstat(blob.fd).st_size < blob.size:
        # Lost with a power cut: a tail of nothing but zeros.
        os.ftruncate(blob.fd, blob.size)
    log.info("%s was written while it was read: %s", blob.location, error)
    return TryAgain("written while it was read")


class StaleUploadError(StoreError):
    """The multipart upload that was to be continued is gone; a new one is begun."""

    retryable = True

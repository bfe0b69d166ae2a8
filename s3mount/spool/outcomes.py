"""How a try to send a change can end, beside success and what S3 itself reports."""

from __future__ import annotations

from typing import NamedTuple

from s3mount.errors import S3MountError, StoreError
from s3mount.refs import ContentRef, Key, PutResult


class Stored(NamedTuple):
    """What S3 has now: the answer, and how many bytes that were."""

    result: PutResult
    size: int

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


class BaseGoneError(S3MountError):
    """The version that a change is laid over cannot be read any more."""


class StaleUploadError(StoreError):
    """The multipart upload that was to be continued is gone; a new one is begun."""

    retryable = True

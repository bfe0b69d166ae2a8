"""Names and keys: which path a key has, and which keys have none."""

from __future__ import annotations

import errno

from s3mount.names import NAME_BYTES_MAX, is_name
from s3mount.refs import Key

__all__ = ["KEY_BYTES_MAX", "NAME_BYTES_MAX", "check_key", "is_name", "name_of"]

KEY_BYTES_MAX = 1024
"""S3's limit for a key in UTF-8."""


def name_of(raw: bytes) -> str:
    """A file name from the kernel as text. Raises OSError: EILSEQ (no UTF-8), ENAMETOOLONG."""
    if len(raw) > NAME_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, "name is longer than 255 bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, "S3 keys are UTF-8") from None


def check_key(key: Key) -> Key:
    """The key itself. Raises OSError with ENAMETOOLONG when S3 could not hold it."""
    if len(key) > KEY_BYTES_MAX // 4 and len(key.encode()) > KEY_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, "key is longer than 1,024 bytes")
    return key

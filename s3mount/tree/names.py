"""Names and keys: which path a key has, and which keys have none."""

from __future__ import annotations

import errno

from s3mount.refs import Key

NAME_BYTES_MAX = 255
"""Linux's NAME_MAX."""
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


def is_name(text: str) -> bool:
    """Can ``text`` be the name of a file? Not empty, not ``.`` or ``..``, no NUL or slash, not too long.

    >>> [is_name(t) for t in ("a", "", ".", "..", "a/b", "x" * 256)]
    [True, False, False, False, False, False]
    """
    if not text or text in (".", "..") or "/" in text or "\0" in text:
        return False
    return (
        len(text) <= NAME_BYTES_MAX // 4 or len(text.encode("utf-8", "replace")) <= NAME_BYTES_MAX
    )

"""Which errno a program gets for which error, in one table."""

from __future__ import annotations

import errno

from s3mount import errors

TABLE: tuple[tuple[type[Exception], int], ...] = (
    (errors.NoSuchKeyError, errno.ENOENT),
    # Without its bucket nothing is known of a name: it is not said to be missing.
    (errors.NoSuchBucketError, errno.EIO),
    (errors.AccessDeniedError, errno.EACCES),
    # Not a matter of rights: s3mount restore brings it back.
    (errors.ArchivedError, errno.EIO),
    (errors.NoCredentialsError, errno.EACCES),
    (errors.WrongRegionError, errno.EIO),
    # The pinned version is gone: what was opened no longer exists anywhere.
    (errors.PreconditionFailedError, errno.ESTALE),
    (errors.ConflictError, errno.EAGAIN),
    (errors.RangeError, errno.EIO),
    (errors.CustomerKeyError, errno.EACCES),
    (errors.RejectedError, errno.EIO),
    (errors.ChecksumError, errno.EIO),
    (errors.ThrottledError, errno.EIO),
    (errors.ServerFaultError, errno.EIO),
    (errors.NetworkError, errno.EIO),
    (errors.DeadlineError, errno.ETIMEDOUT),
    (errors.StoreError, errno.EIO),
    (errors.DiskFullError, errno.ENOSPC),
    (errors.LocalDiskError, errno.EIO),
    (errors.InternalError, errno.EIO),
    (errors.S3MountError, errno.EIO),
)


def errno_of(error: Exception) -> int:
    """The errno for ``error``: an OSError's own, else the first row of ``TABLE`` that fits, else EIO."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    for kind, number in TABLE:
        if isinstance(error, kind):
            return number
    return errno.EIO

"""The error tree: one type per thing a caller can do about it.

Every error knows the exit status of a command that ends with it, whether trying the same
again may help, and a message that is one clear line for a person. Foreign exceptions are
mapped to these at the boundary where they arise, and nowhere else.
"""

from __future__ import annotations


class S3MountError(Exception):
    """Base of all errors that s3mount raises on purpose. ``str(error)`` is one line for a person."""

    exit_code = 1
    retryable = False


class UsageError(S3MountError):
    """The command line, a variable or a configuration value is wrong; nothing was touched."""

    exit_code = 2


class MountError(S3MountError):
    """The mount could not be made or ended: no /dev/fuse, a bad mount point, already mounted."""


class StateInUseError(S3MountError):
    """Another live process owns the state folder; the message names its pid."""


class LocalDiskError(S3MountError):
    """The spool, the journal or the cache cannot be used: unwritable, damaged or full."""


class DiskFullError(LocalDiskError):
    """The disk below the spool, the journal or the cache has no room left."""


class OutputError(S3MountError):
    """What a command printed cannot be written to standard output."""


class InternalError(S3MountError):
    """A fault of s3mount itself, at one file; the log has its traceback."""


class EngineError(S3MountError):
    """The engine process cannot be started or keeps dying."""

    retryable = True


class ManifestError(S3MountError):
    """A manifest cannot be read or written; the message names the file, and the line where there is one."""


class PackError(S3MountError):
    """A pack, a tar file or the index of one cannot be read; the message names it."""


class PackFullError(S3MountError):
    """So much waits for S3 already that to put more would have to wait; nothing was taken."""

    retryable = True


class ObjectExistsError(S3MountError):
    """There is an object where one is to be put, and it may not be replaced."""

    exit_code = 3


class UploadExistsError(S3MountError):
    """The key has an unfinished upload, and nothing says whether to go on with it or to drop it."""

    exit_code = 4


class SourceError(S3MountError):
    """What is to be read does not exist, cannot be read, or is of a kind that the command does not know."""

    exit_code = 5


class DestinationError(S3MountError):
    """Nothing can be written there: no such folder, a name that cannot be, a kind that takes nothing."""

    exit_code = 6


class LocationError(S3MountError):
    """An s3:// URL that names no bucket or key."""

    exit_code = 7


class PartSizeError(S3MountError):
    """Parts of this size cannot be: outside of what S3 takes, too many, or other than those already sent."""

    exit_code = 8


class AlgorithmError(S3MountError):
    """There is no such digest."""

    exit_code = 9


class EncryptionKeyError(S3MountError):
    """A key for SSE-C that is none: unreadable, or not of 32 bytes."""

    exit_code = 10


class FileExistsHereError(S3MountError):
    """There is a file where one is to be written, and it may not be replaced."""

    exit_code = 11


class DownloadExistsError(S3MountError):
    """There is an unfinished download, and nothing says whether to go on with it or to discard it."""

    exit_code = 12


class SeveralUploadsError(S3MountError):
    """The key has several unfinished uploads: which one to go on with is not known."""

    exit_code = 13


class StoreError(S3MountError):
    """S3 refused or failed. ``key`` and ``request_id`` help to find it in the provider's logs.

    ``status`` is the HTTP status (0: no answer) and ``code`` S3's error code (may be empty).
    ``retry_after_s`` is the pause that the store asked for, if it did. ``is_bare``: refused by an answer
    without a body (to HEAD) that has nothing of S3 on it, so that a request with a body must confirm it.
    """

    retry_after_s: float | None = None
    is_bare = False

    def __init__(
        self, message: str, *, key: str = "", status: int = 0, code: str = "", request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.key = key
        self.status = status
        self.code = code
        self.request_id = request_id

    def describe(self, *, of: str = "") -> str:
        """The error with its key, unless that is ``of``, code and request id, for logs."""
        parts = [str(self)]
        if self.key and self.key != of:
            parts.append(f"key={self.key!r}")
        if self.code or self.status:
            parts.append(f"s3={self.status} {self.code}".rstrip())
        if self.request_id:
            parts.append(f"request-id={self.request_id}")
        return " ".join(parts)


class NoSuchKeyError(StoreError):
    """404: the key, the version or the upload does not exist (any more)."""


class NoSuchBucketError(StoreError):
    """404 NoSuchBucket: the bucket does not exist (any more)."""


class AccessDeniedError(StoreError):
    """401/403: these credentials may not do this (or are wrong or expired)."""


class ExpiredCredentialsError(AccessDeniedError):
    """The session token has expired: passes when somebody logs in again, or boto3 finds a fresh one."""


class NoCredentialsError(StoreError):
    """boto3 found no credentials at all."""


class WrongRegionError(StoreError):
    """301/307/400: the bucket lives in another region; the message names it where known."""


class PreconditionFailedError(StoreError):
    """412: If-Match or If-None-Match did not hold; somebody else changed the key."""


class ConflictError(StoreError):
    """409: a conditional write met another one under way, or the bucket state forbids it; look again, then retry."""

    retryable = True


class RangeError(StoreError):
    """416: the range lies outside the object."""


class RejectedError(StoreError):
    """Any other 4xx: the request can never succeed as it is (key too long, too large, KMS, quota...)."""


class CustomerKeyError(RejectedError):
    """The object needs a key for SSE-C that was not given, or another one; or the store does not encrypt with it."""

    exit_code = 10


class DamagedBodyError(RejectedError):
    """The local bytes to send are not those that were written: the disk changed or lost them. Nothing was sent."""


class ArchivedError(StoreError):
    """403 InvalidObjectState: the object is archived and must be restored before it can be read."""


class ChecksumError(StoreError):
    """Bytes changed on the way: the digest sent or received does not match."""

    retryable = True


class ThrottledError(StoreError):
    """503 SlowDown, 429 and their kin: the store asks for fewer requests."""

    retryable = True


class ServerFaultError(StoreError):
    """5xx, or an answer that is no HTTP or no S3."""

    retryable = True


class StuckListError(ServerFaultError):
    """A page of a list that does not advance, or brings nothing but what came before."""


class NetworkError(StoreError):
    """No connection: name not found, refused, unreachable, reset, TLS failure."""

    retryable = True


class NotS3Error(NetworkError):
    """An answer that is not S3's: what something between the mount and the store says, or half an answer.

    It tells nothing about the key; a write may or may not have taken effect. The message names what came.
    """


class CertificateError(NetworkError):
    """The server's certificate is not trusted, out of date or for another name: passes when the server gets
    another one, or this machine's certificates do. Not tried again at once."""

    retryable = False


class DeadlineError(StoreError):
    """The request outlived its deadline and was cancelled."""

    retryable = True


def leaf_of(error: BaseException) -> BaseException:
    """The error to tell of: in a group the first S3MountError, else the first of all."""
    leaves: list[BaseException] = []
    waiting = [error]
    while waiting:
        found = waiting.pop(0)
        if isinstance(found, BaseExceptionGroup):
            waiting.extend(found.exceptions)
        else:
            leaves.append(found)
    return next((leaf for leaf in leaves if isinstance(leaf, S3MountError)), leaves[0])


def reason(error: S3MountError) -> str:
    """Why one of many files or objects failed, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, StoreError) and error.request_id:
        return f"{text} (request {error.request_id})"
    return text


def unwrapped(error: BaseException) -> BaseException:
    """The one error that groups are wrapped around; the outermost group of several errors."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

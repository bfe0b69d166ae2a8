"""``s3mount generate-sse-key``: a new key for SSE-C in a file of its own."""

from __future__ import annotations

import os

import click

from s3mount.errors import DestinationError, FileExistsHereError

KEY_BYTES = 32


@click.command("generate-sse-key", short_help="Make a key for SSE-C.")
@click.argument("path", metavar="FILE")
def generate_sse_key(path: str) -> int:
    """Write 32 random bytes to FILE, which only you may read, and which must not be there yet.

    Whoever loses it loses all that is encrypted with it: S3 does not keep it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise FileExistsHereError(f"{path} exists, and a key is never replaced") from None
    except OSError as error:
        raise DestinationError(f"{path}: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as file:
            # Whatever the umask takes away, and it may.
            os.fchmod(descriptor, 0o600)
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        os.unlink(path)
        raise DestinationError(f"{path}: {error.strerror}") from error
    return 0

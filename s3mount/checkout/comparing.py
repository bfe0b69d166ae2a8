"""Is a file that is there already the wanted version? Reads it where its stat alone does not tell."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from s3mount.checkout.digests import Row
from s3mount.manifest.model import Entry
from s3mount.refs import ObjectDigests
from s3mount.transfer import proving


class Verdict(NamedTuple):
    """What was found of a file: ``is_right`` is ``None`` where nothing could be compared."""

    is_right: bool | None
    digest: bytes
    found: os.stat_result


def compare(
    descriptor: int, entry: Entry, row: Row | None, digests: ObjectDigests | None = None
) -> Verdict:
    """Does the open file hold ``entry``? ``digests`` is what the store told of it, if it was asked.

    Blocks; reads it whole, once where possible. Raises OSError; with EBUSY when it changed while it was read.
    """
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode) or entry.size not in (None, before.st_size):
        return Verdict(False, b"", before)
    known = row is not None and row.holds(entry) and row.size == before.st_size
    hashes = proving.hash_file(
        descriptor, before.st_size, "" if known else entry.etag, None, digests
    )
    after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise OSError(errno.EBUSY, "it changed while it was read")
    if known:
        assert row is not None
        return Verdict(hashes.digest == row.digest, hashes.digest, after)
    return Verdict(hashes.is_right, hashes.digest, after)

"""Orphan blobs, which no row of the journal names: whose they are, by their labels, and what to do with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from s3mount.refs import Key
from s3mount.spool.journal.changes import Change, Put
from s3mount.spool.journal.labels import read_label


class Orphan(NamedTuple):
    """One such blob. ``change`` is what it is for, if it can be adopted, else ``why`` tells why not.

    ``is_torn``: bytes of it are missing.
    """

    blob_id: str
    path: Path
    size: int
    key: Key
    change: Put | None
    why: str
    is_torn: bool = False


NOBODYS = "it belongs to nobody: it was never closed or synced, or S3 has it"


def judge(path: Path, changes: Mapping[Key, Change]) -> Orphan:
    """Look at the blob at ``path``, which is in none of ``changes``. Raises OSError."""
    size = os.stat(path).st_size
    change = read_label(path)
    if change is None:
        return Orphan(path.name, path, size, "", None, NOBODYS)
    why = ""
    there = changes.get(change.key)
    if not isinstance(change, Put) or change.blob_id != path.name:
        why = "its label is another blob's"
        return Orphan(path.name, path, size, change.key, None, why)
    # The bytes may have changed since it was written; only the journal would know.
    change.sums = b""
    if there is not None and there.seq >= change.seq:
        why = "a later change of the same file is there"
    elif size < change.size:
        why = f"of its {change.size} bytes {size} are there"
        return Orphan(path.name, path, size, change.key, None, why, is_torn=True)
    return Orphan(path.name, path, size, change.key, None if why else change, why)

"""Which keys a restore concerns, and which it may delete: only what the manifest would name, had it been there."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from s3mount.errors import ManifestError, UsageError
from s3mount.manifest.location import is_in_s3, keys_at
from s3mount.manifest.model import Entry
from s3mount.manifest.scope import Scopes
from s3mount.names import normal_prefix
from s3mount.refs import Key, ObjectVersion
from s3mount.s3.headers import is_md5_etag


class Selection(msgspec.Struct, frozen=True):
    """Which keys of one bucket a restore concerns: those below ``prefix``.

    ``deletes``: keys that the manifest does not name are deleted; else they stay, and ``counts_others``
    whether they are counted, which makes sense where the manifest lists all keys below the prefix.
    """

    bucket: str
    prefix: str
    deletes: bool = False
    counts_others: bool = False


class Own(msgspec.Struct, frozen=True):
    """The manifest that is restored: its objects' ``keys`` in this bucket, and the size and MD5 of its bytes.

    What holds it is never changed, so that an interrupted restore can be repeated.
    """

    keys: frozenset[Key] = frozenset()
    size: int = -1
    md5: str = ""

    def is_held_by(self, version: ObjectVersion) -> bool:
        """Is this version one of its objects, or a copy of it, as far as the ETag tells?"""
        if version.key in self.keys:
            return True
        return version.size == self.size and (
            version.etag == self.md5 or not is_md5_etag(version.etag)
        )


def shared_beginnings(entries: Iterable[Entry]) -> dict[str, str]:
    """What all keys of each bucket begin with: below it all their versions are listed."""
    ends: dict[str, tuple[Key, Key]] = {}
    for entry in entries:
        first, last = ends.get(entry.bucket, (entry.key, entry.key))
        ends[entry.bucket] = min(first, entry.key), max(last, entry.key)
    return {bucket: _shared(first, last) for bucket, (first, last) in ends.items()}


def _shared(first: str, last: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(character for character, _ in same)


def select(
    source: str, bucket: str, scopes: Scopes, shared: str, prefix: str | None, *, deletes: bool
) -> Selection:
    """What a restore of the manifest ``source`` concerns in ``bucket``: the folder ``prefix``, or all it names.

    ``shared``: what all its keys begin with. Raises UsageError where it ``deletes`` and nothing says which
    keys the manifest would name if they had been there.
    """
    scope = scopes.of(bucket)
    below = None if prefix is None else normal_prefix(prefix)
    if any(each.bucket == bucket and not each.is_whole for each in scopes.found):
        if deletes:
            raise UsageError(
                f"{source} lists what one mount has put, not all that was there, so --delete would delete what "
                "others wrote: leave it out, or restore a manifest that s3mount manifest create made"
            )
        scope = None
    if scope is not None and not shared.startswith(scope.prefix):
        scope = None
    if deletes and scope is None and below is None:
        why = "does not say that it lists all keys of a folder"
        if scopes.is_changed:
            why = f"was changed since it was written ({scopes.count:,} entries are there)"
        raise UsageError(
            f"{source} {why}, so nothing says which other keys --delete may delete: give the folder with --prefix "
            "('' for the whole bucket)"
        )
    is_known = scope is not None and (below is None or below.startswith(scope.prefix))
    if deletes and scope is not None and not is_known:
        raise UsageError(
            f"{source} lists the keys below s3://{bucket}/{scope.prefix} and tells nothing of others, so --delete "
            f"cannot go beyond: --prefix {below!r}"
        )
    if below is None:
        below = shared if scope is None else scope.prefix
    return Selection(bucket, below, deletes, counts_others=is_known)


def own_of(source: str, path: Path) -> tuple[str, Own]:
    """The bucket that the manifest ``source`` lies in, where it does, and what is known of it; ``path`` is its
    local copy. Raises ManifestError.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    bucket, keys = keys_at(source, path) if is_in_s3(source) else ("", ())
    return bucket, Own(frozenset(keys), size, digest.hexdigest())

"""Whether bytes that pass by are those of an ETag, also one of an upload in parts of unknown length."""

from __future__ import annotations

import hashlib

from s3mount.config import MIB, PART_BYTES_MAX
from s3mount.refs import ETag
from s3mount.s3.headers import is_md5_etag

TRIALS_MAX = 4
"""So many part lengths are tried in one pass; each takes 1.3 s a GiB."""

_USUAL_MIB = (8, 5, 16, 64, 128, 10, 32, 100, 256, 512, 15, 20, 25, 50)
"""What tools cut objects into, the AWS CLI first."""


def part_lengths(etag: ETag, size: int) -> list[int]:
    """Part lengths that give as many parts as ``etag`` tells, the usual ones first."""
    digest, dash, count_text = etag.rpartition("-")
    if not dash or not is_md5_etag(digest) or not count_text.isdecimal():
        return []
    count = int(count_text)
    if count == 1:
        return [max(size, 1)]
    if count < 1 or size < count:
        return []
    least = -(-size // count)
    most = min((size - 1) // (count - 1), PART_BYTES_MAX)
    whole_mib = range(-(-least // MIB), most // MIB + 1)
    found = [n * MIB for n in _USUAL_MIB if n in whole_mib]
    found += [n * MIB for n in whole_mib[:TRIALS_MAX]]
    found += [n for n in (-(-least // 10**6) * 10**6, least) if least <= n <= most]
    return list(dict.fromkeys(found))[:TRIALS_MAX]


class EtagTrial:
    """Takes an object's bytes in order. ``holds`` at the end: ``None`` where the ETag proves nothing."""

    def __init__(self, etag: ETag, size: int) -> None:
        self._etag = etag
        self._size = size
        self._plain = is_md5_etag(etag)
        self._trials = [_Parts(length) for length in part_lengths(etag, size)]
        self._whole = hashlib.md5(usedforsecurity=False)

    @property
    def proves(self) -> bool:
        """May the ETag be a digest of the bytes at all?"""
        return self._plain or bool(self._trials)

    def update(self, data: memoryview) -> None:
        """Take the next bytes; releases the GIL for long ones."""
        if self._plain:
            self._whole.update(data)
        for trial in self._trials:
            trial.update(data)

    def holds(self) -> bool | None:
        """Were these the bytes? ``None``: not known, as no part length that was tried fits."""
        if self._plain:
            return self._whole.hexdigest() == self._etag
        return True if any(trial.etag() == self._etag for trial in self._trials) else None


class _Parts:
    """The ETag of an upload in parts of one length."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._room = length
        self._part = hashlib.md5(usedforsecurity=False)
        self._digests = bytearray()
        self._count = 0

    def update(self, data: memoryview) -> None:
        while data:
            if not self._room:
                self._end_part()
            piece = data[: self._room]
            self._part.update(piece)
            self._room -= len(piece)
            data = data[len(piece) :]

    def _end_part(self) -> None:
        self._digests += self._part.digest()
        self._count += 1
        self._part = hashlib.md5(usedforsecurity=False)
        self._room = self._length

    def etag(self) -> ETag:
        self._end_part()
        return f"{hashlib.md5(self._digests, usedforsecurity=False).hexdigest()}-{self._count}"

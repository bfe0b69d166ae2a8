"""Deduplication: a content that S3 has already is copied there instead of sent.

Checksums find a content that may be the same; it counts as the same when the cache has it and every
byte agrees, or when it has the ETag that the local bytes would get.
"""

from __future__ import annotations

import logging
from array import array

import trio

from s3mount.cache.reader import CacheReader
from s3mount.dedupe.index import ContentIndex
from s3mount.dedupe.matcher import Candidate, DedupeMatcher
from s3mount.dedupe.proof import has_etag_of
from s3mount.dedupe.read_checksums import ReadChecksums, RecentReads
from s3mount.refs import ContentRef, Key
from s3mount.s3.checksums import BLOCK_BYTES, BLOCK_SHIFT
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import Delete, Put
from s3mount.spool.spool import Spool

log = logging.getLogger(__name__)

KNOWN_BYTES_MIN = 16 * 1024
"""Smaller files are sent in less time than it takes S3 to copy them."""
KNOWN_BYTES_MAX = 64 << 30
"""Larger files are sent as they are: their checksums alone would fill the index."""
COMPARED_BYTES = 1 << 20


class Deduplicator:
    """What one mount knows of contents in its bucket; with ``index`` of ``None`` nothing, and all is sent."""

    def __init__(
        self, spool: Spool, reader: CacheReader, index: ContentIndex | None, *, part_bytes: int
    ) -> None:
        self._spool = spool
        self._reader = reader
        self._index = index
        self._part_bytes = part_bytes
        self._tracks = RecentReads()

    def close(self) -> None:
        """Close the index. Repeatable."""
        if self._index is not None:
            self._index.close()

    # -------------------------------------------------------------------- learning

    def track(self, content: ContentRef) -> ReadChecksums | None:
        """Follows how ``content`` is read from now on; ``None`` where that is of no use."""
        if self._index is None or content.size < KNOWN_BYTES_MIN:
            return None
        return None if self._index.of(content) else self._tracks.of(content)

    def saw(self, track: ReadChecksums, offset: int, data: bytes) -> bool:
        """Bytes of a followed content were read; is it known now, so that it need not be followed further?"""
        if self._index is None or not data or not track.saw(offset, data):
            return False
        self._index.add(track.ref, [track.sums[block] for block in range(track.blocks)])
        self._tracks.done(track.ref)
        return True

    def stored(self, content: ContentRef, blob: Blob | None) -> None:
        """S3 has the bytes of ``blob`` as ``content``."""
        if self._index is None:
            return
        sums = None if blob is None else _sums_of(blob)
        if sums is None or blob is None or content.size != blob.size:
            self._index.forget(content.key)
        else:
            self._index.add(content, sums)

    def copied(self, source: ContentRef, content: ContentRef) -> None:
        """S3 copied ``source`` to ``content``."""
        known = None if self._index is None else self._index.of(source)
        if self._index is not None and known is not None:
            self._index.add(content, known.sums)

    def gone(self, key: Key) -> None:
        """What was known of ``key`` does not hold any more. Repeatable."""
        if self._index is not None:
            self._index.forget(key)

    # --------------------------------------------------------------------- finding

    def matcher(self, blob: Blob) -> DedupeMatcher | None:
        """Compares a file that is being written with the contents that begin like it; ``None``: there is none."""
        first = blob.sums.crc_of_block(0)
        if self._index is None or first is None or not blob.extents.covers(0, BLOCK_BYTES):
            return None
        found: list[Candidate] = [*self._index.beginning_with(first)]
        found += self._tracks.beginning_with(first)
        return DedupeMatcher(found) if found else None

    def still_matches(self, matcher: DedupeMatcher, blob: Blob) -> bool:
        """Is what was written so far the beginning of a known content? Then nothing is sent yet."""

        def sum_of(block: int) -> int | None:
            start = block << BLOCK_SHIFT
            if not blob.extents.covers(start, start + BLOCK_BYTES):
                return None
            return blob.sums.crc_of_block(block)

        return matcher.still_matches(blob.size, sum_of, blob.size >> BLOCK_SHIFT)

    async def find(self, change: Put) -> ContentRef | None:
        """A version in S3 with exactly the bytes of ``change``, proven; ``None`` when there is none to be found.

        Raises RejectedError and OSError when the spool cannot be read.
        """
        blob = self._spool.blob_of(change)
        sums = None if blob is None or self._index is None else _sums_of(blob)
        if blob is None or sums is None or self._index is None:
            await trio.lowlevel.checkpoint()
            return None
        known = self._index.beginning_with(sums[0], size=blob.size)
        found = [each.ref for each in known if array("Q", each.sums) == sums]
        if change.expected and change.expected_size == blob.size:
            replaced = ContentRef(change.key, change.expected, blob.size)
            if self._index.of(replaced) is None:
                found.append(replaced)
        # Under its own key only attributes change.
        found.sort(key=lambda ref: ref.key != change.key)
        for ref in found:
            if ref.key == change.key and ref.etag != change.expected:
                continue
            pending = self._spool.changes.get(ref.key)
            if isinstance(pending, Delete):
                # The copy would race with the deletion, both by our own hand.
                continue
            if await self._is_same(blob, ref):
                return ref
        return None

    async def _is_same(self, blob: Blob, content: ContentRef) -> bool:
        if self._reader.is_whole(content):
            same = await self._equals_cached(blob, content)
            if same is not None:
                return same
        return await has_etag_of(blob.location, blob.size, content, self._part_bytes)

    async def _equals_cached(self, blob: Blob, content: ContentRef) -> bool | None:
        """Byte by byte; ``None`` when the cache lost it meanwhile."""
        reader = self._reader.open(content)
        try:
            for offset in range(0, blob.size, COMPARED_BYTES):
                theirs = reader.read_now(offset, COMPARED_BYTES)
                if theirs is None:
                    return None
                if blob.read(offset, COMPARED_BYTES) != theirs:
                    return False
                await trio.lowlevel.checkpoint()
        finally:
            reader.close()
        return True


def _sums_of(blob: Blob) -> array[int] | None:
    """The checksums of all blocks; ``None`` where some are unknown, or the content is not all here, small or huge."""
    if not KNOWN_BYTES_MIN <= blob.size <= KNOWN_BYTES_MAX or not blob.complete:
        return None
    return blob.sums.of_whole(blob.size)

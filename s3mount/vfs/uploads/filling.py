"""Bytes between blobs and the cache: those of the version that a blob was laid over, and blobs that S3 has."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from s3mount.cache.reader import CacheReader
from s3mount.crashpoints import crashpoint
from s3mount.errors import (
    LocalDiskError,
    NoSuchKeyError,
    PreconditionFailedError,
    S3MountError,
)
from s3mount.refs import ContentRef
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.spool import Spool

log = logging.getLogger(__name__)

FILL_CHUNK_BYTES = 8 << 20
VERSION_RETRIES = 20
VERSION_RETRY_S = 0.05
"""A version that our own upload is just replacing is looked for again so often, and so soon."""


OnGone: TypeAlias = Callable[[Blob, ContentRef], Awaitable[ContentRef | None]]
"""Called when the base of a blob is gone: where the same bytes are, or, after a while, what is to be tried again."""


Aside: TypeAlias = dict[int, bytes]
"""Bytes of a base by their offset."""


class BlobFiller:
    """Fills blobs from their bases, through the cache, and makes them part of the cache."""

    def __init__(self, spool: Spool, reader: CacheReader, store: Store, part_bytes: int) -> None:
        self._spool = spool
        self._reader = reader
        self._store = store
        # Where only one part is sent anyway: of more those that nobody touched are copied inside S3.
        self.small_bytes_max = min(INLINE_BODY_BYTES_MAX, part_bytes)

    def to_cache(self, blob: Blob, content: ContentRef) -> None:
        """A blob that S3 has becomes the cache's copy of it, by rename where possible."""
        is_sure = blob.complete and not blob.is_unsure and not blob.is_reference
        is_moved = is_sure and self._reader.adopt(content, blob.path, blob.whole_crc)
        crashpoint("cache: adopted")
        self._spool.drop_blob(blob, keep_file=is_moved)

    async def fill_blob(
        self,
        blob: Blob,
        start: int,
        stop: int,
        on_gone: OnGone | None = None,
        *,
        aside: Aside | None = None,
    ) -> None:
        """Bring missing bytes of the base into ``blob``. Raises OSError, S3MountError.

        While the base is gone ``on_gone`` is called, a number of times; without one, and in the end, that is raised.
        What the disk has no room for goes to ``aside``, by its offset, where that is given: who reads needs no room.
        """
        stop = min(stop, blob.base_limit)
        for gap_start, gap_stop in blob.missing(start, stop):
            at = gap_start
            while at < gap_stop:
                length = min(FILL_CHUNK_BYTES, gap_stop - at)
                data = await self._read_base(blob, at, length, on_gone)
                if not data:
                    return
                try:
                    self._take(blob, at, data)
                except (OSError, LocalDiskError) as error:
                    if aside is None:
                        raise
                    log.info("what %s was is read, but not kept: %s", blob.id, error)
                    aside[at] = data
                at += len(data)

    def _take(self, blob: Blob, at: int, data: bytes) -> None:
        grown_bytes = blob.fill(at, data)
        if blob.id in self._spool.live_blobs:
            # Else it was dropped meanwhile, and is accounted for no more.
            self._spool.grew(grown_bytes)

    def _is_small(self, blob: Blob) -> bool:
        """Is something missing of a base that a single request brings?"""
        return blob.base_limit <= self.small_bytes_max and not blob.complete

    def fill_at_hand(self, blob: Blob) -> None:
        """Bring the rest of a small base into ``blob`` if the cache has it. Asks S3 for nothing. Repeatable."""
        base = blob.base
        if base is None or not self._is_small(blob):
            return
        reader = self._reader.open(base)
        try:
            data = reader.read_now(0, blob.base_limit)
            if data is not None:
                self._take(blob, 0, data)
        except (OSError, LocalDiskError) as error:
            log.info("what %r was stays in S3 alone: %s", base.key, error)
        finally:
            reader.close()

    async def complete_small(self, blob: Blob, on_gone: OnGone) -> None:
        """Before a change of a part is acknowledged: bring the rest of a small base, as far as it can be had.

        Then it can be sent, and kept beside what somebody else may put in its place, without that base.
        """
        base = blob.base
        if base is None or not self._is_small(blob):
            return
        if self._store.outage:
            self.fill_at_hand(blob)
            return
        try:
            await self.fill_blob(blob, 0, blob.base_limit, on_gone)
        except (OSError, S3MountError) as error:
            log.info("what %r was stays in S3 alone: %s", base.key, error)

    async def _read_base(
        self, blob: Blob, offset: int, length: int, on_gone: OnGone | None
    ) -> bytes:
        for _ in range(VERSION_RETRIES):
            base = blob.base
            if base is None or offset >= blob.base_limit:
                return b""
            reader = self._reader.open(base)
            try:
                return await reader.read(offset, min(length, blob.base_limit - offset))
            except (PreconditionFailedError, NoSuchKeyError):
                if on_gone is None:
                    raise
                again = await on_gone(blob, base)
                if blob.base == base:
                    blob.base = again
            finally:
                reader.close()
        raise OSError(errno.ESTALE, "the version below the change is gone")


def read_with(blob: Blob, aside: Aside, offset: int, length: int) -> bytes:
    """``Blob.read``, where bytes that are missing are taken from ``aside``. Raises OSError."""
    data = blob.read(offset, length)
    if not aside:
        return data
    whole, stop = bytearray(data), offset + len(data)
    for start, end in blob.missing(offset, stop):
        for at, part in aside.items():
            first, last = max(start, at), min(end, at + len(part))
            if first < last:
                whole[first - offset : last - offset] = part[first - at : last - at]
    return bytes(whole)

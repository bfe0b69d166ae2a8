"""Bytes of a blob that are still those of the version it was laid over: brought here when they are needed."""

from __future__ import annotations

import errno
import logging

import trio

from s3mount.errors import (
    LocalDiskError,
    NoSuchKeyError,
    PreconditionFailedError,
    S3MountError,
)
from s3mount.refs import ContentRef
from s3mount.s3.store import INLINE_BODY_BYTES_MAX
from s3mount.spool.blobs import Blob
from s3mount.spool.uploader import Uploader
from s3mount.vfs.state import MountState

log = logging.getLogger(__name__)

FILL_CHUNK_BYTES = 8 << 20
VERSION_RETRIES = 20
VERSION_RETRY_S = 0.05
"""A version that our own upload is just replacing is looked for again so often, and so soon."""


class BaseFiller:
    """Fills blobs from their bases, through the cache. ``uploader`` is set once it exists."""

    def __init__(self, state: MountState) -> None:
        self._state = state
        self.uploader: Uploader | None = None
        # Where only one part is sent anyway: of more those that nobody touched are copied inside S3.
        self.small_bytes_max = min(INLINE_BODY_BYTES_MAX, state.config.part_bytes)

    async def fill_blob(
        self, blob: Blob, start: int, stop: int, *, for_upload: bool = False
    ) -> None:
        """Bring missing bytes of the base into ``blob``. Raises OSError, S3MountError.

        The uploader itself (``for_upload``) is told at once when the base is gone.
        """
        stop = min(stop, blob.base_limit)
        for gap_start, gap_stop in blob.missing(start, stop):
            at = gap_start
            while at < gap_stop:
                length = min(FILL_CHUNK_BYTES, gap_stop - at)
                data = await self._read_base(blob, at, length, for_upload)
                if not data:
                    return
                self._take(blob, at, data)
                at += len(data)

    def _take(self, blob: Blob, at: int, data: bytes) -> None:
        grown_bytes = blob.fill(at, data)
        if blob.id in self._state.spool.live_blobs:
            # Else it was dropped meanwhile, and is accounted for no more.
            self._state.spool.grew(grown_bytes)

    def _is_small(self, blob: Blob) -> bool:
        """Is something missing of a base that a single request brings?"""
        return blob.base_limit <= self.small_bytes_max and not blob.complete

    def fill_at_hand(self, blob: Blob) -> None:
        """Bring the rest of a small base into ``blob`` if the cache has it. Asks S3 for nothing. Repeatable."""
        base = blob.base
        if base is None or not self._is_small(blob):
            return
        reader = self._state.reader.open(base)
        try:
            data = reader.read_now(0, blob.base_limit)
            if data is not None:
                self._take(blob, 0, data)
        except (OSError, LocalDiskError) as error:
            log.info("what %r was stays in S3 alone: %s", base.key, error)
        finally:
            reader.close()

    async def complete_small(self, blob: Blob) -> None:
        """Before a change of a part is acknowledged: bring the rest of a small base, as far as it can be had.

        Then it can be sent, and kept beside what somebody else may put in its place, without that base.
        """
        base = blob.base
        if base is None or not self._is_small(blob):
            return
        if self._state.store.outage:
            self.fill_at_hand(blob)
            return
        try:
            await self.fill_blob(blob, 0, blob.base_limit)
        except (OSError, S3MountError) as error:
            log.info("what %r was stays in S3 alone: %s", base.key, error)

    async def _read_base(self, blob: Blob, offset: int, length: int, for_upload: bool) -> bytes:
        for _ in range(VERSION_RETRIES):
            base = blob.base
            if base is None or offset >= blob.base_limit:
                return b""
            reader = self._state.reader.open(base)
            try:
                return await reader.read(offset, min(length, blob.base_limit - offset))
            except (PreconditionFailedError, NoSuchKeyError):
                if for_upload:
                    raise
                sending = self.uploader is not None and self.uploader.queue.is_sending(base.key)
                if blob.base == base and not sending:
                    again = await self.found_again(base)
                    if blob.base == base:
                        blob.base = again
                    continue
                await trio.sleep(VERSION_RETRY_S)
            finally:
                reader.close()
        raise OSError(errno.ESTALE, "the version below the change is gone")

    async def found_again(self, content: ContentRef) -> ContentRef:
        """The same bytes as a write of our own left them, of which nothing was heard.

        Raises PreconditionFailedError when somebody else replaced them, NoSuchKeyError when they are gone.
        """
        again = None if self.uploader is None else await self.uploader.sender.found_again(content)
        if again is None:
            raise PreconditionFailedError("somebody else replaced it", key=content.key, status=412)
        return again

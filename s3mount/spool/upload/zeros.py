"""Parts that are nothing but hole: one object of zeros is sent, and S3 makes the parts from it by copying.

The object has a temporary key, is there while uploads need it, shared by all that run at the same time, and
is removed then; after a kill by the next start (``stale_uploads``). Where S3 does not do as it should,
holes are sent like all else.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from s3mount.crashpoints import crashpoint
from s3mount.errors import (
    AccessDeniedError,
    ArchivedError,
    DamagedBodyError,
    ExpiredCredentialsError,
    NoSuchKeyError,
    PreconditionFailedError,
    RangeError,
    RejectedError,
)
from s3mount.flow.parts import PartPlan
from s3mount.names import trial_key
from s3mount.refs import (
    ByteRange,
    Condition,
    ContentRef,
    FileSlice,
    Key,
    ObjectHeaders,
    PartInfo,
)
from s3mount.s3.headers import is_md5_etag
from s3mount.s3.store import Store
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.blobs.block_checksums import DamagedBlockError, as_checksum, crc_of_zeros
from s3mount.spool.send_errors import damage_of
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.spool.upload.stale_uploads import StaleUploads
from s3mount.spool.upload.traffic import Traffic
from s3mount.transfer.digest import md5_of
from s3mount.transfer.multipart import NO_SUCH_UPLOAD
from s3mount.transfer.parts import PartsUpload

log = logging.getLogger(__name__)

WORTH_PARTS = 3
"""An object of zeros costs one part's bytes and two requests: holes of fewer parts are sent as they are."""
REMOVE_S = 10.0
"""How long an upload waits for the object's removal; later that is tried again in the background."""


class Zeros:
    """The objects of zeros of one mount, under temporary keys below ``prefix``.

    None is made before the store was seen to copy parts: then it was also seen that what is put can be removed.
    Each takes one of ``slots`` while it is sent.
    """

    def __init__(
        self,
        store: Store,
        plan: PartPlan,
        stale_uploads: StaleUploads,
        slots: trio.CapacityLimiter,
        traffic: Traffic,
        known: KnownCapabilities,
        prefix: str,
    ) -> None:
        self._traffic = traffic
        self._store = store
        self._plan = plan
        self._stale_uploads = stale_uploads
        self._slots = slots
        self._known = known
        self._prefix = prefix
        self._is_given_up = False
        self._making = trio.Lock()
        self._users: dict[ContentRef, int] = {}
        self._md5s: dict[int, str] = {}

    @property
    def _are_made(self) -> bool:
        return bool(self._known.seen.part_copies) and not self._is_given_up

    def _give_up(self, why: str) -> None:
        self._is_given_up = True
        log.warning("from now on holes of files are sent, as S3 does not copy zeros: %s", why)

    def holes(self, blob: Blob, indexes: Iterable[int]) -> dict[int, ByteRange]:
        """Which of these parts are nothing but hole, by index; none where that is not worth the trouble."""
        least = WORTH_PARTS * self._plan.part_bytes
        if not self._are_made or blob.size - blob.extents.total < least:
            return {}
        found = {}
        for index in indexes:
            part = self._plan.part_range(index)
            stop = min(part.stop, blob.size)
            if part.start < stop and blob.is_hole(part.start, stop):
                found[index] = ByteRange(part.start, stop - part.start)
        lengths = [hole.length for hole in found.values()]
        return found if lengths and sum(lengths) >= WORTH_PARTS * max(lengths) else {}

    @asynccontextmanager
    async def lent(
        self, blob: Blob, upload: PartsUpload, holes: dict[int, ByteRange]
    ) -> AsyncIterator[ContentRef | None]:
        """An object of as many zeros as the largest of ``holes`` has, as long as the block runs.

        ``None``: there are no holes, or they have to be sent. Raises S3MountError and OSError.
        """
        # Copied parts without checksums cannot be in an upload that has them.
        fits = upload.has_copies or self._known.seen.copied_checksums is not False
        if not holes or not fits:
            yield None
            return
        largest = max(holes.values(), key=lambda hole: hole.length)
        async with self._making:
            source = next((each for each in self._users if each.size >= largest.length), None)
            if source is None:
                source = await self._make(blob, largest)
            if source is not None:
                self._users[source] = self._users.get(source, 0) + 1
        try:
            yield source
        finally:
            if source is not None:
                await self._given_back(source)

    async def _make(self, blob: Blob, hole: ByteRange) -> ContentRef | None:
        """Put the zeros of ``hole`` as an object of their own; ``None``: they have to be sent."""
        if not self._are_made:
            return None
        key = trial_key(self._prefix)
        self._stale_uploads.note_object(key)
        made = None
        try:
            made = await self._put(key, blob, hole)
        finally:
            if made is None:
                # It may be there all the same.
                self._stale_uploads.let_go(key)
        return made

    async def _put(self, key: Key, blob: Blob, hole: ByteRange) -> ContentRef | None:
        try:
            async with self._slots:
                body = blob.body(hole.start, hole.stop)
                made = await self._store.put(
                    key, body, ObjectHeaders(), condition=Condition(if_absent=True)
                )
        except (DamagedBodyError, DamagedBlockError) as error:
            raise damage_of(blob, hole.start, hole.stop, error) from error
        except PreconditionFailedError as error:
            log.info("a hole is sent, as its zeros could not be put: %s", error)
            return None
        except (AccessDeniedError, RejectedError) as error:
            if not error.status or isinstance(error, ExpiredCredentialsError):
                raise
            self._give_up(error.describe())
            return None
        self._traffic.sent_bytes += hole.length
        crashpoint("zeros: put")
        if not blob.is_hole(hole.start, hole.stop):
            # Written to while it was read.
            return None
        return ContentRef(key, made.etag, hole.length, made.version_id)

    async def _given_back(self, source: ContentRef) -> None:
        self._users[source] -= 1
        if self._users[source]:
            return
        del self._users[source]
        with trio.move_on_after(REMOVE_S, shield=True):
            await self._stale_uploads.remove_object(source.key, source)

    async def copy(
        self, upload: PartsUpload, index: int, source: ContentRef, length: int
    ) -> PartInfo | None:
        """Let S3 make a part of ``length`` zeros from ``source``; ``None``: it has to be sent. Raises StoreError."""
        if not self._are_made:
            return None
        piece = ByteRange(0, length)
        try:
            part = await self._store.upload_part_copy(
                upload.key, upload.upload_id, index + 1, source, piece
            )
        except (PreconditionFailedError, NoSuchKeyError) as error:
            if error.code == NO_SUCH_UPLOAD:
                raise
            log.info("a hole is sent, as somebody removed the object of zeros: %s", error)
            return None
        except (AccessDeniedError, ArchivedError, RangeError, RejectedError) as error:
            if isinstance(error, ExpiredCredentialsError):
                raise
            self._give_up(error.describe())
            return None
        if not await self._are_zeros(part):
            self._give_up("what it made by copying zeros is something else")
            return None
        return part

    async def _are_zeros(self, part: PartInfo) -> bool:
        """Does nothing that S3 tells of a part say that it is anything else?"""
        if part.checksum is not None:
            return part.checksum == as_checksum(crc_of_zeros(part.size))
        if not self._known.etag_is_md5 or not is_md5_etag(part.etag):
            return True
        if part.size not in self._md5s:
            zeros = FileSlice("/dev/zero", 0, part.size)
            self._md5s[part.size] = (await md5_of(zeros)).hex()
        return part.etag == self._md5s[part.size]

"""Sending finished parts of a file while it is still being written."""

from __future__ import annotations

import logging

import trio

from s3mount.errors import S3MountError
from s3mount.flow.parts import PartPlan
from s3mount.spool.blobs.blobs import Blob
from s3mount.spool.journal.changes import Put
from s3mount.spool.spool import Spool
from s3mount.spool.upload.multipart import MultipartSender
from s3mount.transfer.parts import PartsUpload

log = logging.getLogger(__name__)

STREAMED_PARTS_MAX = 2
"""Parts of a file on their way at once while it is still being written: the writer's processor time
comes first; after close() all slots are used."""
STREAM_LAG_PARTS = 1
"""Parts kept back behind the writer: the kernel's writeback reorders within a few MiB."""


class Streaming:
    """The streams of one spool, one for each large file that is being written."""

    def __init__(self, spool: Spool, multipart: MultipartSender, plan: PartPlan) -> None:
        self._spool = spool
        self._multipart = multipart
        self._plan = plan
        self._streams: dict[str, trio.Event] = {}

    def grown(self, change: Put, blob: Blob) -> None:
        """The open file of ``change`` grew: send its finished parts, while it is being written.

        Call it as often as you like.
        """
        wake = self._streams.get(blob.id)
        if wake is not None:
            wake.set()
        else:
            self._streams[blob.id] = trio.Event()
            self._multipart.start_soon(lambda: self._stream(change, blob))

    def is_worth_it(self, blob: Blob) -> bool:
        """Is there a whole part behind the writer that could leave now?"""
        if blob.base is not None:
            return False
        behind = self._plan.part_range(STREAM_LAG_PARTS + 1).stop
        return blob.size >= behind and (blob.upload is None or bool(self._ready(blob)))

    def _ready(self, blob: Blob) -> list[int]:
        """Parts that are wholly written, not sent, and behind the writer."""
        upload = blob.upload
        last = self._plan.count(blob.size) - 1 - STREAM_LAG_PARTS
        ready = []
        for index in range(last):
            if upload is not None and (index in upload.sent or index in upload.sending):
                continue
            part = self._plan.part_range(index)
            if blob.extents.covers(part.start, part.stop):
                ready.append(index)
        return ready

    async def _stream(self, change: Put, blob: Blob) -> None:
        """Send parts as they are finished, until the change leaves the OPEN state or a part fails."""
        try:
            if not self._is_open(change, blob):
                return
            if blob.upload is None:
                await self._multipart.begin(change, blob, streamed=True)
            own_slots = trio.CapacityLimiter(STREAMED_PARTS_MAX)
            async with trio.open_nursery() as nursery:
                while self._goes_on(change, blob):
                    wake = self._streams[blob.id] = trio.Event()
                    upload = blob.upload
                    assert upload is not None
                    for index in self._ready(blob):
                        worker = object()
                        await own_slots.acquire_on_behalf_of(worker)
                        if not self._goes_on(change, blob):
                            return
                        if not upload.begin(index):
                            own_slots.release_on_behalf_of(worker)
                            continue
                        nursery.start_soon(
                            self._stream_part, blob, upload, index, own_slots, worker
                        )
                    with trio.move_on_after(1.0):
                        await wake.wait()
        except (S3MountError, OSError) as error:
            # Not lost: whatever is unsent is sent when the file is closed.
            log.info("streaming of %r pauses: %s", change.key, error)
        except Exception:
            # One file's trouble must not end the sending of all others.
            log.exception("internal error while streaming %r", change.key)
        finally:
            self._streams.pop(blob.id, None)

    def _is_open(self, change: Put, blob: Blob) -> bool:
        is_current = self._spool.changes.get(change.key) is change
        return is_current and change.state == "open" and change.blob_id == blob.id

    def _goes_on(self, change: Put, blob: Blob) -> bool:
        upload = blob.upload
        return self._is_open(change, blob) and upload is not None and upload.key == change.key

    async def _stream_part(
        self,
        blob: Blob,
        upload: PartsUpload,
        index: int,
        own_slots: trio.CapacityLimiter,
        worker: object,
    ) -> None:
        try:
            async with self._multipart.slots:
                await self._multipart.send_part(blob, upload, index)
        except (S3MountError, OSError) as error:
            log.info("part %d of %r is not sent yet: %s", index + 1, upload.key, error)
        finally:
            # Also where it ended while it waited for a slot.
            upload.ended(index)
            own_slots.release_on_behalf_of(worker)

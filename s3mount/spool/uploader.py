"""The uploader: background workers that bring S3 to what the spool says, and report what they did.

One worker per change on its way; small requests and large bodies have lanes of their own. A change
that is altered meanwhile is simply sent again; a change that S3 refuses stays in the spool.
"""

from __future__ import annotations

import logging
import random
from typing import Protocol

import trio

from s3mount.errors import EngineError, PreconditionFailedError, S3MountError, StoreError
from s3mount.refs import ANY, Condition, ContentRef, ObjectHeaders, PutResult
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.spool.changes import ABSENT, Change, carries
from s3mount.spool.multipart import MultipartSender
from s3mount.spool.queue import Lane, UploadQueue
from s3mount.spool.spool import Spool
from s3mount.spool.states import Event, State, after

log = logging.getLogger(__name__)

SMALL_REQUESTS_MAX = 64
"""Small bodies, copies and deletes on their way at once: 64 at 20 ms of round trip are 3,200/s."""
RETRY_DELAY_S_MAX = 60.0
PARKED_RETRY_S = 300.0
"""How long a refused change rests before it is tried again without being asked."""


class Hooks(Protocol):
    """What the uploader needs of the rooms above; vfs implements it."""

    def headers_of(self, change: Change, *, with_times: bool = True) -> ObjectHeaders:
        """What to store with the object of ``change``; without times while it is still written."""
        ...

    async def fill(self, change: Change, start: int, stop: int) -> None:
        """Bring the bytes of the base missing in ``[start, stop)`` into the blob. Raises S3MountError."""
        ...

    async def before_replace(self, change: Change) -> None:
        """``change`` is about to destroy what S3 holds under its key. Raises S3MountError."""
        ...

    def uploaded(self, change: Change, result: PutResult | None) -> None:
        """S3 has exactly ``change``, which is no longer pending; ``None`` for a deletion."""
        ...

    def uploaded_earlier(self, change: Change, result: PutResult | None) -> None:
        """S3 has an earlier state of ``change``, which stays pending."""
        ...

    def content_uploaded(self, change: Change, blob_id: str, content: ContentRef) -> None:
        """S3 has the bytes of ``change``, not its present attributes; the blob is not needed any more."""
        ...

    async def conflict(self, change: Change) -> None:
        """Somebody else wrote the key of ``change`` first; afterwards it must not be pending as it was."""
        ...


class Uploader:
    """Sends what is queued in ``spool`` to ``store``. ``conditional`` tells which conditions the store honours."""

    def __init__(
        self,
        spool: Spool,
        store: Store,
        hooks: Hooks,
        *,
        part_bytes: int,
        uploads_max: int,
        delay_s: float,
    ) -> None:
        self._spool = spool
        self._store = store
        self._hooks = hooks
        self._part_bytes = part_bytes
        self._delay_s = delay_s
        self._small_slots = trio.CapacityLimiter(SMALL_REQUESTS_MAX)
        self._large_slots = trio.CapacityLimiter(uploads_max)
        self.multipart = MultipartSender(
            spool, store, hooks, part_bytes=part_bytes, parts_max=uploads_max
        )
        self.queue = UploadQueue(spool.changes.get, spool.blocker_of, part_bytes)
        self._wake = trio.Event()
        self._waiters = 0
        self.conditional_put = False
        self.counters = {
            "uploads": 0,
            "uploaded_bytes": 0,
            "retries": 0,
            "parked": 0,
            "conflicts": 0,
        }
        spool.on_queued = self._queued
        spool.on_removed = self._removed

    # ----------------------------------------------------------------- lining up

    def _queued(self, change: Change) -> None:
        delay_s = 0.0 if self._waiters else self._delay_s
        self.queue.push(change, trio.current_time() + delay_s)
        self._wake.set()

    def _removed(self, key: str) -> None:
        self._push_again(self.queue.freed(key))

    def _push_again(self, keys: list[str]) -> None:
        for key in keys:
            change = self._spool.changes.get(key)
            if change is not None and change.state is State.QUEUED:
                self.queue.push(change, trio.current_time())
                self._wake.set()

    def closed(self, change: Change) -> None:
        """The last writer closed the file of ``change``: line it up. Raises LocalDiskError."""
        if self._spool.changes.get(change.key) is change and change.state is State.OPEN:
            change.state = after(change.state, Event.CLOSE)
            self._spool.save(change)
            self._queued(change)

    def hurry(self) -> None:
        """Somebody waits: send what is queued without the usual delay, until as many ``relax`` calls."""
        self._waiters += 1
        now = trio.current_time()
        for change in self._spool.changes.values():
            if change.state is State.PARKED:
                change.state = after(change.state, Event.RETRY)
            if change.state is State.QUEUED:
                self.queue.push(change, now)
        self._wake.set()

    def relax(self) -> None:
        """One of those who wait is done."""
        self._waiters -= 1

    # ------------------------------------------------------------------- sending

    async def run(self) -> None:
        """Send for ever; cancel to stop. What is on its way then stays pending."""
        now = trio.current_time()
        for change in self._spool.changes.values():
            if change.state is State.PARKED:
                change.state = after(change.state, Event.RETRY)
            if change.state is State.QUEUED:
                self.queue.push(change, now)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.multipart.run)
            nursery.start_soon(self._serve, Lane.SMALL, self._small_slots, nursery)
            nursery.start_soon(self._serve, Lane.LARGE, self._large_slots, nursery)

    async def _serve(self, lane: Lane, slots: trio.CapacityLimiter, nursery: trio.Nursery) -> None:
        while True:
            worker = object()
            await slots.acquire_on_behalf_of(worker)
            change = await self._next(lane)
            nursery.start_soon(self._work, change, slots, worker)

    async def _next(self, lane: Lane) -> Change:
        while True:
            change = self.queue.take(lane, trio.current_time())
            if change is not None:
                return change
            wake = self._wake
            at = self.queue.next_time(lane)
            with trio.move_on_at(float("inf") if at is None else at):
                await wake.wait()
            if wake.is_set() and self._wake is wake:
                self._wake = trio.Event()

    async def _work(self, change: Change, slots: trio.CapacityLimiter, worker: object) -> None:
        try:
            change.state = after(change.state, Event.START)
            await self._try(change)
        finally:
            slots.release_on_behalf_of(worker)
            if change.state is State.SENDING:
                change.state = State.QUEUED
            self._push_again(self.queue.finished(change.key))

    async def _try(self, change: Change) -> None:
        seq = change.seq
        key = change.key
        try:
            result = await self._perform(change)
        except PreconditionFailedError as error:
            if change.op == "put" and self.conditional_put and change.expected is not None:
                await self._conflict(change, error)
            else:
                self._failed(change, error)
        except (StoreError, EngineError) as error:
            self._failed(change, error)
        except S3MountError as error:
            self._failed(change, error)
        except OSError as error:
            self._failed(change, S3MountError(f"the spool cannot be read: {error.strerror}"))
        except Exception as error:
            # One file's trouble must not stop the others': it is parked, readable and listed.
            log.exception("internal error while sending %r", key)
            self._failed(change, S3MountError(f"internal error: {error!r}"))
        else:
            self._succeeded(change, key, seq, result)

    async def _perform(self, change: Change) -> PutResult | None:
        """One try of ``change`` as it is now."""
        if change.detach and change.base is not None:
            await self._detach(change)
            return None
        await self._hooks.before_replace(change)
        if change.op == "delete":
            await self._store.delete(change.key)
            return None
        if change.op == "copy":
            assert change.source is not None
            headers = self._hooks.headers_of(change) if change.replace_headers else None
            return await self._store.copy(
                change.source, change.key, headers, storage_class=change.storage_class
            )
        return await self._put(change)

    async def _put(self, change: Change) -> PutResult | None:
        condition = self.condition_of(change)
        headers = self._hooks.headers_of(change)
        change.upload_attributes = change.upload_attributes if change.upload_id else None
        blob = self._spool.live_blobs.get(change.blob_id)
        if blob is None:
            return await self._store.put(change.key, b"", headers, condition=condition)
        if blob.upload is None and blob.size <= self._part_bytes:
            seq = change.seq
            await self._hooks.fill(change, 0, blob.size)
            if change.seq != seq:
                raise TryAgain("changed while it was completed")
            if blob.size <= INLINE_BODY_BYTES_MAX:
                # Read at once, so that a write meanwhile cannot mix two states.
                body = blob.read(0, blob.size)
                return await self._store.put(change.key, body, headers, condition=condition)
            return await self._store.put(
                change.key,
                self.multipart.slice_of(blob, 0, blob.size),
                headers,
                condition=condition,
            )
        return await self.multipart.send(change, blob, condition)

    def condition_of(self, change: Change) -> Condition:
        """What the upload of ``change`` demands of the key, as far as the store honours it."""
        if not self.conditional_put or change.expected is None or change.key.endswith("/"):
            return ANY
        if change.expected == ABSENT:
            return Condition(if_absent=True)
        return Condition(if_match=change.expected)

    async def _detach(self, change: Change) -> None:
        """Fetch all of the base, so that nothing in S3 has to stay for this change."""
        blob = self._spool.live_blobs[change.blob_id]
        await self._hooks.fill(change, 0, blob.size)
        blob.detach()
        change.detach = False
        raise TryAgain("its content is here now")

    # ------------------------------------------------------------------ outcomes

    def _succeeded(self, change: Change, key: str, seq: int, result: PutResult | None) -> None:
        self.counters["uploads"] += 1
        self.counters["uploaded_bytes"] += change.size if change.op == "put" else 0
        current = self._spool.changes.get(key)
        etag = ABSENT if result is None else result.etag
        if current is not change:
            # Superseded by a deletion, a rename or a new file while it was on its way.
            if current is not None:
                current.expected = etag
                self._spool.save(current)
            return
        change.attempts = 0
        change.error = ""
        change.expected = etag
        if result is not None and change.content_seq <= seq and not self._carried(change, seq):
            self._only_attributes_left(change, result)
            return
        if change.seq == seq:
            self._spool.finish(change)
            self._hooks.uploaded(change, result)
            return
        change.first_seq = seq + 1
        if change.state is State.SENDING:
            change.state = State.QUEUED
        self._spool.save(change)
        self._hooks.uploaded_earlier(change, result)
        if change.state is State.QUEUED:
            self._queued(change)

    @staticmethod
    def _carried(change: Change, seq: int) -> bool:
        """Does S3 have the attributes of ``change``, whose content it has?"""
        began = change.upload_attributes is not None
        return change.seq == seq and (not began or carries(change))

    def _only_attributes_left(self, change: Change, result: PutResult) -> None:
        """Do not send the bytes again: what is stored beside them is changed inside S3."""
        size = change.source.size if change.source is not None else change.size
        content = ContentRef(change.key, result.etag, size, result.version_id)
        blob_id = change.blob_id
        change.become_copy_of(content)
        change.upload_attributes = None
        if change.state is State.SENDING:
            change.state = State.QUEUED
        self._spool.save(change)
        self._hooks.content_uploaded(change, blob_id, content)
        if change.state is State.QUEUED:
            self._queued(change)

    def _failed(self, change: Change, error: S3MountError) -> None:
        if self._spool.changes.get(change.key) is not change:
            return
        again = isinstance(error, TryAgain)
        if again:
            delay_s = 0.0
        elif error.retryable:
            change.attempts += 1
            self.counters["retries"] += 1
            ceiling_s = min(RETRY_DELAY_S_MAX, 0.5 * 2 ** min(change.attempts, 10))
            delay_s = ceiling_s * random.uniform(0.5, 1.0)
        else:
            change.attempts += 1
            delay_s = PARKED_RETRY_S
        if not again:
            change.error = error.describe() if isinstance(error, StoreError) else str(error)
            log.warning("%s of %r is not done yet: %s", change.op, change.key, change.error)
        event = Event.FAIL if error.retryable or again else Event.REFUSE
        change.state = after(change.state, event)
        self._spool.save(change)
        if change.state is State.PARKED:
            self.counters["parked"] += 1
            self._park(change)
        elif change.state is State.QUEUED:
            self.queue.push(change, trio.current_time() + delay_s)
            self._wake.set()

    def _park(self, change: Change) -> None:
        key, seq = change.key, change.seq

        async def wake_later() -> None:
            await trio.sleep(PARKED_RETRY_S)
            if self._spool.changes.get(key) is change and change.seq == seq:
                self.retry(change)

        self.multipart.start_soon(wake_later)

    def retry(self, change: Change) -> None:
        """Try a parked change now."""
        if change.state is State.PARKED:
            change.state = after(change.state, Event.RETRY)
            self.queue.push(change, trio.current_time())
            self._wake.set()

    async def _conflict(self, change: Change, error: PreconditionFailedError) -> None:
        if self._spool.changes.get(change.key) is not change:
            return
        self.counters["conflicts"] += 1
        log.warning("somebody else changed %r first: %s", change.key, error)
        await self._hooks.conflict(change)


class TryAgain(S3MountError):
    """The try is void, not failed: begin it again at once."""

    retryable = True

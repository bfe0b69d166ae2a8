"""The uploader: background workers that bring S3 to what the spool says, and report what they did.

One worker per change on its way; small requests and large bodies have lanes of their own. A change
that is altered meanwhile is simply sent again; a change that S3 refuses stays in the spool.
"""

from __future__ import annotations

import logging
import random
from typing import Protocol

import trio

from s3mount.errors import (
    ConflictError,
    EngineError,
    LocalDiskError,
    NoSuchKeyError,
    PreconditionFailedError,
    S3MountError,
    StoreError,
)
from s3mount.refs import ANY, Body, Condition, ContentRef, Key, ObjectHeaders, ObjectInfo, PutResult
from s3mount.s3.store import INLINE_BODY_BYTES_MAX, Store
from s3mount.spool.changes import ABSENT, Change, carries
from s3mount.spool.multipart import MultipartSender
from s3mount.spool.outcomes import (
    BaseGoneError,
    ForeignWriteError,
    NothingLeftError,
    Stored,
    TryAgain,
)
from s3mount.spool.queue import Lane, UploadQueue
from s3mount.spool.spool import Spool
from s3mount.spool.states import Event, State, after

log = logging.getLogger(__name__)

SMALL_REQUESTS_MAX = 64
"""Small bodies, copies and deletes on their way at once: 64 at 20 ms of round trip are 3,200/s."""
PAUSE_S = 0.03
"""Changes that follow each other closer than this come from a program that is writing many files."""
YIELD_S = 2.0
YIELDING_WIDTH = 2
BUSY_WIDTH = 16
"""For so long such a program gets nearly the whole machine, then uploads go on 16 at a time: with the
server on the same two cores 2,000 files of 4 KiB were created at 1,600/s without uploads, at 320/s
with 64 at a time (bench, small files)."""
AGAIN_S = 0.02
"""A try that was void begins again so soon."""
RETRY_DELAY_S_MAX = 60.0
PARKED_RETRY_S = 300.0
"""How long a refused change rests before it is tried again without being asked."""


class Hooks(Protocol):
    """What the uploader needs of the rooms above; vfs implements it."""

    def headers_of(self, change: Change, *, with_times: bool = True) -> ObjectHeaders:
        """What to store with the object of ``change``; without times while it is still written."""
        ...

    def written_at_ns(self, headers: ObjectHeaders) -> int | None:
        """The ctime that ``headers_of`` stored with an object, ``None`` where there is none."""
        ...

    async def fill(self, change: Change, start: int, stop: int) -> None:
        """Bring the bytes of the base missing in ``[start, stop)`` into the blob.

        Raises S3MountError: PreconditionFailedError or NoSuchKeyError when the base is gone.
        """
        ...

    async def before_replace(self, change: Change) -> None:
        """``change`` is about to destroy what S3 holds under its key. Raises S3MountError."""
        ...

    def uploaded(self, change: Change, result: PutResult | None) -> None:
        """S3 has exactly ``change``, which is no longer pending; ``None`` for a deletion."""
        ...

    def uploaded_earlier(self, change: Change, content: ContentRef | None) -> None:
        """S3 has an earlier state of ``change``, which stays pending; ``None``: nothing."""
        ...

    def content_uploaded(self, change: Change, blob_id: str, content: ContentRef) -> None:
        """S3 has the bytes of ``change``, not its present attributes; the blob is not needed any more."""
        ...

    def lost(self, change: Change) -> None:
        """``change``, no longer pending, was one of attributes of a version that somebody replaced."""
        ...

    def conflict(self, change: Change) -> None:
        """Somebody else wrote the key of ``change`` first; afterwards it must not be pending as it was.

        Raises LocalDiskError.
        """
        ...


class Uploader:
    """Sends what is queued in ``spool`` to ``store``.

    While programs keep writing many small files, their processor time comes first: few uploads are
    on their way until the writers pause, or until this has lasted ``YIELD_S``.
    """

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
        self.queue = UploadQueue(spool.changes.get, self._blocker_of, part_bytes)
        self._wake = trio.Event()
        self._waiters = 0
        self._busy_since = self._last_queued = float("-inf")
        self.counters = {
            "uploads": 0,
            "uploaded_bytes": 0,
            "postponed": 0,
            "parked": 0,
            "conflicts": 0,
        }
        spool.on_queued = self._queued
        spool.on_removed = self._removed

    # ----------------------------------------------------------------- lining up

    def _queued(self, change: Change) -> None:
        delay_s = 0.0 if self._waiters else self._delay_s
        now = trio.current_time()
        if now - self._last_queued > PAUSE_S:
            self._busy_since = now
        self._last_queued = now
        self.queue.push(change, now + delay_s)
        self._wake.set()

    def _blocker_of(self, change: Change) -> Key | None:
        """What ``change`` waits for. Of changes that wait for each other in a circle one fetches its content."""
        blocker = self._spool.blocker_of(change)
        if blocker is None or not self._spool.waits_in_circle(change):
            return blocker
        if change.op == "put":
            change.detach = True
            return None
        try:
            self._spool.record([self._spool.as_fetched(change)])
        except (OSError, LocalDiskError) as error:
            log.warning("%r has to wait for room in the spool: %s", change.key, error)
        return blocker

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
            await self._give_way()
            change = await self._next(lane)
            nursery.start_soon(self._work, change, slots, worker)

    async def _give_way(self) -> None:
        """Return when one more upload does not slow down programs that are just writing files."""
        while self.queue.sending_count >= self._width(trio.current_time()):  # noqa: ASYNC110 - a pause
            await trio.sleep(PAUSE_S / 2)

    def _width(self, now: float) -> int:
        """How many small requests may be on their way just now."""
        if self._waiters or now - self._last_queued > PAUSE_S:
            return SMALL_REQUESTS_MAX
        return YIELDING_WIDTH if now - self._busy_since < YIELD_S else BUSY_WIDTH

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
            # Between taking it and now it may have been opened again, or replaced.
            is_still_due = self._spool.changes.get(change.key) is change
            if is_still_due and change.state is State.QUEUED:
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
            stored = await self._perform(change)
        except ForeignWriteError as error:
            self._conflict(change, seq, error)
        except NothingLeftError as error:
            self._given_up(change, seq, error)
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
            self._succeeded(change, key, seq, stored)

    async def _perform(self, change: Change) -> Stored | None:
        """One try of ``change`` as it is now."""
        if change.detach:
            await self._detach(change)
            return None
        await self._hooks.before_replace(change)
        if change.op == "delete":
            await self._store.delete(change.key)
            return None
        if change.op == "copy":
            return await self._copy(change)
        try:
            return await self._put(change)
        except BaseGoneError as error:
            return await self._without_base(change, error)

    async def _copy(self, change: Change) -> Stored:
        assert change.source is not None
        source = change.source
        headers = None
        if change.replace_headers:
            headers = self._hooks.headers_of(change)
            change.note_try(_ctime_ns(change))
        else:
            change.note_try(source.etag)
            stored_ns = self._hooks.written_at_ns(change.headers) if change.headers else None
            if stored_ns is not None:
                change.note_try(stored_ns)
        written_ns = _ctime_ns(change)
        try:
            result = await self._store.copy(
                source,
                change.key,
                headers,
                condition=self.condition_of(change),
                storage_class=change.storage_class,
            )
            return Stored(result, source.size)
        except (PreconditionFailedError, NoSuchKeyError) as error:
            there = await self._head(source.key)
            is_there = there is not None and there.etag == source.etag
            may_be_refused = source.key != change.key and (
                is_there or source.version_id is not None
            )
            if isinstance(error, PreconditionFailedError) and may_be_refused:
                # Not the source is what was not expected, but what the key holds.
                return await self._settle(change, written_ns, error)
            if there is None or not self._is_ours(there):
                if source.key == change.key:
                    raise NothingLeftError("somebody else replaced it", key=change.key) from error
                raise
        # Our own earlier copy, whose answer was lost, made it the same bytes under another ETag.
        if headers is not None and source.key == change.key and self._ctime_of(there) == written_ns:
            return _as_stored(there)
        if change.source == source:
            change.source = there.ref
        if source.key == change.key:
            change.expected = there.etag
        raise TryAgain("its source has another version now")

    async def _without_base(self, change: Change, error: S3MountError) -> Stored:
        """The version below a change is gone: by our own hand, or by somebody else's. Raises S3MountError."""
        blob = self._spool.live_blobs.get(change.blob_id)
        base = blob.base if blob is not None else None
        if blob is None or base is None:
            raise TryAgain("it needs no base any more")
        there = await self._head(base.key)
        if blob.base != base:
            raise TryAgain("its base has another version now")
        if there is not None and there.etag == base.etag:
            raise TryAgain("its base is there after all")
        if there is not None and self._is_ours(there):
            blob.base = there.ref
            raise TryAgain("its base has another version now")
        if there is not None and base.key == change.key:
            raise ForeignWriteError("somebody else replaced what it changes", key=change.key)
        raise error

    async def found_again(self, content: ContentRef) -> ContentRef | None:
        """``content`` is gone under its ETag: the same bytes as a write of our own left them there, if one did.

        Such a write is one whose answer was lost, while the key is still pending. Raises StoreError.
        """
        there = await self._head(content.key)
        return there.ref if there is not None and self._is_ours(there) else None

    async def _head(self, key: Key) -> ObjectInfo | None:
        try:
            return await self._store.head(key)
        except NoSuchKeyError:
            return None

    def _ctime_of(self, there: ObjectInfo) -> int | None:
        return None if there.headers is None else self._hooks.written_at_ns(there.headers)

    def _is_ours(self, there: ObjectInfo) -> bool:
        """Is it what a write of ours made, of which nothing was heard?"""
        change = self._spool.changes.get(there.key)
        if change is None:
            return False
        return self._ctime_of(there) in change.tried or there.etag in change.tried

    async def _settle(
        self, change: Change, written_ns: int, error: PreconditionFailedError
    ) -> Stored:
        """S3 holds something else than expected: what our own earlier try made, or another's.

        Returns our own try's result when it was the same state. Raises ForeignWriteError, or what
        leads to another try.
        """
        if change.expected is None:
            raise error
        there = await self._head(change.key)
        if there is None:
            # Theirs is gone again: ours may have the name.
            change.expected = ABSENT
            raise ConflictError("somebody else removed it just now", key=change.key)
        if not self._is_ours(there) and not await self._looks_copied(change, there):
            raise ForeignWriteError(str(error), key=change.key)
        change.expected = there.etag
        if self._ctime_of(there) == written_ns and change.upload_attributes is None:
            return _as_stored(there)
        raise TryAgain("S3 has an earlier state of it")

    async def _looks_copied(self, change: Change, there: ObjectInfo) -> bool:
        """Is it what an earlier try of this copy made? S3 gives the copy of an object of parts another ETag."""
        source = change.source
        if change.op != "copy" or change.replace_headers or source is None:
            return False
        try:
            original = await self._store.head(source.key, version_id=source.version_id)
        except NoSuchKeyError:
            return False
        is_same = original.etag == source.etag and original.size == there.size
        return is_same and original.headers == there.headers

    async def _put(self, change: Change) -> Stored:
        written_ns = _ctime_ns(change)
        try:
            return await self._put_if_expected(change)
        except PreconditionFailedError as error:
            return await self._settle(change, written_ns, error)

    async def _put_if_expected(self, change: Change) -> Stored:
        condition = self.condition_of(change)
        change.upload_attributes = change.upload_attributes if change.upload_id else None
        blob = self._spool.live_blobs.get(change.blob_id)
        if blob is None:
            return await self._put_body(change, b"", condition)
        self.multipart.drop_unused(change, blob)
        if blob.upload is not None or blob.size > self._part_bytes:
            return Stored(*await self.multipart.send(change, blob, condition))
        seq = change.seq
        await self._fill(change, 0, blob.size)
        if change.seq != seq:
            raise TryAgain("changed while it was completed")
        if blob.size <= INLINE_BODY_BYTES_MAX:
            # Read at once, so that a write meanwhile cannot mix two states.
            return await self._put_body(change, blob.read(0, blob.size), condition)
        # A write meanwhile goes to a copy, for the same reason.
        blob.is_being_sent = True
        try:
            body = self.multipart.slice_of(blob, 0, blob.size)
            return await self._put_body(change, body, condition)
        finally:
            blob.is_being_sent = False
            if blob.is_replaced:
                self._spool.drop_blob(blob)

    async def _put_body(self, change: Change, body: Body, condition: Condition) -> Stored:
        change.note_try(_ctime_ns(change))
        headers = self._hooks.headers_of(change)
        size = len(body) if isinstance(body, bytes) else body.length
        return Stored(await self._store.put(change.key, body, headers, condition=condition), size)

    async def _fill(self, change: Change, start: int, stop: int) -> None:
        try:
            await self._hooks.fill(change, start, stop)
        except (PreconditionFailedError, NoSuchKeyError) as error:
            raise BaseGoneError(f"the version that it changes is gone: {error}") from error

    def condition_of(self, change: Change) -> Condition:
        """What the upload of ``change`` demands of the key."""
        if change.expected is None or change.key.endswith("/"):
            return ANY
        if change.expected == ABSENT:
            return Condition(if_absent=True)
        return Condition(if_match=change.expected)

    async def _detach(self, change: Change) -> None:
        """Fetch all of the base, so that nothing in S3 has to stay for this change."""
        blob = self._spool.live_blobs[change.blob_id]
        base = blob.base
        if base is not None:
            try:
                await self._fill(change, 0, blob.size)
            except BaseGoneError as error:
                await self._without_base(change, error)
        if change.headers is None and base is not None:
            there = await self._head(base.key)
            if there is not None and there.etag == base.etag:
                change.headers = there.headers
        blob.detach()
        change.detach = False
        raise TryAgain("its content is here now")

    # ------------------------------------------------------------------ outcomes

    def _succeeded(self, change: Change, key: str, seq: int, stored: Stored | None) -> None:
        self.counters["uploads"] += 1
        self.counters["uploaded_bytes"] += change.size if change.op == "put" else 0
        current = self._spool.changes.get(key)
        result = None if stored is None else stored.result
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
        if stored is not None and change.content_seq <= seq and not self._carried(change, seq):
            self._only_attributes_left(change, stored.ref(key))
            return
        if change.seq == seq:
            self._spool.finish(change)
            self._hooks.uploaded(change, result)
            return
        change.first_seq = seq + 1
        if change.state is State.SENDING:
            change.state = State.QUEUED
        self._hooks.uploaded_earlier(change, None if stored is None else stored.ref(key))
        self._spool.save(change)
        if change.state is State.QUEUED:
            self._queued(change)

    @staticmethod
    def _carried(change: Change, seq: int) -> bool:
        """Does S3 have the attributes of ``change``, whose content it has?"""
        began = change.upload_attributes is not None
        return change.seq == seq and (not began or carries(change))

    def _only_attributes_left(self, change: Change, content: ContentRef) -> None:
        """Do not send the bytes again: what is stored beside them is changed inside S3."""
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
            delay_s = AGAIN_S
        elif error.retryable:
            change.attempts += 1
            self.counters["postponed"] += 1
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

    def _given_up(self, change: Change, seq: int, error: NothingLeftError) -> None:
        """Only attributes of a version were to be changed that is gone: theirs stays as it is."""
        if self._spool.changes.get(change.key) is not change:
            return
        if change.seq != seq:
            self._failed(change, TryAgain("changed while it was sent"))
            return
        log.warning("new attributes of %r come too late: %s", change.key, error)
        self._spool.finish(change)
        self._hooks.lost(change)

    def _conflict(self, change: Change, seq: int, error: ForeignWriteError) -> None:
        if self._spool.changes.get(change.key) is not change:
            return
        if change.seq != seq:
            # Written again meanwhile: its next try will see the same.
            self._failed(change, TryAgain("changed while it was sent"))
            return
        self.counters["conflicts"] += 1
        log.warning("somebody else changed %r first: %s", change.key, error)
        self._hooks.conflict(change)


def _as_stored(there: ObjectInfo) -> Stored:
    return Stored(PutResult(there.etag, there.version_id, there.last_modified_ns), there.size)


def _ctime_ns(change: Change) -> int:
    return change.attributes.ctime_ns if change.attributes is not None else 0

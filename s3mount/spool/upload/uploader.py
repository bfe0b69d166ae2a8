"""The uploader: background workers that bring S3 to what the spool says, and report what they did.

One worker per change on its way; small requests and large bodies have lanes of their own. A change
that is altered meanwhile is simply sent again; a change that S3 refuses stays in the spool.
"""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import trio

from s3mount.background import Background, contained, log_fault, reason_of
from s3mount.crashpoints import crashpoint
from s3mount.errors import (
    AccessDeniedError,
    CertificateError,
    DiskFullError,
    ExpiredCredentialsError,
    InternalError,
    LocalDiskError,
    NoCredentialsError,
    NoSuchBucketError,
    S3MountError,
)
from s3mount.flow.parts import PartPlan
from s3mount.logs import about_error
from s3mount.pack.store import PackedStore
from s3mount.pack.union import is_member_etag
from s3mount.refs import ContentRef, Key, PutResult
from s3mount.s3.store import Store
from s3mount.slices import sliced
from s3mount.spool.journal.changes import (
    ABSENT,
    Change,
    ConflictPolicy,
    Copy,
    Delete,
    Put,
    PutOrCopy,
    as_copy,
    blob_id_of,
    carries,
)
from s3mount.spool.journal.states import Event, State
from s3mount.spool.send_errors import (
    ForeignWriteError,
    NothingLeftError,
    SourceGoneError,
    Stored,
    TryAgain,
)
from s3mount.spool.spool import Spool
from s3mount.spool.upload import deletions
from s3mount.spool.upload.capabilities import KnownCapabilities
from s3mount.spool.upload.events import (
    Answered,
    Conflicted,
    ConflictOutcome,
    ContentUploaded,
    Failed,
    GivenUp,
    Report,
    Uploaded,
    UploadedEarlier,
)
from s3mount.spool.upload.kept import Kept
from s3mount.spool.upload.multipart import MultipartSender
from s3mount.spool.upload.own_tries import OwnTries
from s3mount.spool.upload.provider import ContentProvider
from s3mount.spool.upload.queue import GATHERED, Lane, UploadQueue
from s3mount.spool.upload.sender import Sender
from s3mount.spool.upload.streaming import Streaming

log = logging.getLogger(__name__)

SMALL_REQUESTS_MAX = 64
"""Small bodies, copies and deletes on their way at once: 64 at 20 ms of round trip are 3,200/s."""
DELETIONS_AT_ONCE = 2 * deletions.KEYS_MAX
"""Where they go together: two requests' worth."""
PAUSE_S = 0.03
"""Changes that follow each other closer than this come from a program that is writing many files."""
YIELD_S = 2.0
YIELDING_WIDTH = 2
BUSY_WIDTH = 16
"""For so long such a program gets nearly the whole machine, then uploads go on 16 at a time: with the
server on the same two cores 2,000 files of 4 KiB were created at 1,600/s without uploads, at 320/s
with 64 at a time (bench, small files)."""
GATHER_S = 5.0
"""For so long such a program has the machine, where its files go into packs: all of them are few requests."""
JOURNAL_AGAIN_S = 0.5
"""With no room on the disk, the journal is tried again so often."""
ANSWERS_S = 0.02
ANSWERS_MAX = 32
"""The consequences of answers that come within this time are drawn together, unless somebody waits: journal and
put log get one transaction for all of them. So many take about 3 ms."""
AGAIN_S = 0.02
"""A try that was void begins again so soon."""
AWAITED_S = 2.0
"""So long after somebody asked for a single file packs are closed soon."""
RETRY_DELAY_S_MAX = 60.0
PARKED_RETRY_S = 300.0
"""How often refused changes are tried again without being asked."""
REFUSED_AGAIN_S = 0.5
REFUSALS_MAX = 3
BACK_S = 30.0
BACK_DELAY_S = 1.0
"""A try that began while the store was away may fail after it is back: so long after an outage's end what
fails is tried again soon."""
PASSING = (CertificateError, ExpiredCredentialsError, DiskFullError)
"""What passes by itself, or by what somebody does elsewhere: tried again and again, never parked."""
MAY_PASS = (AccessDeniedError, NoCredentialsError, NoSuchBucketError)
"""Refusals that are known to pass sometimes (keys that are just being exchanged, a policy or a bucket
that is just being made): a change is parked only after ``REFUSALS_MAX`` of them."""


class _Answer(NamedTuple):
    """What S3 has under ``key`` after a try of ``change`` as it was at ``seq``; ``None`` after a deletion."""

    key: Key
    change: Change
    seq: int
    stored: Stored | None

    @property
    def result(self) -> PutResult | None:
        return None if self.stored is None else self.stored.result

    @property
    def content(self) -> ContentRef | None:
        return None if self.stored is None else self.stored.ref(self.key)


class Uploader:
    """Sends what is queued in ``spool`` to ``store``, and tells ``report`` what became of it.

    What is sent for a while only gets keys below ``prefix``.

    While programs keep writing many small files, their processor time comes first: few uploads are
    on their way until the writers pause, or until this has lasted ``YIELD_S``.
    """

    def __init__(
        self,
        spool: Spool,
        store: Store,
        provider: ContentProvider,
        report: Report,
        known: KnownCapabilities,
        *,
        prefix: str,
        part_bytes: int,
        uploads_max: int,
        delay_s: float,
        on_conflict: ConflictPolicy = "keep-both",
        packing: PackedStore | None = None,
    ) -> None:
        self._packing = packing
        self._spool = spool
        self._on_conflict = on_conflict
        self._provider = provider
        self._report = report
        self._delay_s = delay_s
        self._small_slots = trio.CapacityLimiter(SMALL_REQUESTS_MAX)
        self._large_slots = trio.CapacityLimiter(uploads_max)
        own = OwnTries(spool, provider)
        kept = Kept(spool, store, own)
        self.multipart = MultipartSender(
            spool,
            store,
            provider,
            known,
            kept,
            part_bytes=part_bytes,
            parts_max=uploads_max,
            prefix=prefix,
            may_send=self._may_send,
        )
        self.streaming = Streaming(spool, self.multipart, PartPlan(part_bytes))
        self.sender = Sender(
            spool, store, provider, report, known, own, kept, self.multipart, part_bytes=part_bytes
        )
        self.queue = UploadQueue(
            spool.changes.get,
            self._blocker_of,
            part_bytes,
            lambda: self.sender.deletions.are_gathered,
            self._is_packed,
        )
        self._packed_slots = trio.CapacityLimiter(1 if packing is None else packing.files_at_once)
        self._deletion_slots = trio.CapacityLimiter(DELETIONS_AT_ONCE)
        if packing is not None:
            packing.tell_of_waiters(self._is_awaited)
        self._wake = trio.Event()
        self._some_due = trio.Event()
        self._due_states: set[State] = set()
        self._waiters = 0
        self._awaited_until = float("-inf")
        self._back_at = float("-inf")
        self._busy_since = self._last_queued = float("-inf")
        self.counters = {
            "uploads": 0,
            "deduplicated": 0,
            "saved_bytes": 0,
            "postponed": 0,
            "parked": 0,
            "conflicts": 0,
            "overwritten": 0,
        }
        self._news = trio.Event()
        self._resumed = trio.Event()
        self._resumed.set()
        self._answers: list[_Answer] = []
        self._some_answered = trio.Event()
        self._answers_due = trio.Event()
        spool.on_queued = self._queued
        spool.on_removed = self._removed

    def statistics(self) -> dict[str, int]:
        """What was done since the start, by name."""
        traffic = self.multipart.traffic
        sent = {"uploaded_bytes": traffic.sent_bytes, "copied_bytes": traffic.copied_bytes}
        return self.counters | sent

    # ----------------------------------------------------------------- lining up

    def _is_packed(self, change: Change) -> bool:
        """Does it go into a pack, or come out of one?"""
        if self._packing is None:
            return False
        if isinstance(change, Delete):
            return is_member_etag(change.expected)
        if isinstance(change, Copy):
            return is_member_etag(change.source.etag)
        return self._packing.packs(change.key, change.size)

    def _queued(self, change: Change) -> None:
        delay_s = 0.0 if self._waiters else self._delay_s
        now = trio.current_time()
        if now - self._last_queued > PAUSE_S:
            self._busy_since = now
        self._last_queued = now
        self.queue.push(change, now + delay_s)
        self._wake.set()

    def _blocker_of(self, change: Change) -> Key | None:
        """What ``change`` waits for; itself, where a fault keeps that from being found out."""
        try:
            return self._find_blocker(change)
        except Exception as error:  # noqa: BLE001  one change's fault does not stop the others
            self._spool.apply(change, Event.START)
            self._broken(change, error)
            return change.key

    def _find_blocker(self, change: Change) -> Key | None:
        """Of changes that wait for each other in a circle one fetches its content."""
        blocker = self._spool.dependencies.blocker_of(change)
        if blocker is None or not self._spool.dependencies.waits_in_circle(change):
            return blocker
        if isinstance(change, Delete):
            return blocker
        if isinstance(change, Put):
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
            self._spool.apply(change, Event.CLOSE)
            try:
                self._spool.save(change)
            except LocalDiskError:
                # The program is told that the disk is full; what is sent all the same makes room.
                self._queued(change)
                raise
            crashpoint("close: journalled")
            self._queued(change)

    def hurry(self) -> None:
        """Somebody waits: send what is queued without the usual delay, until as many ``relax`` calls."""
        self._waiters += 1
        self._answers_due.set()
        self._line_up_soon(State.QUEUED, State.PARKED)

    def store_is_back(self) -> None:
        """The store can be reached again: what waits for its next try goes now."""
        self._back_at = trio.current_time()
        self._line_up_soon(State.QUEUED)

    def _line_up_soon(self, *states: State) -> None:
        """Let all changes in these states go, as far as they can: now, but of many not all in one turn."""
        self._due_states.update(states)
        self._some_due.set()

    async def _line_up_due(self) -> None:
        while True:
            await self._some_due.wait()
            self._some_due = trio.Event()
            states, self._due_states = self._due_states, set()
            now = trio.current_time()
            async for changes in sliced(list(self._spool.changes.values())):
                for change in changes:
                    if change.state in states and self._spool.changes.get(change.key) is change:
                        self._line_up(change, now)
                self._wake.set()

    def _line_up(self, change: Change, now: float) -> None:
        """Let ``change`` go now if it can: also a refused one, unless it is a person's to decide."""
        if change.state is State.PARKED and not change.held:
            self._spool.apply(change, Event.RETRY)
        if change.state is State.QUEUED:
            self.queue.push(change, now)

    def send_now(self, change: Change) -> None:
        """Somebody waits for this one: send it without the usual delay, also while its file is open.

        What is written to the file meanwhile is sent later. Raises LocalDiskError.
        """
        self.closed(change)
        self._awaited_until = trio.current_time() + AWAITED_S
        if change.state is State.QUEUED:
            self.queue.push(change, trio.current_time())
            self._wake.set()

    @property
    def is_paused(self) -> bool:
        """Is nothing sent, as somebody asked for?"""
        return not self._resumed.is_set()

    def pause(self, is_paused: bool) -> None:
        """Begin no request for a change or a part from now on, until told to go on. Repeatable.

        What is on its way arrives.
        """
        if not is_paused:
            self._resumed.set()
        elif not self.is_paused:
            self._resumed = trio.Event()

    async def _may_send(self) -> None:
        """Return while uploads are not paused."""
        while self.is_paused:
            await self._resumed.wait()

    def _is_awaited(self) -> bool:
        return bool(self._waiters) or trio.current_time() < self._awaited_until

    async def wait_for_news(self) -> None:
        """Return when a try ended, however."""
        await self._news.wait()

    def relax(self) -> None:
        """One of those who wait is done."""
        self._waiters -= 1

    # ------------------------------------------------------------------- sending

    async def run(self) -> None:
        """Send for ever; cancel to stop. What is on its way then stays pending."""
        self._line_up_soon(State.QUEUED, State.PARKED)
        try:
            async with trio.open_nursery() as nursery:
                self._start(Background(nursery))
        finally:
            with contained("what S3 answered last is looked at again by the next mount"):
                while self._answers:
                    self._draw()

    def _start(self, background: Background) -> None:
        background.keep(self._line_up_due)
        background.keep(self.multipart.run)
        background.keep(self._spool.durability.run)
        background.keep(self.sender.deletions.run)
        background.keep(self._retry_parked)
        background.keep(self._conclude_answers)
        background.keep(self._serve, Lane.DELETIONS, self._deletion_slots, background)
        background.keep(self._serve, Lane.PACKED, self._packed_slots, background)
        background.keep(self._serve, Lane.SMALL, self._small_slots, background)
        background.keep(self._serve, Lane.LARGE, self._large_slots, background)

    async def _retry_parked(self) -> None:
        while True:
            await trio.sleep(PARKED_RETRY_S)
            self._line_up_soon(State.PARKED)

    async def _serve(self, lane: Lane, slots: trio.CapacityLimiter, background: Background) -> None:
        while True:
            worker = object()
            await slots.acquire_on_behalf_of(worker)
            try:
                if lane is Lane.PACKED:
                    await self._let_gather()
                elif lane not in GATHERED:
                    await self._give_way()
                change = await self._next(lane)
            except BaseException:
                slots.release_on_behalf_of(worker)
                raise
            background.start(self._work, change, slots, worker)

    async def _give_way(self) -> None:
        """Return when one more upload does not slow down programs that are just writing files."""
        while self.queue.sending_count >= self._width(trio.current_time()):  # noqa: ASYNC110 - a pause
            await trio.sleep(PAUSE_S / 2)

    async def _let_gather(self) -> None:
        """Return when programs pause that write many files, for which nobody waits, or have written for a while."""
        while not self._is_awaited():
            now = trio.current_time()
            if now - self._last_queued > PAUSE_S or now - self._busy_since > GATHER_S:
                return
            await trio.sleep(PAUSE_S)

    def _width(self, now: float) -> int:
        """How many small requests may be on their way just now."""
        if self._waiters or now - self._last_queued > PAUSE_S:
            return SMALL_REQUESTS_MAX
        return YIELDING_WIDTH if now - self._busy_since < YIELD_S else BUSY_WIDTH

    async def _next(self, lane: Lane) -> Change:
        while True:
            await self._may_send()
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
        is_answered = False
        try:
            # Between taking it and now it may have been opened again, or replaced.
            is_still_due = self._spool.changes.get(change.key) is change
            if is_still_due and change.state is State.QUEUED:
                self._spool.apply(change, Event.START)
                change.held = False
                is_answered = await self._try(change)
        except Exception as error:  # noqa: BLE001  one change's fault does not stop the others
            self._broken(change, error)
        finally:
            slots.release_on_behalf_of(worker)
            if not is_answered:
                self._ended(change)

    def _ended(self, change: Change) -> None:
        """A try is over, its consequences drawn."""
        if change.state is State.SENDING:
            self._spool.apply(change, Event.FAIL)
        with contained("what waited for a change is lined up"):
            self._push_again(self.queue.finished(change.key))
        self._news.set()
        self._news = trio.Event()

    async def _try(self, change: Change) -> bool:
        """Is there an answer whose consequences are to be drawn?"""
        seq = change.seq
        key = change.key
        try:
            stored = await self.sender.perform(change)
        except ForeignWriteError as error:
            await self._conclude(key, partial(self._conflict, change, seq, error))
        except NothingLeftError as error:
            await self._conclude(key, partial(self._given_up, change, seq, error))
        except SourceGoneError as error:
            await self._conclude(key, partial(self._source_gone, change, seq, error))
        except S3MountError as error:
            self._failed(change, error)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._failed(
                    change, DiskFullError("the local disk is full: nothing fits the spool")
                )
            else:
                reason = f"the spool cannot be used: {error.strerror}"
                self._failed(change, LocalDiskError(reason))
        else:
            self._count(stored)
            self._answers.append(_Answer(key, change, seq, stored))
            self.queue.answered(key)
            self._some_answered.set()
            if len(self._answers) >= ANSWERS_MAX:
                self._answers_due.set()
            return True
        return False

    async def _conclude_answers(self) -> None:
        """Draw the consequences of successes, several together.

        Till then a key counts as being sent, as if the answer were still on its way.
        """
        while True:
            await self._some_answered.wait()
            if not self._is_awaited():
                with trio.move_on_after(ANSWERS_S):
                    await self._answers_due.wait()
            self._some_answered, self._answers_due = trio.Event(), trio.Event()
            while self._answers:
                await self._conclude(self._answers[0].key, self._draw)
                await trio.lowlevel.checkpoint()

    async def _conclude(self, key: Key, draw: Callable[[], None]) -> None:
        """Draw the consequences of a try; while the disk has no room to journal them, again and again.

        Till then the key counts as being sent, so that S3 is not asked for the same a second time.
        """
        is_told = False
        while True:
            try:
                draw()
                return
            except LocalDiskError as error:
                level = logging.DEBUG if is_told else logging.INFO
                log.log(level, "what became of %r cannot be journalled yet: %s", key, error)
                is_told = True
            await trio.sleep(JOURNAL_AGAIN_S)

    def _broken(self, change: Change, error: Exception) -> None:
        """A try ended by a fault of ours: the change is parked, readable and listed. Never raises."""
        log.error("internal error while sending %r", change.key, exc_info=error)
        with contained(f"the fault of {change.key!r} is noted"):
            self._failed(change, InternalError(f"internal error: {reason_of(error)}"))

    # ------------------------------------------------------------------ outcomes

    def _count(self, stored: Stored | None) -> None:
        self.counters["uploads"] += 1
        if stored is not None and stored.is_copied:
            self.counters["deduplicated"] += 1
            self.counters["saved_bytes"] += stored.size

    def _draw(self) -> None:
        """Draw the consequences of the first answers, together where nothing of a change is left.

        Raises LocalDiskError; then those whose consequences were not drawn are still in ``_answers``.
        """
        due = self._answers[:ANSWERS_MAX]
        with contained("the list of what was put is not whole"):
            self._report(Answered([(each.key, each.change, each.content) for each in due]))
        done = self._finished([each for each in due if self._is_done(each)])
        for each in done:
            with contained(f"{each.key!r} is in S3, and what is shown of it may be older"):
                self._report(Uploaded(each.change, each.result))
        keys = {each.key for each in done}
        left = [each for each in due if each.key not in keys]
        # Whatever happens, none is forgotten before its try is over.
        self._answers[: len(due)] = [*done, *left]
        for each in self._answers[: len(due)]:
            if each.key not in keys and each.change.state is not State.PARKED:
                self._unless_broken(each)
            self._ended(each.change)
            del self._answers[0]

    def _is_done(self, answer: _Answer) -> bool:
        """Has S3 all of the change, as it is now?"""
        change, seq, stored = answer.change, answer.seq, answer.stored
        if self._spool.changes.get(answer.key) is not change or change.seq != seq:
            return False
        return stored is None or isinstance(change, Delete) or self._carried(change, seq)

    def _finished(self, done: list[_Answer]) -> list[_Answer]:
        """Forget these changes, together; those of which no fault kept it from that. Raises LocalDiskError."""
        try:
            self._spool.finish(*(each.change for each in done))
        except LocalDiskError:
            raise
        except Exception as error:  # noqa: BLE001  one change's fault does not stop the others
            log_fault("forgetting several changes at once", error)
        else:
            return done
        return [each for each in done if self._is_finished(each.change)]

    def _is_finished(self, change: Change) -> bool:
        try:
            if self._spool.changes.get(change.key) is change:
                self._spool.finish(change)
        except LocalDiskError:
            raise
        except Exception as error:  # noqa: BLE001  as above
            self._broken(change, error)
            return False
        return True

    def _unless_broken(self, answer: _Answer) -> None:
        """``_not_done``; a fault parks the change. Raises LocalDiskError."""
        try:
            self._not_done(answer)
        except LocalDiskError:
            raise
        except Exception as error:  # noqa: BLE001  as above
            self._broken(answer.change, error)

    def _not_done(self, answer: _Answer) -> None:
        """S3 has an earlier state of the change, or one that was superseded since. Raises LocalDiskError."""
        key, change, seq, stored = answer
        current = self._spool.changes.get(key)
        etag = ABSENT if stored is None else stored.result.etag
        if current is not change:
            crashpoint("change: superseded")
            # Superseded by a deletion, a rename or a new file while it was on its way.
            if current is not None:
                current.expected = etag
                self._spool.save(current, makes_room=True)
            return
        change.forget_failures()
        change.expected = etag
        change.expected_size = -1 if stored is None else stored.size
        if stored is not None and not isinstance(change, Delete):
            has_content = isinstance(change, Copy) or change.content_seq <= seq
            if has_content and not self._carried(change, seq):
                self._only_attributes_left(change, stored.ref(key))
                return
        crashpoint("change: earlier state is in S3")
        change.first_seq = seq + 1
        if not isinstance(change, Delete):
            change.former = ()
        self._spool.apply(change, Event.SUCCEED_OLD)
        with contained(f"an earlier state of {key!r} is in S3"):
            self._report(UploadedEarlier(change, answer.content))
        self._spool.save(change, makes_room=True)
        if change.state is State.QUEUED:
            self._queued(change)

    @staticmethod
    def _carried(change: PutOrCopy, seq: int) -> bool:
        """Does S3 have the attributes of ``change``, whose content it has?"""
        if isinstance(change, Put) and change.upload_attributes is not None:
            return change.seq == seq and carries(change)
        return change.seq == seq

    def _only_attributes_left(self, change: PutOrCopy, content: ContentRef) -> None:
        """Do not send the bytes again: what is stored beside them is changed inside S3."""
        crashpoint("change: content is in S3")
        blob_id = blob_id_of(change)
        self._spool.disown(blob_id)
        left = as_copy(change, content)
        self._spool.replace(change, left)
        with contained(f"the content of {left.key!r} is in S3"):
            self._report(ContentUploaded(left, blob_id, content))
        if left.state is State.QUEUED:
            self._queued(left)

    def _failed(self, change: Change, error: S3MountError) -> None:
        if self._spool.changes.get(change.key) is not change:
            return
        delay_s = AGAIN_S
        event = Event.FAIL
        if not isinstance(error, TryAgain):
            change.note_failure(error)
            about = about_error(error, change.key)
            log.warning(
                "%s of %r is not done yet: %s", change.op, change.key, change.error, extra=about
            )
            if error.retryable or isinstance(error, PASSING):
                self.counters["postponed"] += 1
                ceiling_s = min(RETRY_DELAY_S_MAX, 0.5 * 2 ** min(change.attempts, 10))
                delay_s = ceiling_s * random.uniform(0.5, 1.0)
                if trio.current_time() < self._back_at + BACK_S:
                    delay_s = min(delay_s, BACK_DELAY_S)
            else:
                change.refusals += 1
                delay_s = REFUSED_AGAIN_S * change.refusals
                if not isinstance(error, MAY_PASS) or change.refusals >= REFUSALS_MAX:
                    event = Event.REFUSE
        self._spool.apply(change, event)
        try:
            self._spool.save(change, makes_room=True)
        except Exception as disk_error:  # noqa: BLE001  what is to be told is told all the same
            # What went wrong is known here till the end; the change itself is in the journal.
            log.warning("the failure of %r is not journalled: %s", change.key, disk_error)
        if not isinstance(error, TryAgain):
            with contained(f"the failure of {change.key!r} is told"):
                self._report(Failed(change))
        if change.state is State.PARKED:
            self.counters["parked"] += 1
        elif change.state is State.QUEUED:
            self.queue.push(change, trio.current_time() + delay_s)
            self._wake.set()

    def retry(self, change: Change, *, overwrite: bool = False) -> None:
        """A person asks for another try of a change that waits, now.

        If it meets somebody else's version this time, both are kept, or, with ``overwrite``, ours
        replaces theirs, whatever the mount's policy. Raises LocalDiskError.
        """
        if change.state is State.PARKED:
            self._spool.apply(change, Event.RETRY)
        change.refusals = 0
        if change.held or overwrite:
            change.on_conflict = "overwrite" if overwrite else "keep-both"
        change.held = False
        self._spool.save(change)
        if change.state is State.QUEUED:
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
        with contained(f"new attributes of {change.key!r} are lost"):
            self._report(GivenUp(change))

    def _source_gone(self, change: Change, seq: int, error: SourceGoneError) -> None:
        """What was to be moved is gone from S3: the cache may have it, else theirs stays as it is."""
        if self._spool.changes.get(change.key) is not change:
            return
        if change.seq != seq:
            self._failed(change, TryAgain("changed while it was sent"))
            return
        if isinstance(change, Copy):
            self._fetch(change)
            return
        self.counters["conflicts"] += 1
        log.warning("%r is not moved: %s", change.key, error)
        if (change.on_conflict or self._on_conflict) == "hold":
            change.held = True
            self._tell_of_conflict(change.key, "held")
            self._failed(change, error)
            return
        self._spool.finish(change)
        with contained(f"the move to {change.key!r} is given up"):
            self._report(GivenUp(change))
            self._spool.drop_unless_open(self._spool.live_blobs[blob_id_of(change)])
        self._tell_of_conflict(change.key, "not-moved")

    def _fetch(self, change: Copy) -> None:
        """Let the copy ``change`` become a file of its own that fetches its content first. Raises LocalDiskError."""
        try:
            fetched = self._spool.as_fetched(change)
        except OSError as error:
            self._failed(change, LocalDiskError(f"the spool cannot be used: {error.strerror}"))
            return
        try:
            self._spool.record([fetched])
        except BaseException:
            self._spool.drop_blob(self._spool.live_blobs[fetched.blob_id])
            raise

    def _tell_of_conflict(self, key: Key, outcome: ConflictOutcome, kept_as: Key = "") -> None:
        with contained(f"the conflict of {key!r} is told"):
            self._report(Conflicted(key, outcome, kept_as))

    def _conflict(self, change: Change, seq: int, error: ForeignWriteError) -> None:
        if self._spool.changes.get(change.key) is not change:
            return
        if change.seq != seq:
            # Written again meanwhile: its next try will see the same.
            self._failed(change, TryAgain("changed while it was sent"))
            return
        policy = change.on_conflict or self._on_conflict
        self.counters["conflicts"] += 1
        log.warning("somebody else changed %r first: %s", change.key, error.describe())
        if policy == "keep-both" and isinstance(change, Delete):
            # Of ours nothing is left to be kept: theirs stays and is shown again.
            self._spool.finish(change)
            with contained(f"the deletion of {change.key!r} is given up"):
                self._report(GivenUp(change))
            self._tell_of_conflict(change.key, "not-deleted")
        elif policy == "keep-both" and not isinstance(change, Delete):
            kept_as = self._provider.keep_both(change)
            log.warning("both versions of %r are kept: yours is %r now", change.key, kept_as)
            self._tell_of_conflict(change.key, "kept-both", kept_as)
        elif policy == "overwrite" and change.expected is not None:
            log.warning("%r: yours replaces theirs, as was asked for", change.key)
            self.counters["overwritten"] += 1
            self._tell_of_conflict(change.key, "overwritten")
            change.expected = None
            self._failed(change, TryAgain("whatever is there is replaced"))
        else:
            # Also where ours is to replace theirs, but a part of it went away with what they replaced.
            change.held = True
            self._tell_of_conflict(change.key, "held")
            self._failed(change, error)
